"""What may be sold now, and what is to be expected: one pool's plan, for whoever sells.

    model = learn(history, policy)              # seconds; once a day is enough
    plan = make_plan(history, model)            # milliseconds; whenever a sample came

Both are pure, and use nothing but `history`, which ends now: its last slot is the last sample.
`history` is a `sublet.planner.curve.Curve`; `on_grid` makes one of samples as they were taken,
at any distance up to an hour. Four to six months of it are enough.

A plan has one entry for each step ahead, up to a week. `firm[hours][0]` is what may be promised
from now on for so many hours, beside nothing else: whoever sells takes off the promises that
stand. Later entries are what could be promised then, by what is known now, which is less and less. `expected` is internal demand as quantiles.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np

from sublet.planner.band import BAND, depths_at
from sublet.planner.calibration import Ladder
from sublet.planner.curve import DAY_SECONDS, HOUR_SECONDS, Curve, Floats
from sublet.planner.outlook import SHALLOW, Fit, fitted_outlook, hourly
from sublet.planner.signals import held, signals
from sublet.planner.windows import LENGTHS

HORIZON_HOURS: Final = 168
ANCHORS: Final = (1, 4, 24, 72, 168)  # hours; between them depths of the band are interpolated
_SIGNAL_DAYS: Final = 8  # of history that the signals of one instant look back on
_FEWEST_HOURS: Final = 48


class Why(StrEnum):
    """What a plan rests on, or why it is careful."""

    LEARNT = "learnt"  # enough windows were seen
    COLD_START = "cold_start"  # less than two days of history: nothing is promised
    UNPROVEN = "unproven"  # no depth has kept its promises for long enough
    FULL = "full"  # nothing is idle
    NO_SAMPLE = "no_sample"  # the last sample is missing: nothing is promised


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator wants of a pool."""

    confidence: float = 0.99  # share of firm GPU-windows to be kept
    notice_seconds: int = 60  # within which interruptible leases leave
    reserve_share: float = 0.0  # of sudden demand that shall not wait for a notice, in [0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What was learnt of one pool."""

    fits: Mapping[int, Fit]  # by the window's hours
    depths: Mapping[int, float | None]  # by the window's hours; None: promise nothing
    ahead: Mapping[int, Fit]  # what is idle so many hours ahead, by the anchor's hours
    band: Mapping[int, Floats]  # by the anchor's hours: depths at `BAND`, shape (4,)
    jump: float  # share of the pool by which demand rises within a notice, at `reserve_share`
    windows: Mapping[int, float]  # how many windows of each length were seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What may be sold. Arrays have shape (steps ahead,); GPUs are whole."""

    at: int  # seconds since the epoch: now, when the first step starts
    step_seconds: int
    firm: Mapping[int, Floats]  # by the window's hours
    interruptible: Floats  # GPUs expected to be idle and lendable; the first entry is now
    reserve: float  # GPUs kept idle, so that sudden internal demand need not wait
    expected: Mapping[float, Floats]  # internal demand in GPUs, by the quantile
    why: Mapping[int, Why]  # by the window's hours
    windows: Mapping[int, float]  # how many windows of each length were seen


def learn(history: Curve, policy: Policy) -> Model:
    """Fit and calibrate on all of `history`, whose last slot is the last sample."""
    known = signals(history, hourly(history))
    last = np.array([len(known.slots) - 1], dtype=np.int64)
    fits, depths, windows = {}, {}, {}
    for hours in LENGTHS:
        forecasts, fits[hours] = fitted_outlook(history, hours, known)
        chosen = Ladder(forecasts).choose(last[last >= 0], confidence=policy.confidence)
        good = len(chosen.depth) > 0 and not np.isnan(chosen.depth[0])
        depths[hours] = float(chosen.depth[0]) if good else None
        windows[hours] = float(chosen.windows[0]) if len(chosen.windows) else 0.0
    ahead, band = {}, {}
    for hours in ANCHORS:
        forecasts, ahead[hours] = fitted_outlook(history, hours, known, last=True)
        band[hours] = depths_at(forecasts, len(forecasts.slots) - 1)
    return Model(
        fits=fits,
        depths=depths,
        ahead=ahead,
        band=band,
        jump=_jump(history, policy),
        windows=windows,
    )


