"""How a pool stood at every instant, as steps: what there was, what ran, what waited."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sublet.planner.curve import Curve

Ints = NDArray[np.int64]
HOUR_S: Final = 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Step i holds from `times[i]` until `times[i + 1]`; arrays of counts have one step less."""

    times: Ints  # seconds since the epoch, rising; shape (steps + 1,)
    known: NDArray[np.bool_]  # False: nothing is known of this step, and it counts nowhere
    total: Ints  # GPUs that there were
    running: Ints  # GPUs that jobs held; may exceed `total` where the record says so
    pending: Ints  # GPUs that jobs waited for

    @property
    def seconds(self) -> Ints:
        return np.diff(self.times)

    @property
    def idle(self) -> Ints:
        """GPUs that nobody held; 0 where nothing is known."""
        return np.where(self.known, np.maximum(self.total - self.running, 0), 0)

    def gpu_seconds(self, counts: Ints) -> int:
        """Return the sum over the known steps of `counts` times their length."""
        return int(np.dot(np.where(self.known, counts, 0), self.seconds))

    def known_seconds(self) -> int:
        return int(np.dot(self.known, self.seconds))

    def split_at(self, instants: Ints) -> "Timeline":
        """Return the same with a step starting at each of `instants` that lies inside."""
        inside = instants[(instants > self.times[0]) & (instants < self.times[-1])]
        times = _in_order(self.times, inside)
        at = np.searchsorted(self.times, times[:-1], side="right") - 1
        return Timeline(
            times=times,
            known=self.known[at],
            total=self.total[at],
            running=self.running[at],
            pending=self.pending[at],
        )

    def within(self, start: int, end: int) -> "Timeline":
        """Return the part in [start, end), which must lie inside; unknown beyond its ends."""
        cut = self.split_at(np.array([start, end], dtype=np.int64))
        first, last = np.searchsorted(cut.times, [start, end])
        first, last = int(first), min(int(last), len(cut.times) - 1)
        return Timeline(
            times=cut.times[first : last + 1],
            known=cut.known[first:last],
            total=cut.total[first:last],
            running=cut.running[first:last],
            pending=cut.pending[first:last],
        )

    def to_curve(self, *, step_seconds: int) -> Curve:
        """Return the worst of each slot: fewest GPUs, most demand; NaN where a part is unknown."""
        first = int(self.times[0]) // step_seconds
        last = -(-int(self.times[-1]) // step_seconds)
        edges = np.arange(first, last + 1, dtype=np.int64) * step_seconds
        cut = self.split_at(edges)
        starts = np.searchsorted(cut.times[:-1], edges[:-1])
        starts[0] = 0
        whole = np.logical_and.reduceat(cut.known, starts)
        # At both ends the slots are known only in part.
        whole &= (edges[:-1] >= self.times[0]) & (edges[1:] <= self.times[-1])

        def worst(counts: Ints, reduce: np.ufunc) -> NDArray[np.float64]:
            return np.where(whole, reduce.reduceat(counts, starts), np.nan)

        return Curve(
            start=first * step_seconds,
            step_seconds=step_seconds,
            total=worst(cut.total, np.minimum),
            running=worst(cut.running, np.maximum),
            pending=worst(cut.pending, np.maximum),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Intervals [start, end) that each hold some GPUs. Shape (spans,)."""

    start: Ints
    end: Ints
    gpus: Ints

    def within(self, start: int, end: int) -> "Spans":
        first, last = np.maximum(self.start, start), np.minimum(self.end, end)
        left = first < last
        return Spans(start=first[left], end=last[left], gpus=self.gpus[left])

    def gpu_seconds(self) -> int:
        return int(np.dot(self.end - self.start, self.gpus))

    def levels(self) -> tuple[Ints, Ints]:
        """Return (times, GPUs held from each of them on); the last level is 0."""
        at = np.concatenate([self.start, self.end])
        change = np.concatenate([self.gpus, -self.gpus])
        order = np.argsort(at, kind="stable")
        at, level = at[order], np.cumsum(change[order])
        last = np.append(at[1:] != at[:-1], True) if len(at) else np.zeros(0, dtype=np.bool_)
        return at[last], level[last]


def from_spans(
    running: Spans, pending: Spans, *, start: int, end: int, gpus: int | None
) -> Timeline:
    """Return the timeline of a pool of which jobs are known.

    Args:
        running: when jobs held GPUs.
        pending: when they waited for them.
        start: from when on, in seconds since the epoch.
        end: until when.
        gpus: how many there were; None: as many as ever ran at once.
    """
    run_times, run_levels = running.within(start, end).levels()
    wait_times, wait_levels = pending.within(start, end).levels()
    edges = np.array([start, end], dtype=np.int64)
    times = _in_order(edges, run_times, wait_times)
    held = _at(times[:-1], run_times, run_levels)
    total = int(held.max(initial=0)) if gpus is None else gpus
    return Timeline(
        times=times,
        known=np.ones(len(held), dtype=np.bool_),
        total=np.full(len(held), total, dtype=np.int64),
        running=held,
        pending=_at(times[:-1], wait_times, wait_levels),
    )


def from_curves(curves: Sequence[Curve]) -> Timeline:
    """Join curves of one pool, in any order; where two tell of one time, the later argument does.

    Fractions of a GPU are rounded against us: what is in use up, what there is down.
    """
    starts = np.concatenate([c.start + c.step_seconds * np.arange(len(c)) for c in curves])
    ends = np.concatenate([c.start + c.step_seconds * np.arange(1, len(c) + 1) for c in curves])
    total = np.floor(np.concatenate([c.total for c in curves]))
    running = np.ceil(np.concatenate([c.running for c in curves]))
    pending = np.ceil(
        np.concatenate([np.zeros(len(c)) if c.pending is None else c.pending for c in curves])
    )
    known = ~(np.isnan(total) | np.isnan(running))
    times = _in_order(starts, ends)
    count = len(times) - 1
    told = np.full(count, -1, dtype=np.int64)
    # Slots of one curve do not overlap, and cover few steps each: later ones win.
    first, last = np.searchsorted(times, starts), np.searchsorted(times, ends)
    for reach in range(int((last - first).max())):
        covers = known & (first + reach < last)
        told[first[covers] + reach] = np.maximum(
            told[first[covers] + reach], np.flatnonzero(covers)
        )
    is_known = told >= 0

    def steps(values: NDArray[np.float64]) -> Ints:
        return np.where(is_known, np.nan_to_num(values)[told], 0).astype(np.int64)

    return Timeline(
        times=times, known=is_known, total=steps(total), running=steps(running),
        pending=steps(pending),
    )  # fmt: skip


def _in_order(*instants: Ints) -> Ints:
    """Return every instant once, rising.

    Not `np.unique`: since numpy 2.3 it hashes, which takes many times as long for instants.
    """
    merged = np.concatenate(instants)
    merged.sort(kind="stable")  # merges what is in order already
    return merged[np.append(True, merged[1:] != merged[:-1])] if len(merged) else merged


def _at(instants: Ints, times: Ints, levels: Ints) -> Ints:
    """Return the level at each instant: 0 before the first time."""
    if not len(times):
        return np.zeros(len(instants), dtype=np.int64)
    found = np.searchsorted(times, instants, side="right") - 1
    return np.where(found >= 0, levels[np.maximum(found, 0)], 0)
