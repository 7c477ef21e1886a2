"""What may be sold of a pool from now on, and why no more: a plan, held to what is so now.

`plan` says what the past allows. This adds what is known of the present: jobs that wait, what
the operator lends, a past that is too short or has holes. It never sells what is not free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np

from sublet.planner.band import BAND
from sublet.planner.curve import DAY_SECONDS, HOUR_SECONDS, Curve
from sublet.planner.plan import Model, Plan, Why, make_plan
from sublet.planner.windows import LENGTHS

# How much of the past is learnt from, in seconds.
HISTORY_SECONDS: Final = 56 * DAY_SECONDS
# How far ahead the band looks, in seconds: five minutes to seven days.
BAND_SECONDS: Final = (
    300, 1_800, HOUR_SECONDS, 4 * HOUR_SECONDS, 12 * HOUR_SECONDS, DAY_SECONDS, 7 * DAY_SECONDS,
)  # fmt: skip
STALE_SECONDS: Final = 900
_GAPS: Final = 0.1  # share of slots that may be unknown before it is said
_COLD_RESERVE: Final = 0.1  # of a pool that is not known well


class Reason(StrEnum):
    """Why no more is sold, for people and programs; `WHY` has it in a sentence."""

    NO_HISTORY = "no_history"
    NOT_LEARNT = "not_learnt"
    COLD_START = "cold_start"
    UNPROVEN = "unproven"
    GAPS = "gaps"
    STALE = "stale"
    DEMAND_WAITS = "demand_waits"
    NOTHING_FREE = "nothing_free"
    NOT_LENDABLE = "not_lendable"
    LENDING_LIMIT = "lending_limit"


WHY: Final[Mapping[Reason, str]] = {
    Reason.NO_HISTORY: "nothing is known of it yet, so nothing is sold",
    Reason.NOT_LEARNT: "its past is still being learnt from, so nothing is sold firm",
    Reason.COLD_START: "too little is known to promise windows of this length; while even hours"
    " are too few, a tenth of the pool is kept",
    Reason.UNPROVEN: "no promise of this length would have held often enough so far; while that is"
    " so even of hours, a tenth of the pool is kept",
    Reason.GAPS: "more than a tenth of the past is not known",
    Reason.STALE: "nobody looked for a quarter of an hour, so nothing is sold firm",
    Reason.DEMAND_WAITS: "internal jobs wait, and what they want is not free",
    Reason.NOTHING_FREE: "internal jobs hold or wait for all of it",
    Reason.NOT_LENDABLE: "the operator lends nothing of it",
    Reason.LENDING_LIMIT: "the operator lends no more of it",
}
_OF_PLAN: Final = {Why.COLD_START: Reason.COLD_START, Why.UNPROVEN: Reason.UNPROVEN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lending:
    """What the operator says of a pool."""

    lendable: bool = True
    limit: int | None = None  # most GPUs ever lent; None: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Because:
    """A reason, and which windows it is about; none: about all that is sold."""

    reason: Reason
    hours: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Quantiles of what internal jobs will hold so many seconds ahead."""

    ahead_seconds: int
    demand: Mapping[float, int]  # quantile → GPUs


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What may be sold of one pool from now on, in GPUs, leases that run included."""

    as_of: int  # until when the pool is known, in seconds since the epoch
    gpus: int
    demand: int  # held and waited for by internal jobs
    firm: Mapping[int, int]  # window hours → GPUs
    interruptible: int
    reserve: int  # free, and kept
    band: Sequence[Band]
    because: Sequence[Because]
    later: Mapping[int, Sequence[int]]  # window hours → GPUs, were it sold that many hours ahead
    known_seconds: int  # of the past that is learnt from
    known_share: float  # of it since the first sample


def prospect(curve: Curve, model: Model | None, *, now: int, lending: Lending) -> Prospect:
    """Say what may be sold of a pool, from its past alone.

    Args:
        curve: the pool's history, the last eight weeks of it.
        model: what was learnt of it; None: nothing yet.
        now: in seconds since the epoch; slots that start later are not looked at.
        lending: what the operator says.
    """
    past = _until(curve, now)
    if past is None:
        return _of_nothing(now, lending)
    free_now = past.total[-1] - past.running[-1] - _pending(past)
    gpus, free = int(past.total[-1]), max(int(np.floor(free_now)), 0)
    as_of = min(past.end, now)
    stale = now - past.end > STALE_SECONDS
    known = ~np.isnan(past.idle)
    share = float(known[int(np.argmax(known)) :].mean())
    plan = None if model is None else make_plan(past, model)
    firm = dict.fromkeys(LENGTHS, 0)
    if plan is not None and not stale:
        # A promise for long is also one for short, and nothing is sold that is not free.
        counts = {hours: int(plan.firm[hours][0]) for hours in LENGTHS}
        firm = {h: min(free, *(counts[s] for s in LENGTHS if s <= h)) for h in LENGTHS}
    unsure = plan is None or plan.why[LENGTHS[0]] in _OF_PLAN
    kept = np.ceil(gpus * _COLD_RESERVE) if unsure else 0 if plan is None else plan.reserve
    reserve = min(int(kept), free)
    because = _because(plan, free=free, waits=_pending(past) > 0, stale=stale, share=share)
    most = _most(lending, because, free - reserve)
    return Prospect(
        as_of=as_of,
        gpus=gpus,
        demand=int(np.ceil(past.running[-1] + _pending(past))),
        firm={hours: min(count, most) for hours, count in firm.items()},
        interruptible=most,
        reserve=reserve,
        band=() if plan is None or model is None else _band(plan, model, past),
        because=tuple(because),
        later={} if plan is None or stale else _later(plan),
        known_seconds=int(known.sum()) * past.step_seconds,
        known_share=share,
    )


def _until(curve: Curve, now: int) -> Curve | None:
    """Return the history up to its last slot that is known and starts before `now`."""
    end = min(max(-(-(now - curve.start) // curve.step_seconds), 0), len(curve))
    known = np.flatnonzero(~np.isnan(curve.idle[:end]))
    if not len(known):
        return None
    cut = slice(0, int(known[-1]) + 1)
    return replace(
        curve,
        total=curve.total[cut],
        running=curve.running[cut],
        pending=None if curve.pending is None else curve.pending[cut],
    )


def _pending(past: Curve) -> float:
    return 0.0 if past.pending is None else float(np.nan_to_num(past.pending[-1]))


def _of_nothing(now: int, lending: Lending) -> Prospect:
    because = [Because(reason=Reason.NO_HISTORY)]
    _most(lending, because, 0)
    return Prospect(
        as_of=now, gpus=0, demand=0, firm=dict.fromkeys(LENGTHS, 0), interruptible=0, reserve=0,
        band=(), because=tuple(because), later={}, known_seconds=0, known_share=0.0,
    )  # fmt: skip


def _later(plan: Plan) -> dict[int, tuple[int, ...]]:
    """Return what could be promised from each coming hour on, by what is known now."""
    steps = range(0, len(plan.interruptible), max(HOUR_SECONDS // plan.step_seconds, 1))
    return {
        hours: tuple(
            int(min(plan.firm[shorter][step] for shorter in LENGTHS if shorter <= hours))
            for step in steps
        )
        for hours in LENGTHS
    }


def _because(
    plan: Plan | None, *, free: int, waits: bool, stale: bool, share: float
) -> list[Because]:
    because = []
    if plan is None:
        because.append(Because(reason=Reason.NOT_LEARNT))
    else:
        for why, reason in _OF_PLAN.items():
            hours = tuple(h for h in LENGTHS if plan.why[h] is why)
            if hours:
                because.append(Because(reason=reason, hours=hours))
    for is_so, reason in (
        (share < 1 - _GAPS, Reason.GAPS),
        (stale, Reason.STALE),
        (waits, Reason.DEMAND_WAITS),
        (free == 0, Reason.NOTHING_FREE),
    ):
        if is_so:
            because.append(Because(reason=reason))
    return because


def _most(lending: Lending, because: list[Because], free: int) -> int:
    if not lending.lendable:
        because.append(Because(reason=Reason.NOT_LENDABLE))
        return 0
    if lending.limit is not None and lending.limit < free:
        because.append(Because(reason=Reason.LENDING_LIMIT))
        return lending.limit
    return free


def _band(plan: Plan, model: Model, past: Curve) -> list[Band]:
    """Return the band; nothing where too little is known for one.

    Never above the most that jobs held in the past, or all there is: a rise that started
    low says little of one that starts high.
    """
    if all(np.isnan(depths).any() for depths in model.band.values()):
        return []
    most = max(float(np.nanmax(past.running)), float(past.total[-1]))
    bands = []
    for seconds in BAND_SECONDS:
        step = min(max(seconds // plan.step_seconds, 1), len(plan.interruptible)) - 1
        counts = [min(float(plan.expected[quantile][step]), most) for quantile in BAND]
        rising = np.maximum.accumulate(np.ceil(counts)).astype(np.int64).tolist()
        bands.append(Band(ahead_seconds=seconds, demand=dict(zip(BAND, rising, strict=True))))
    return bands
