"""What one could have sold of a pool's idle GPUs, knowing how it went on.

Nobody knows that beforehand: these figures are a ceiling, not a forecast. Windows lie on a grid
of their own length that starts at midnight UTC, so those of one hour fit into those of four,
and those into a day's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from sublet.core.money import Money, Rate
from sublet.planner.idle.timeline import HOUR_S, Ints, Timeline

WINDOW_HOURS: Final = (24, 4, 1)
# Where one length of run stops and the next begins, in seconds; the last has no end.
RUN_EDGES_S: Final = (
    0, 300, 1_800, HOUR_S, 4 * HOUR_S, 12 * HOUR_S, 24 * HOUR_S, 72 * HOUR_S, 168 * HOUR_S,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a GPU brings, by what was promised: a firm window of so many hours, or nothing."""

    firm: Mapping[int, Rate]  # by the window's hours
    interruptible: Rate


DEFAULT_PRICES: Final = Prices(
    firm={
        24: Rate(nanos=1_000_000_000, per=HOUR_S),
        4: Rate(nanos=850_000_000, per=HOUR_S),
        1: Rate(nanos=700_000_000, per=HOUR_S),
    },
    interruptible=Rate(nanos=500_000_000, per=HOUR_S),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Runs of one range of lengths."""

    at_least_s: int
    below_s: int | None
    runs: int
    gpu_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sold:
    """What could have been sold one way."""

    gpu_seconds: int
    worth: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The dearest way to sell all that was idle: each GPU-second once."""

    firm: Mapping[int, Sold]  # by the window's hours
    interruptible: Sold

    @property
    def worth(self) -> Money:
        total = self.interruptible.worth
        for sold in self.firm.values():
            total = total + sold.worth
        return total


def idle_runs(timeline: Timeline) -> tuple[Ints, Ints]:
    """Return (length in seconds, GPUs) of every unbroken run of idle GPUs.

    As if jobs were always placed on the same GPUs first: the k-th idle GPU is idle as long as
    at least k are. Real placement scatters, so runs on single GPUs are shorter. A time of
    which nothing is known ends a run.
    """
    lengths: list[int] = []
    heights: list[int] = []
    stack: list[tuple[int, int]] = [(0, 0)]  # (level, since when), rising
    idle = timeline.idle
    changes = np.flatnonzero(np.diff(idle, prepend=-1))
    levels = [*idle[changes].tolist(), 0]
    instants = [*timeline.times[changes].tolist(), int(timeline.times[-1])]
    for level, now in zip(levels, instants, strict=True):
        since = now
        while stack[-1][0] > level:
            top, since = stack.pop()
            lengths.append(now - since)
            heights.append(top - max(level, stack[-1][0]))
        if stack[-1][0] < level:
            stack.append((level, since))
    return np.array(lengths, dtype=np.int64), np.array(heights, dtype=np.int64)


def by_length(lengths: Ints, gpus: Ints) -> list[Run]:
    """Gather runs by `RUN_EDGES_S`."""
    place = np.searchsorted(RUN_EDGES_S, lengths, side="right") - 1
    count = len(RUN_EDGES_S)
    runs = np.bincount(place, weights=gpus, minlength=count)
    seconds = [int(np.dot(lengths[place == i], gpus[place == i])) for i in range(count)]
    return [
        Run(at_least_s=low, below_s=high, runs=int(runs[i]), gpu_seconds=seconds[i])
        for i, (low, high) in enumerate(zip(RUN_EDGES_S, [*RUN_EDGES_S[1:], None], strict=True))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """The fewest idle GPUs of each hour that is wholly known; 0 of others."""

    first: int  # hours since the epoch
    least: Ints
    idle_gpu_seconds: int  # of all the time, whole hours or not

    def windows(self, hours: int) -> tuple[int, Ints]:
        """Return (the first hour of the first whole window, fewest idle GPUs of each window)."""
        ahead = -self.first % hours
        whole = max((len(self.least) - ahead) // hours, 0)
        least = self.least[ahead : ahead + whole * hours].reshape(whole, hours)
        return self.first + ahead, least.min(axis=1, initial=_ANY)

    def less(self, first: int, hours: int, sold: Ints) -> "Hours":
        """Return what is left where windows of `hours`, from the hour `first` on, were sold."""
        left = self.least.copy()
        left[first - self.first : first - self.first + len(sold) * hours] -= np.repeat(sold, hours)
        return replace(self, least=left)


_ANY: Final = np.iinfo(np.int64).max


def hours_of(timeline: Timeline) -> Hours:
    first, end = int(timeline.times[0]) // HOUR_S, -(-int(timeline.times[-1]) // HOUR_S)
    hours = np.arange(first, end + 1, dtype=np.int64) * HOUR_S
    cut = timeline.split_at(hours)
    idle = cut.idle
    starts = np.searchsorted(cut.times[:-1], hours[:-1])
    least = np.minimum.reduceat(idle, np.minimum(starts, len(idle) - 1))
    # The hours at both ends are known only in part.
    least[hours[:-1] < timeline.times[0]] = 0
    least[hours[1:] > timeline.times[-1]] = 0
    return Hours(first=first, least=least, idle_gpu_seconds=cut.gpu_seconds(idle))


def firm_gpu_seconds(of: Hours) -> dict[int, int]:
    """Return, by the window's hours, the GPU-seconds that windows of that length alone hold."""
    return {hours: int(of.windows(hours)[1].sum()) * hours * HOUR_S for hours in WINDOW_HOURS}


def best_mix(of: Hours, prices: Prices) -> Mix:
    """Sell every idle GPU-second once, the dearest way.

    The windows nest, so the longest whose price beats all that is shorter comes first. One
    that pays no more than what is shorter is not sold at all.
    """
    left = of
    firm: dict[int, Sold] = {}
    for hours in WINDOW_HOURS:
        rate = prices.firm[hours]
        shorter = [r for h, r in prices.firm.items() if h < hours] + [prices.interruptible]
        gpu_seconds = 0
        if all(rate.nanos * other.per > other.nanos * rate.per for other in shorter):
            first, sold = left.windows(hours)
            gpu_seconds = int(sold.sum()) * hours * HOUR_S
            left = left.less(first, hours, sold)
        firm[hours] = Sold(gpu_seconds=gpu_seconds, worth=rate.charge(gpu_seconds))
    rest = of.idle_gpu_seconds - sum(sold.gpu_seconds for sold in firm.values())
    return Mix(
        firm=firm,
        interruptible=Sold(gpu_seconds=rest, worth=prices.interruptible.charge(rest)),
    )
