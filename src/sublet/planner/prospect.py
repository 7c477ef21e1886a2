"""What a pool's past says of its next hours: how much may be sold firm, and for how long.

Free is what there is less what internal jobs hold and wait for. The rule looks at how far free
GPUs fell, at the worst, within an hour, four and a day of each past moment; what is free
now less the fall that is exceeded only as often as the operator accepts may be sold firm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from sublet.core.errors import Invalid
from sublet.planner.curve import DAY_SECONDS, HOUR_SECONDS, Curve, Floats

FIRM_HOURS: Final = (1, 4, 24)
# How far ahead the band looks, in seconds: five minutes to seven days.
BAND_SECONDS: Final = (
    300, 1_800, HOUR_SECONDS, 4 * HOUR_SECONDS, 12 * HOUR_SECONDS, DAY_SECONDS, 7 * DAY_SECONDS,
)  # fmt: skip
BAND_QUANTILES: Final = (0.5, 0.9, 0.95, 0.99)
HISTORY_SECONDS: Final = 28 * DAY_SECONDS
_ENOUGH_SECONDS: Final = 14 * DAY_SECONDS  # below it a history is short
_GAPS: Final = 0.1  # share of slots that may be unknown before it is said
_STALE_SECONDS: Final = 900
_COLD_RESERVE: Final = 0.1  # of a pool of which nothing is known
_OFTEN: Final = 4  # so many whole windows must have been seen before one is sold


class Reason(StrEnum):
    """Why no more is sold. For people and programs; the words are in the glossary."""

    NO_HISTORY = "no_history"  # nothing is known: nothing is sold
    SHORT_HISTORY = (
        "short_history"  # under two weeks: the worst that was seen counts, and a tenth is kept
    )
    GAPS = "gaps"  # more than a tenth of the past is not known
    STALE = "stale"  # nobody looked for a quarter of an hour: nothing firm
    DEMAND_WAITS = "demand_waits"  # internal jobs wait: what they want is not free
    NOTHING_FREE = "nothing_free"
    UNSTEADY = "unsteady"  # free now, but falls of this size are too common
    NOT_LENDABLE = "not_lendable"  # the operator lends nothing of this pool
    LENDING_LIMIT = "lending_limit"  # the operator lends no more of it


WHY: Final[Mapping[Reason, str]] = {
    Reason.NO_HISTORY: "nothing is known of it yet, so nothing is sold",
    Reason.SHORT_HISTORY: "under two weeks are known: the worst fall seen so far counts, a tenth is"
    " kept, and a window is sold firm only once four of its length were seen",
    Reason.GAPS: "more than a tenth of the past is not known",
    Reason.STALE: "nobody looked for a quarter of an hour: nothing is sold firm",
    Reason.DEMAND_WAITS: "internal jobs wait, and what they want is not free",
    Reason.NOTHING_FREE: "internal jobs hold or wait for all of it",
    Reason.UNSTEADY: "some is free, but falls of that size are too common to promise any for an hour",
    Reason.NOT_LENDABLE: "the operator lends nothing of it",
    Reason.LENDING_LIMIT: "the operator lends no more of it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator says of a pool."""

    confidence: float  # share of firm GPU-windows that must hold, inside (0, 1)
    lendable: bool = True
    lending_limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Quantiles of the most that internal jobs will want at any time up to `ahead_seconds`."""

    ahead_seconds: int
    demand: Mapping[float, int]  # quantile → GPUs


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What may be sold of one pool from now on, in GPUs, leases that run included."""

    as_of: int  # until when the pool is known, in seconds since the epoch
    gpus: int
    demand: int  # held and waited for by internal jobs now
    firm: Mapping[int, int]  # window hours → GPUs
    interruptible: int
    reserve: int  # free, and kept
    band: Sequence[Band]
    reasons: Sequence[Reason]
    known_seconds: int  # of the past that was looked at
    known_share: float  # of the slots since the first


