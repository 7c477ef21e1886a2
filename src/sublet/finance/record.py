"""What the records say of a period: GPU-hours by pool, day and use, and money by product."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Final

# Every GPU-second is of one of these; they add up to the fleet's.
INTERNAL: Final = "internal"
SOLD: Final = ("contract", "reserved", "on_demand", "interruptible")
MODEL: Final = "model"
IDLE: Final = "idle"
DOWN: Final = "down"
USES: Final = (INTERNAL, *SOLD, MODEL, IDLE, DOWN)
EARNING: Final = (*SOLD, MODEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """GPU-hours of one pool on one day, as the records have them."""

    pool: str
    day: date
    healthy: float
    used: Mapping[str, float]  # by use, without idle and down


@dataclass(frozen=True, slots=True, kw_only=True)
class Earned:
    """Revenue of one product in one pool, less what was credited, in nanos of USD."""

    pool: str  # "" where it is of no pool
    product: str
    nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A period `[start, end)`, in whole days of UTC."""

    start: date
    end: date
    hours: Sequence[Hours] = ()
    earned: Sequence[Earned] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)  # by model

    @property
    def days(self) -> int:
        return (self.end - self.start).days

    @property
    def revenue_nanos(self) -> int:
        return sum(one.nanos for one in self.earned)
