"""Policies: what may be sold at each boundary, from what was known one step before it.

`default` is Sublet's own. The others are what people do without it, to compare with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np

from sublet.planner.calibration import Ladder
from sublet.planner.curve import HOUR_SECONDS, Curve, Floats
from sublet.planner.opinions import opinions
from sublet.planner.portfolio import Prices
from sublet.planner.signals import Ints, held, lowest, lowest_ahead
from sublet.planner.windows import LENGTHS, Windows
from sublet.planner.worth import worthwhile

_BUFFER: Final = 0.05  # of the pool
_WEEK_HOURS: Final = 168
_RECENT_DAYS: Final = 28
_FEWEST_PAST: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a policy is asked: decide for every window of `grids`, on `curve`."""

    curve: Curve
    grids: Mapping[int, Windows]
    confidence: float
    prices: Prices
    train_until: int  # a slot; what is fitted once, is fitted on what was before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """GPUs to sell for each window, by the windows' hours; shape (windows,) each.

    `promises` are made for each length by itself; `portfolio` counts longer promises that stand.
    """

    promises: Mapping[int, Floats]
    portfolio: Mapping[int, Floats]
    lends_interruptible: bool = True
    preempts: bool = True


def default(task: Task) -> Decisions:
    """Sublet's own: promises as deep as the confidence asks, a portfolio as deep as pays."""
    forecasts, *others = opinions(task.curve, LENGTHS)
    earning = worthwhile(task.curve, (forecasts, *others), task.prices)
    promises, portfolio = {}, {}
    for hours, grid in task.grids.items():
        rows = np.searchsorted(forecasts[hours].slots, grid.slots)
        ladder = Ladder(forecasts[hours])
        promises[hours] = ladder.choose(rows, confidence=task.confidence).gpus
        portfolio[hours] = earning[hours][rows]
    return Decisions(promises=promises, portfolio=portfolio)


_Rule = Callable[[Task, int, Ints, "_Before"], Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """A step before each window: shape (windows,)."""

    idle: Floats
    total: Floats


def _by_rule(
    rule: _Rule, task: Task, *, lends_interruptible: bool = True, preempts: bool = True
) -> Decisions:
    """Sell what `rule` says, whole GPUs, and in a portfolio the same."""
    idle, total = held(task.curve.idle), held(task.curve.total)
    sold = {}
    for hours, grid in task.grids.items():
        known = _Before(idle=idle[grid.slots - 1], total=total[grid.slots - 1])
        gpus = rule(task, hours, grid.slots, known)
        sold[hours] = np.floor(np.maximum(np.nan_to_num(gpus), 0.0) + 1e-9)
    return Decisions(
        promises=sold, portfolio=sold, lends_interruptible=lends_interruptible, preempts=preempts
    )


def _nothing(_task: Task, _hours: int, slots: Ints, _known: _Before) -> Floats:
    return np.zeros(len(slots))


def _everything(_task: Task, _hours: int, _slots: Ints, known: _Before) -> Floats:
    return known.idle


def _quota(task: Task, _hours: int, slots: Ints, _known: _Before) -> Floats:
    """What was idle nearly always before the training ended."""
    past = task.curve.idle[: task.train_until]
    past = past[~np.isnan(past)]
    quota = np.quantile(past, 1 - task.confidence) if len(past) else 0.0
    return np.full(len(slots), float(quota))


def _lowest_of(back_hours: float, task: Task, _hours: int, slots: Ints, known: _Before) -> Floats:
    """The highest demand of the last hours, and a buffer."""
    back = max(round(back_hours * HOUR_SECONDS / task.curve.step_seconds), 1)
    low: Floats = lowest(held(task.curve.idle), back)[slots - 1] - _BUFFER * known.total
    return low


def _last_week(task: Task, hours: int, slots: Ints, known: _Before) -> Floats:
    """What the window kept a week ago, if that much is idle now."""
    return np.minimum(_kept_before(task, hours, slots, _WEEK_HOURS), known.idle)


def _seasonal(task: Task, hours: int, slots: Ints, known: _Before) -> Floats:
    """A low quantile of what windows at this hour kept on the days of the last four weeks."""
    past = np.stack(
        [_kept_before(task, hours, slots, 24 * day) for day in range(1, _RECENT_DAYS + 1)], axis=1
    )
    enough = (~np.isnan(past)).sum(axis=1) >= _FEWEST_PAST
    low = np.zeros(len(slots))
    if enough.any():
        low[enough] = np.nanquantile(past[enough], 1 - task.confidence, axis=1)
    return np.minimum(low, known.idle)


def _kept_before(task: Task, hours: int, slots: Ints, back_hours: int) -> Floats:
    """Return what windows kept that started `back_hours` earlier, which have ended."""
    per_hour = HOUR_SECONDS // task.curve.step_seconds
    kept = lowest_ahead(task.curve.idle, hours * per_hour)
    at = slots - back_hours * per_hour
    return np.where(at >= 0, kept[np.maximum(at, 0)], np.nan)


def _marginal(
    confidence: float | None, task: Task, hours: int, slots: Ints, known: _Before
) -> Floats:
    """The plain quantile of the falls of four weeks."""
    per_hour = HOUR_SECONDS // task.curve.step_seconds
    kept = lowest_ahead(task.curve.idle, hours * per_hour)[:-1]
    idle = held(task.curve.idle)
    fall = np.full(len(kept), np.nan)
    fall[1:] = idle[:-1] - kept[1:]
    out = np.zeros(len(slots))
    stride = max(per_hour // 6, 1)
    for place, slot in enumerate(slots.tolist()):
        end = slot - hours * per_hour + 1
        past = fall[max(end - _RECENT_DAYS * 24 * per_hour, 0) : max(end, 0) : stride]
        past = past[~np.isnan(past)]
        if len(past) >= 24:
            share = task.confidence if confidence is None else confidence
            out[place] = known.idle[place] - np.quantile(past, share)
    return np.minimum(out, known.idle)


def _boosted(confidence: float | None, task: Task) -> Decisions:
    from sublet.planner.boosted import falls  # noqa: PLC0415 -- LightGBM takes seconds to load

    def rule(task: Task, hours: int, slots: Ints, known: _Before) -> Floats:
        share = task.confidence if confidence is None else confidence
        fall = falls(task.curve, hours, slots, share=share, train_until=task.train_until)
        return np.minimum(known.idle - fall * known.total, known.idle)

    return _by_rule(rule, task)


Policy = Callable[[Task], Decisions]

POLICIES: Final[Mapping[str, Policy]] = MappingProxyType(
    {
        "default": default,
        "none": partial(_by_rule, _nothing, lends_interruptible=False),
        "interruptible": partial(_by_rule, _nothing),
        "everything": partial(_by_rule, _everything),
        "never-preempt": partial(_by_rule, _everything, preempts=False),
        "quota": partial(_by_rule, _quota),
        "last": partial(_by_rule, partial(_lowest_of, 0)),
        "max-6h": partial(_by_rule, partial(_lowest_of, 6)),
        "max-24h": partial(_by_rule, partial(_lowest_of, 24)),
        "last-week": partial(_by_rule, _last_week),
        "seasonal": partial(_by_rule, _seasonal),
        "marginal": partial(_by_rule, partial(_marginal, None)),
        "marginal-92": partial(_by_rule, partial(_marginal, 0.92)),
        "lightgbm": partial(_boosted, None),
        "lightgbm-92": partial(_boosted, 0.92),
    }
)
