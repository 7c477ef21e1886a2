"""Capacity that is still to come: GPUs of a pool from a date on, as the operator declares it.

It is no GPU that anybody leases; only contracts are signed against it. What should have come counts
no more: it is among the pool's GPUs by then, or it is late.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sublet.core.errors import Invalid

MOST: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Coming:
    """So many GPUs of a pool, from then on."""

    id: UUID
    pool: str
    name: str
    gpus: int  # 0: it is there, or does not come
    ready_at: datetime

    def check(self, *, now: datetime) -> None:
        """Raises Invalid: it cannot be declared as it is."""
        if not self.name:
            raise Invalid("name: say what is coming")
        if not 0 <= self.gpus <= MOST:
            raise Invalid(f"gpus must lie in 0…{MOST}, not {self.gpus}")
        if self.gpus and self.ready_at <= now:
            raise Invalid(
                f"ready_at: {self.ready_at:%Y-%m-%d %H:%M:%S} UTC is over; what is there already is"
                " counted as soon as the cluster shows it"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a pool has, and what is to come of it."""

    gpus: int  # now
    coming: Sequence[Coming] = ()

    def at(self, at: datetime) -> int:
        """Return how many GPUs it will have then."""
        return self.gpus + self.more_by(at)

    def more_by(self, at: datetime) -> int:
        return sum(one.gpus for one in self.coming if one.ready_at <= at)

    def pieces(self, start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
        """Return [start, end) in pieces in which nothing more comes."""
        within = {one.ready_at for one in self.coming if start < one.ready_at < end}
        edges = [start, *sorted(within), end]
        return list(itertools.pairwise(edges))


def counted(gpus: int, coming: Iterable[Coming], *, now: datetime) -> Capacity:
    """Return a pool's capacity with what is still to come; what is late counts no more."""
    return Capacity(gpus=gpus, coming=tuple(one for one in coming if one.ready_at > now))
