"""What a pool shows before a decision: level, drift, swings, arrivals and departures, the hour.

Everything here is known one step before the slot it belongs to; a later sample changes nothing.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sublet.planner.curve import DAY_SECONDS, HOUR_SECONDS, Curve, Floats

Ints = NDArray[np.int64]

_LOW_HOURS: Final = (1, 4, 24, 168)
_HIGH_HOURS: Final = (1, 4, 24, 168)
_CHANGE_HOURS: Final = (1, 4, 24)
_SWING_HOURS: Final = (4, 24, 168)
_MEAN_HOURS: Final = (24, 168)
_FLOW_HOURS: Final = (1, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What was known before each of `slots`; every array has shape (slots,) or (slots, signals)."""

    slots: Ints
    starts: Ints  # the same in seconds since the epoch
    idle: Floats  # GPUs, the last sample before; NaN before the first
    total: Floats  # GPUs, the same
    levels: Floats  # idle share of the pool, the one signal whose effect is not straight
    others: Floats  # shares of the pool, then the hour and the weekday

    def beside(self, columns: Floats) -> "Signals":
        """Return the same with more columns, shape (slots, columns)."""
        return replace(self, others=np.concatenate([self.others, columns], axis=1))


def signals(curve: Curve, slots: Ints) -> Signals:
    """Return what was known one step before each of `slots`, which lie in 1 … len(curve)."""
    per_hour = HOUR_SECONDS // curve.step_seconds
    total, idle = held(curve.total), held(curve.idle)
    known = slots - 1
    scale = np.maximum(total[known], 1.0)
    columns: list[Floats] = []
    columns += [idle - lowest(idle, h * per_hour) for h in _LOW_HOURS]
    columns += [-lowest(-idle, h * per_hour) - idle for h in _HIGH_HOURS]
    columns += [idle - before(idle, h * per_hour) for h in _CHANGE_HOURS]
    step = np.diff(idle, prepend=idle[:1])
    columns += [average(np.abs(step), h * per_hour) for h in _SWING_HOURS]
    columns += [average(idle, h * per_hour) - idle for h in _MEAN_HOURS]
    for flow in (np.maximum(-step, 0.0), np.maximum(step, 0.0)):
        columns += [average(flow, h * per_hour) * h * per_hour for h in _FLOW_HOURS]
    shares = np.stack([column[known] / scale for column in columns], axis=1)
    starts = curve.start + slots * curve.step_seconds
    angle = (starts % DAY_SECONDS) / DAY_SECONDS * 2 * np.pi
    weekend = ((starts // DAY_SECONDS + 3) % 7 >= 5).astype(np.float64)  # day 0 was a Thursday
    clock = np.stack(
        [np.sin(angle), np.cos(angle), np.sin(2 * angle), np.cos(2 * angle), weekend], axis=1
    )
    return Signals(
        slots=slots,
        starts=starts,
        idle=idle[known],
        total=total[known],
        levels=idle[known] / scale,
        others=np.concatenate([shares, clock], axis=1),
    )


def held(values: Floats) -> Floats:
    """Return `values` with each gap holding the last sample before it; NaN before the first."""
    last = np.where(np.isnan(values), 0, np.arange(len(values)))
    np.maximum.accumulate(last, out=last)
    return values[last]


def before(values: Floats, slots: int) -> Floats:
    """Return the values `slots` earlier; the first one where that is before the start."""
    return values[np.maximum(np.arange(len(values)) - slots, 0)]


def lowest(values: Floats, slots: int) -> Floats:
    """Return the least of the last `slots` values, itself included: log2(slots) passes."""
    out, width = values, 1
    while width < slots:
        shift = min(width, slots - width)
        out = np.minimum(out, before(out, shift))
        width += shift
    return out


def lowest_ahead(values: Floats, slots: int) -> Floats:
    """Return the least of each value and the next `slots` - 1; NaN where too few are left.

    A gap counts as what is known around it; a window of which less than half is known is NaN.
    """
    out = np.full(len(values) + 1, np.nan)
    if len(values) < slots:
        return out
    gaps = np.isnan(values)
    least = lowest(np.where(gaps, np.inf, values)[::-1], slots)[::-1]
    missing = np.concatenate([[0], np.cumsum(gaps)])
    whole = len(values) - slots + 1
    known = slots - (missing[slots:] - missing[:whole])
    out[:whole] = np.where(2 * known >= slots, least[:whole], np.nan)
    return out


def average(values: Floats, slots: int) -> Floats:
    """Return the mean of the last `slots` values, or of as many as there are."""
    filled = np.nan_to_num(values)
    sums = np.concatenate([[0.0], np.cumsum(filled)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - slots, 0)
    mean: Floats = (sums[end] - sums[start]) / (end - start)
    return mean
