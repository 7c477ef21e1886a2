"""What a pool earns that sells firm windows and lends the rest: the planner's real decision.

At each boundary of the grid (24 h, 4 h, 1 h) some GPUs are promised until the next one; what is
idle at a step and not promised is lent interruptible. Internal demand evicts interruptible
leases first, then breaks promises, the shortest first. What was broken stays broken until its
window ends; when its GPU is idle again it is lent interruptible.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from sublet.planner.curve import HOUR_SECONDS, Curve, Floats
from sublet.planner.windows import LENGTHS, Span, Windows, days, summed

EVICTION_SECONDS: Final = 30.0  # of the GPU, that nobody pays
BROKEN_CREDIT: Final = 0.5  # of a window's price, beside its refund


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Per GPU-hour, in one currency. Only their proportions matter to a decision."""

    firm: Mapping[int, float]  # by the window's hours
    interruptible: float


DEFAULT_PRICES: Final = Prices(firm={1: 0.70, 4: 0.85, 24: 1.00}, interruptible=0.50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Takings:
    """What came of it. Arrays have shape (days,): sums over the days of the scored part."""

    revenue: Floats  # net, in the prices' currency
    interruptible_hours: Floats  # GPU-hours lent interruptible
    firm_hours: Floats  # GPU-hours promised and kept
    broken_hours: Floats  # GPU-hours promised and not kept
    evictions: Floats  # GPUs taken from interruptible leases, and from broken promises
    lacking_hours: Floats  # internal GPU-hours that waited longer than the notice
    waited_hours: Floats  # internal GPU-hours that waited at all


def portfolio(
    curve: Curve,
    scored: Span,
    grids: Mapping[int, Windows],
    sold: Mapping[int, Floats],
    prices: Prices,
    *,
    notice_seconds: int,
    lends_interruptible: bool = True,
    preempts: bool = True,
) -> Takings:
    """Play one pool's promises against what came.

    Args:
        curve: what came.
        scored: the part that counts.
        grids: the windows of each length in it.
        sold: GPUs that may be promised for each of those windows, counting promises of longer
            windows that stand at its start; shape (windows,) each.
        prices: of each kind.
        notice_seconds: how long a lease may stay after it was asked to leave. Leases that
            leave by then make nobody wait longer; without `preempts` they stay to their end.
        lends_interruptible: is the rest lent at all?
        preempts: do leases give way?
    """
    idle = curve.idle[scored.first : scored.last]
    known = ~np.isnan(idle)
    step_hours = curve.step_seconds / HOUR_SECONDS
    day_of = days(curve, scored)
    count = int(day_of[-1]) + 1 if len(day_of) else 0

    def by_day(values: Floats) -> Floats:
        return summed(values, day_of, count)

    room = np.where(known, idle, np.inf)
    firm, before, breaks = np.zeros(len(idle)), np.zeros(len(idle)), np.zeros(len(idle))
    kept: dict[int, Floats] = {}
    broken: dict[int, Floats] = {}
    for hours in sorted(LENGTHS, reverse=True):
        layer = _Layer(curve, scored, grids[hours])
        # Longer promises are broken last, so this layer has what they leave.
        left = room - firm if preempts else np.full(len(idle), np.inf)
        layer.play(sold[hours], before=before, room=left)
        firm, before, breaks = firm + layer.standing, before + layer.before, breaks + layer.breaks
        kept[hours], broken[hours] = layer.kept_hours, layer.broken_hours
    rest = (
        np.where(known, np.maximum(room - firm, 0.0), 0.0)
        if lends_interruptible
        else np.zeros(len(idle))
    )
    evicted = np.maximum(-np.diff(rest, prepend=0.0), 0.0)
    evicted[1:][~known[1:] | ~known[:-1]] = 0.0

    revenue = by_day(rest) * step_hours * prices.interruptible
    revenue -= by_day(evicted) * prices.interruptible * EVICTION_SECONDS / HOUR_SECONDS
    for hours in LENGTHS:
        revenue += prices.firm[hours] * by_day(kept[hours])
        revenue -= prices.firm[hours] * BROKEN_CREDIT * by_day(broken[hours])
    if preempts:
        # An evicted GPU is free when its notice ends: nobody waits longer than that.
        earlier = np.concatenate([room[:1], room[:-1]])
        sank = np.subtract(earlier, room, out=np.zeros(len(room)), where=known)
        fell = np.minimum(np.maximum(sank, 0.0), evicted + breaks)
        lacking, waited = 0 * fell, fell * notice_seconds / HOUR_SECONDS
    else:
        short = np.where(known, np.maximum(firm - idle, 0.0), 0.0)
        lacking = _longer_than(short, notice_seconds / curve.step_seconds) * step_hours
        waited = short * step_hours
    return Takings(
        revenue=revenue,
        interruptible_hours=by_day(rest) * step_hours,
        firm_hours=sum((by_day(kept[hours]) for hours in LENGTHS), np.zeros(count)),
        broken_hours=sum((by_day(broken[hours]) for hours in LENGTHS), np.zeros(count)),
        evictions=by_day(evicted + breaks),
        lacking_hours=by_day(lacking),
        waited_hours=by_day(waited),
    )


class _Layer:
    """The promises of one length, step by step over the scored part."""

    def __init__(self, curve: Curve, scored: Span, grid: Windows) -> None:
        length = grid.hours * HOUR_SECONDS // curve.step_seconds
        self._hours = grid.hours
        self._starts = grid.slots - scored.first
        self._at = self._starts[:, None] + np.arange(length)
        steps = scored.last - scored.first
        self.standing = np.zeros(steps)  # GPUs promised and not broken
        self.before = np.zeros(steps)  # the same as known one step before: new promises, old breaks
        self.breaks = np.zeros(steps)  # GPUs broken at this step
        self.kept_hours = np.zeros(steps)  # GPU-hours, on the step at which the window starts
        self.broken_hours = np.zeros(steps)

    def play(self, may: Floats, *, before: Floats, room: Floats) -> None:
        """Promise what `may` allows beyond longer windows, and break what then lacks `room`."""
        sold = np.maximum(may - before[self._starts], 0.0)[:, None]
        broken = np.maximum.accumulate(np.clip(sold - room[self._at], 0.0, sold), axis=1)
        self.standing[self._at] = sold - broken
        self.breaks[self._at] = np.diff(broken, axis=1, prepend=0.0)
        self.before[self._at] = sold - broken + np.diff(broken, axis=1, prepend=0.0)
        last = broken[:, -1]
        self.kept_hours[self._starts] = (sold[:, 0] - last) * self._hours
        self.broken_hours[self._starts] = last * self._hours


def _longer_than(short: Floats, patience: float) -> Floats:
    """Return the part of `short` that lasts longer than `patience` steps, per step.

    A GPU that was lacking for n steps in a row counts for n - patience of them.
    """
    whole = int(patience)
    part = patience - whole

    def lasting(steps: int) -> Floats:
        out = short.copy()
        for back in range(1, steps + 1):
            earlier = np.zeros_like(short)
            earlier[back:] = short[:-back]
            out = np.minimum(out, earlier)
        return out

    return (1 - part) * lasting(whole) + part * lasting(whole + 1)
