"""What the same hours of earlier days did: how far idle GPUs sank in windows that started then.

Jobs that come every morning, or every Monday, show in no level and no drift. The mean falls of
the last seven days, of the last twenty-eight, and of the last four such weekdays do show them.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sublet.planner.curve import HOUR_SECONDS, Floats
from sublet.planner.signals import Ints

_HOURS_A_DAY: Final = 24
_DAYS: Final = 28
_DAYS_A_WEEK: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Seasons:
    """The falls of windows of `hours`, one for each whole hour from `start` on."""

    hours: int
    start: int  # seconds since the epoch
    falls: Floats  # shares of the pool; NaN: not known, or not over

    def columns(self, starts: Ints) -> Floats:
        """Return three mean falls, shape (starts, 3); nothing where none is known.

        Only windows are looked at that ended before each of `starts`, in seconds since the epoch.
        """
        first = -(-self.hours // _HOURS_A_DAY)
        days = np.arange(first, first + _DAYS)
        rows = (starts - self.start)[:, None] // HOUR_SECONDS - days * _HOURS_A_DAY
        there = (rows >= 0) & (rows < len(self.falls))
        falls = np.full(rows.shape, np.nan)
        falls[there] = self.falls[rows[there]]
        known = ~np.isnan(falls)
        falls[~known] = 0.0
        parts = (slice(0, _DAYS_A_WEEK), slice(None), days % _DAYS_A_WEEK == 0)
        means = [
            falls[:, part].sum(axis=1) / np.maximum(known[:, part].sum(axis=1), 1) for part in parts
        ]
        return np.stack(means, axis=1)

    def recent(self) -> "Seasons":
        """Return the end of it, as far as anybody looks back who asks later."""
        keep = (_DAYS + -(-self.hours // _HOURS_A_DAY)) * _HOURS_A_DAY
        cut = max(len(self.falls) - keep, 0)
        return Seasons(
            hours=self.hours, start=self.start + cut * HOUR_SECONDS, falls=self.falls[cut:]
        )