def make_plan(history: Curve, model: Model) -> Plan:
    """Say what may be sold from the end of `history` on, with what was learnt of the pool.

    Args:
        history: the pool up to now; its last eight days are enough.
        model: what was learnt of this pool, no longer than a few days ago.
    """
    recent = _recent(history)
    now = np.array([len(recent)], dtype=np.int64)
    known = signals(recent, now)
    idle, total = float(known.idle[0]), float(known.total[0])
    stale = bool(np.isnan(recent.idle[-1]))
    steps = HORIZON_HOURS * HOUR_SECONDS // recent.step_seconds
    hours_ahead = np.arange(steps) * recent.step_seconds / HOUR_SECONDS
    anchors = np.concatenate([[0.0], np.array(ANCHORS, dtype=np.float64)])
    outlooks = [model.ahead[hours].predict(known) for hours in ANCHORS]
    middles = _between(hours_ahead, anchors, [middle[0] for middle, _, _ in outlooks])
    spreads = _between(hours_ahead, anchors, [usual[0] for _, _, usual in outlooks])
    used = total - idle
    expected = {}
    for place, share in enumerate(BAND):
        depth = _between(hours_ahead, anchors, [model.band[hours][place] for hours in ANCHORS])
        expected[share] = np.clip(used + (middles + depth * spreads) * total, 0.0, None)
    reserve = float(np.ceil(max(model.jump * total - 1e-9, 0.0))) if np.isfinite(total) else 0.0
    lendable = np.floor(np.clip(total - expected[BAND[0]] - reserve, 0.0, None) + 1e-9)
    firm, why = {}, {}
    for hours in LENGTHS:
        depth_of = model.depths[hours]
        why[hours] = _why(history, model.windows[hours], depth_of, idle, stale=stale)
        if depth_of is None or stale:
            firm[hours] = np.zeros(steps)
            continue
        middle, spread, usual = (values[0] for values in model.fits[hours].predict(known))
        near, far = min(depth_of, SHALLOW), max(depth_of - SHALLOW, 0.0)
        wide = near * spread + far * usual
        # What demand may do until a window starts, and within it, is taken as unrelated.
        fall = middles + middle + np.copysign(np.hypot(wide, max(depth_of, 0.0) * spreads), wide)
        limit = np.fmin(idle, model.fits[hours].most * total)
        room = np.clip(idle - fall * total, 0.0, limit)
        firm[hours] = np.floor(np.nan_to_num(room) + 1e-9)
    return Plan(
        at=recent.end,
        step_seconds=recent.step_seconds,
        firm=firm,
        interruptible=np.zeros(steps) if stale else np.nan_to_num(lendable),
        reserve=reserve,
        expected=expected,
        why=why,
        windows=model.windows,
    )


def _why(history: Curve, windows: float, depth: float | None, idle: float, *, stale: bool) -> Why:
    if stale:
        return Why.NO_SAMPLE
    if len(history) * history.step_seconds < _FEWEST_HOURS * HOUR_SECONDS or windows < 1:
        return Why.COLD_START
    if depth is None:
        return Why.UNPROVEN
    return Why.FULL if idle < 1 else Why.LEARNT


def _recent(history: Curve) -> Curve:
    """Return the end of `history`, as far as the signals of one instant look back."""
    keep = _SIGNAL_DAYS * DAY_SECONDS // history.step_seconds
    if len(history) <= keep:
        return history
    cut = len(history) - keep
    return replace(
        history,
        start=history.start + cut * history.step_seconds,
        total=history.total[cut:],
        running=history.running[cut:],
        pending=None if history.pending is None else history.pending[cut:],
    )


def _between(at: Floats, anchors: Floats, values: list[float]) -> Floats:
    """Interpolate over the square root of the hours ahead, from nothing now.

    Demand wanders: its spread grows about like the root of time. Past the last anchor that is
    known, its value stands.
    """
    known = np.concatenate([[True], ~np.isnan(np.array(values))])
    held_at = np.concatenate([[0.0], np.nan_to_num(np.array(values))])[known]
    between: Floats = np.interp(np.sqrt(at), np.sqrt(anchors[known]), held_at)
    return between


def _jump(history: Curve, policy: Policy) -> float:
    """Return the rise of demand within a notice, as a share, that `reserve_share` stays below."""
    if policy.reserve_share <= 0:
        return 0.0
    steps = max(-(-policy.notice_seconds // history.step_seconds), 1)
    idle, total = held(history.idle), held(history.total)
    rise = (idle[:-steps] - idle[steps:]) / np.maximum(total[:-steps], 1.0)
    rise = rise[~np.isnan(rise)]
    return float(max(np.quantile(rise, policy.reserve_share), 0.0)) if len(rise) else 0.0