def prospect(curve: Curve, *, now: int, policy: Policy) -> Prospect:
    """Say what may be sold of a pool, from its past alone.

    Args:
        curve: the pool's history up to now; slots that start at or after `now` are not looked at.
        now: in seconds since the epoch.
        policy: the operator's.

    Raises:
        Invalid: `confidence` is not inside (0, 1).
    """
    if not 0 < policy.confidence < 1:
        raise Invalid(f"confidence must lie inside (0, 1), not {policy.confidence}")
    past = _past(curve, now)
    reasons: list[Reason] = []
    known = ~np.isnan(past.free)
    known_seconds = int(known.sum()) * curve.step_seconds
    if not known_seconds:
        return _unknown(now, policy)
    last = int(np.flatnonzero(known)[-1])
    gpus, demand = int(past.total[last]), int(np.ceil(past.demand[last]))
    free = max(gpus - demand, 0)
    as_of = min(past.start + (last + 1) * curve.step_seconds, now)
    stale = now - as_of > _STALE_SECONDS
    short = known_seconds < _ENOUGH_SECONDS
    first = int(np.flatnonzero(known)[0])
    known_share = float(known[first:].mean())
    if short:
        reasons.append(Reason.SHORT_HISTORY)
    if known_share < 1 - _GAPS:
        reasons.append(Reason.GAPS)
    if stale:
        reasons.append(Reason.STALE)
    firm = {}
    for hours in FIRM_HOURS:
        slots = hours * HOUR_SECONDS // curve.step_seconds
        falls = _falls(past.free, slots)
        seen = known_seconds // (hours * HOUR_SECONDS)
        if stale or seen < _OFTEN or not len(falls):
            firm[hours] = 0
            continue
        worst = falls.max() if short else _quantile(falls, policy.confidence)
        firm[hours] = max(free - int(np.ceil(worst)), 0)
    reserve = 0
    one_slot = _falls(past.free, 1)
    if len(one_slot):
        # What internal jobs may want before the next plan is made.
        reserve = min(int(np.ceil(_quantile(one_slot, policy.confidence))), free)
    if short:
        reserve = max(reserve, min(int(np.ceil(gpus * _COLD_RESERVE)), free))
    if not free:
        reasons.append(Reason.NOTHING_FREE)
    elif not firm[FIRM_HOURS[0]] and not stale and known_seconds >= _OFTEN * HOUR_SECONDS:
        reasons.append(Reason.UNSTEADY)
    if past.pending[last] > 0:
        reasons.append(Reason.DEMAND_WAITS)
    interruptible = free - reserve
    # A longer promise never exceeds a shorter one, nor what is lent at all.
    firm = {hours: min(firm[h] for h in FIRM_HOURS if h <= hours) for hours in FIRM_HOURS}
    most = _most(policy, reasons, interruptible)
    return Prospect(
        as_of=as_of,
        gpus=gpus,
        demand=demand,
        firm={hours: min(count, most) for hours, count in firm.items()},
        interruptible=most,
        reserve=reserve,
        band=_band(past, curve.step_seconds, demand),
        reasons=tuple(reasons),
        known_seconds=known_seconds,
        known_share=known_share,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Past:
    start: int
    total: Floats
    demand: Floats  # held and waited for
    pending: Floats
    free: Floats  # below zero where more is wanted than there is; NaN: not known


def _past(curve: Curve, now: int) -> _Past:
    end = min(-(-(now - curve.start) // curve.step_seconds), len(curve))
    end = max(end, 0)
    begin = max(end - HISTORY_SECONDS // curve.step_seconds, 0)
    cut = slice(begin, end)
    pending = np.zeros(end - begin) if curve.pending is None else curve.pending[cut]
    pending = np.nan_to_num(pending)
    demand = curve.running[cut] + pending
    return _Past(
        start=curve.start + begin * curve.step_seconds,
        total=curve.total[cut],
        demand=demand,
        pending=pending,
        free=curve.total[cut] - demand,
    )


def _unknown(now: int, policy: Policy) -> Prospect:
    """Nothing is known of the pool: sell nothing of it."""
    reasons = [Reason.NO_HISTORY]
    _most(policy, reasons, 0)
    return Prospect(
        as_of=now, gpus=0, demand=0, firm=dict.fromkeys(FIRM_HOURS, 0), interruptible=0,
        reserve=0, band=(), reasons=tuple(reasons), known_seconds=0, known_share=0.0,
    )  # fmt: skip


def _most(policy: Policy, reasons: list[Reason], free: int) -> int:
    if not policy.lendable:
        reasons.append(Reason.NOT_LENDABLE)
        return 0
    if policy.lending_limit is not None and policy.lending_limit < free:
        reasons.append(Reason.LENDING_LIMIT)
        return policy.lending_limit
    return free


def _falls(free: Floats, slots: int) -> Floats:
    """Return how far free GPUs fell, at the worst, within `slots` after each known slot.

    Shape (windows,), never negative; windows that reach beyond the past are left out.
    """
    if len(free) <= slots:
        return np.zeros(0)
    lowest = free[: len(free) - slots] - _least(free, slots)
    return lowest[~np.isnan(lowest)]


def _least(values: Floats, slots: int) -> Floats:
    """Return the least of each `slots + 1` values in a row, unknown ones aside.

    By doubling: each round covers twice as many values, so a week costs eleven rounds.
    """
    covered, least = 1, values
    while 2 * covered <= slots + 1:
        least = np.fmin(least[:-covered], least[covered:])
        covered *= 2
    rest = slots + 1 - covered
    count = len(values) - slots
    return np.fmin(least[:count], least[rest : rest + count])


def _quantile(falls: Floats, confidence: float) -> float:
    return float(np.quantile(falls, confidence, method="higher"))


def _band(past: _Past, step_seconds: int, demand: int) -> list[Band]:
    """Return the band: demand now, and by how much it rose within each reach of past moments.

    Never above the most that was ever wanted in the past that is looked at: a rise that
    started low says little of one that starts high.
    """
    most = int(np.ceil(np.nanmax(past.demand)))
    bands = []
    for seconds in BAND_SECONDS:
        slots = max(seconds // step_seconds, 1)
        rises = _falls(-past.demand, slots)
        if len(rises):
            found = {q: demand + int(np.ceil(_quantile(rises, q))) for q in BAND_QUANTILES}
            wanted = {q: max(min(gpus, most), demand) for q, gpus in found.items()}
            bands.append(Band(ahead_seconds=seconds, demand=wanted))
    return bands
