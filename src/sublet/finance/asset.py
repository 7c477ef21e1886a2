"""A lot: GPUs, a building or other things that were bought together, and what they cost to keep.

The cost is what was paid, in whole nanos of USD: a lot in another currency is translated once, at
the rate of the day on which it was bought (IAS 21, historical cost).
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from fractions import Fraction
from typing import Final

from sublet.core.errors import Invalid
from sublet.core.money import Money

HOURS_A_YEAR: Final = 8_760  # of 365 days, as everybody quotes yields per gigawatt and year
_LONGEST_LIFE_MONTHS: Final = 1_200


class Kind(StrEnum):
    GPUS = "gpus"  # its GPU-hours are told from the records, by its pool
    BUILDING = "building"  # shared by the GPU lots of its site, by their power
    OTHER = "other"  # network, storage: shared like a building


class Method(StrEnum):
    STRAIGHT = "straight_line"  # the same in each month
    DECLINING = "declining"  # double the straight rate of what is left, until straight is more
    ECONOMIC = "economic"  # marked to a curve of what its like is worth


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What is left of a price, as a share of the first, by age or by date; with who says so.

    Sources contradict each other, so a curve has its provenance and its date beside it.
    """

    points: tuple[tuple[float, float], ...]  # months of age, share of the cost
    source: str
    dated: date

    def __post_init__(self) -> None:
        """Raises Invalid: no points, ages that do not rise, or shares that are negative."""
        ages = [age for age, _ in self.points]
        if not ages or ages != sorted(set(ages)) or ages[0] < 0:
            raise Invalid("a value curve needs points whose ages rise from 0 on")
        if any(not 0 <= share <= 10 for _, share in self.points):
            raise Invalid("a value curve's shares are 0 or more")
        if not self.source.strip():
            raise Invalid("a value curve needs its source: sources contradict each other")

    def at(self, months: float) -> float:
        """Return the share left at an age, on straight lines; the last one holds for ever."""
        ages = [age for age, _ in self.points]
        place = bisect_right(ages, months)
        if place == 0:
            return self.points[0][1]
        if place == len(ages):
            return self.points[-1][1]
        (low, before), (high, after) = self.points[place - 1], self.points[place]
        return before + (after - before) * (months - low) / (high - low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Debt:
    """A loan on a lot: level payments, a month after each month in service."""

    share: float  # of the cost, in 0 to 1
    rate: float  # a year, 0.1 is ten per cent
    months: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A lot's life or salvage is thought of anew: from this month on, never backwards."""

    lot: str
    effective_on: date
    life_months: int  # of the whole life, from the first month in service
    salvage: Money
    curve: Curve | None = None  # of an economic lot: holds from then on


@dataclass(frozen=True, slots=True, kw_only=True)
class Lot:
    name: str
    kind: Kind
    site: str
    pool: str  # of GPU lots: whose hours they give; "" of the others
    generation: str  # such as H100
    gpus: int  # 0 of buildings
    bought_on: date
    in_service_on: date  # depreciated from this month on
    cost: Money
    life_months: int
    salvage: Money  # what is left of the cost at the end of its life
    method: Method
    watts: float  # of one GPU at work, with its share of the server
    idle_watts: float  # of one that does nothing
    pue: float  # what the site draws for each watt of that
    usd_per_kwh: float
    usd_per_month: float  # staff, support, space: of the whole lot
    debt: Debt | None
    curve: Curve | None = None  # of an economic lot

    def __post_init__(self) -> None:
        """Raises Invalid: a figure is out of its bounds, with its name."""
        for wrong, why in (
            (not self.name, "a lot needs a name"),
            ((self.kind is Kind.GPUS) != (self.gpus > 0), "GPUs have a count, other lots have none"),
            ((self.kind is Kind.GPUS) != bool(self.pool), "GPUs have a pool, other lots have none"),
            (self.in_service_on < self.bought_on, "it is in service before it was bought"),
            (self.cost.nanos <= 0, "the cost must be more than nothing"),
            (not 0 < self.life_months <= _LONGEST_LIFE_MONTHS,
             f"a life is 1 to {_LONGEST_LIFE_MONTHS} months, not {self.life_months}"),
            (not 0 <= self.salvage.nanos <= self.cost.nanos,
             "the salvage value lies between nothing and the cost"),
            ((self.method is Method.ECONOMIC) != (self.curve is not None),
             "an economic lot needs a curve, and only such a one has one"),
            (self.curve is not None and self.salvage.nanos > 0,
             "what is left of an economic lot is for its curve to say: it has no salvage value"),
            (not 0 <= self.idle_watts <= self.watts, "idle watts lie between nothing and watts"),
            (not 1 <= self.pue <= 10, f"a PUE is 1 to 10, not {self.pue:g}"),
            (not 0 <= self.usd_per_kwh <= 1e3, "a tariff is not negative"),
            (not 0 <= self.usd_per_month <= 1e12, "what it costs a month is not negative"),
            (self.debt is not None
             and not (0 < self.debt.share <= 1 and 0 <= self.debt.rate <= 1
                      and 0 < self.debt.months <= _LONGEST_LIFE_MONTHS),
             "debt is a share in 0 to 1, a rate in 0 to 1 a year, and months"),
        ):  # fmt: skip
            if wrong:
                raise Invalid(f"lot {self.name or '?'}: {why}")

    @property
    def left(self) -> Money:
        """Return what it is thought to be worth at the end of its life."""
        if self.curve is None:
            return self.salvage
        return Money(round(self.cost.nanos * Fraction(self.curve.at(self.life_months))))

    @property
    def megawatts(self) -> float:
        """Return what the site draws for it at work."""
        return self.gpus * self.watts * self.pue / 1e6

    def power_usd(self, busy_hours: float, idle_hours: float) -> float:
        """Return what the power of so many GPU-hours costs."""
        watt_hours = busy_hours * self.watts + idle_hours * self.idle_watts
        return watt_hours / 1000 * self.pue * self.usd_per_kwh


def month_of(day: date) -> date:
    return day.replace(day=1)


def add_months(month: date, months: int) -> date:
    """Return the first day of the month so many months later."""
    count = month.year * 12 + month.month - 1 + months
    return date(count // 12, count % 12 + 1, 1)


def months_between(first: date, last: date) -> int:
    """Return how many months lie between the months of two days; negative when `last` is earlier."""
    return (last.year - first.year) * 12 + last.month - first.month


def check_changes(lots: dict[str, Lot], changes: list[Change]) -> None:
    """Hold every change to its lot.

    Raises:
        Invalid: of an unknown lot, before its service, twice on one day, or out of bounds.
    """
    seen: set[tuple[str, date]] = set()
    for change in changes:
        where = f"change of {change.lot} on {change.effective_on}"
        lot = lots.get(change.lot)
        if lot is None:
            raise Invalid(f"{where}: there is no such lot")
        if change.effective_on < lot.in_service_on:
            raise Invalid(f"{where}: it was not in service yet; a change is never backwards")
        if months_between(lot.in_service_on, change.effective_on) >= change.life_months:
            raise Invalid(f"{where}: a life of {change.life_months} months was over by then")
        if (key := (change.lot, month_of(change.effective_on))) in seen:
            raise Invalid(f"{where}: there is another one in that month")
        seen.add(key)
        if change.curve is not None and lot.curve is None:
            raise Invalid(f"{where}: only an economic lot has a curve")
        replace(lot, life_months=change.life_months, salvage=change.salvage)  # its bounds
