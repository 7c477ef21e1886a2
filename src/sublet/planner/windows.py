"""The grid on which promises are made: windows of 1, 4 and 24 hours, aligned to the clock, UTC."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sublet.planner.curve import HOUR_SECONDS, Curve, Floats
from sublet.planner.signals import Ints, lowest_ahead

LENGTHS: Final = (1, 4, 24)  # hours


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The part of a curve that is scored: whole hours, from slot `first` up to slot `last`."""

    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Windows of one length within a span; arrays have shape (windows,)."""

    hours: int
    slots: Ints  # at which each starts
    kept: Floats  # GPUs that stayed idle throughout: what could have been promised


def days(curve: Curve, scored: Span) -> Ints:
    """Return which day each step of the scored part belongs to, from 0 on, shape (steps,)."""
    per_day = 24 * HOUR_SECONDS // curve.step_seconds
    at = curve.start // curve.step_seconds + np.arange(scored.first, scored.last)
    of_day: Ints = at // per_day
    return of_day - of_day[0] if len(of_day) else of_day


def summed(values: Floats, at: Ints, length: int) -> Floats:
    """Return the sums of `values` by their place `at`, shape (length,)."""
    sums: Floats = np.bincount(at, weights=values, minlength=length).astype(np.float64)
    return sums


def span(curve: Curve, start: int, end: int) -> Span:
    """Return the whole hours between two instants, in seconds since the epoch."""
    first = -(-max(start, curve.start + curve.step_seconds) // HOUR_SECONDS) * HOUR_SECONDS
    last = min(end, curve.end) // HOUR_SECONDS * HOUR_SECONDS
    return Span(first=curve.slot(first), last=max(curve.slot(last), curve.slot(first)))


def windows(curve: Curve, hours: int, scored: Span) -> Windows:
    """Return the windows of `hours` in `scored` of which at least half is known."""
    length = hours * HOUR_SECONDS // curve.step_seconds
    into = (curve.start // curve.step_seconds + scored.first) % length
    slots = np.arange(scored.first + (-into) % length, scored.last - length + 1, length)
    kept = lowest_ahead(curve.idle, length)[slots]
    known = ~np.isnan(kept)
    return Windows(hours=hours, slots=slots[known].astype(np.int64), kept=kept[known])
