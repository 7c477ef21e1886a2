"""What lots earned and cost in a period, from the records: hours, revenue, cost, margin, return.

    cash cost     = power + what the lot costs a month
    book cost     = cash cost + depreciation
    per GPU-hour  = book cost / GPU-hours at work (internal, sold, model): idle is in it
    ROIC          = (revenue - book cost) / mean book value, a year
    added         = revenue - the power that sold GPUs draw beyond idle ones: against leaving them idle

A pool's hours and revenue go to its lots by their GPUs in service that day. Buildings and the like
are shared by the GPU lots of their site, by the power that these draw.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import StrEnum
from typing import Final

from sublet.core.errors import Invalid
from sublet.core.money import NANOS
from sublet.finance.asset import HOURS_A_YEAR, Change, Kind, Lot
from sublet.finance.depreciation import book_value, loss_between
from sublet.finance.record import DOWN, EARNING, IDLE, INTERNAL, MODEL, SOLD, USES, Record

_DAYS_A_MONTH: Final = 365 / 12
NO_POOL: Final = "(no lot)"


class By(StrEnum):
    LOT = "lot"
    POOL = "pool"
    SITE = "site"
    GENERATION = "generation"
    PRODUCT = "product"


@dataclass(slots=True, kw_only=True)
class Line:
    """One lot, or several together, over a period. USD, but for what says otherwise."""

    name: str
    hours: dict[str, float] = field(default_factory=lambda: dict.fromkeys(USES, 0.0))
    revenue: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by product
    power: float = 0.0
    upkeep: float = 0.0
    depreciation: float = 0.0
    book_start: float = 0.0
    book_end: float = 0.0
    cost: float = 0.0  # what was paid for it
    added: float = 0.0  # by selling, against leaving idle
    megawatts: float = 0.0  # that the site draws for it at work, over the period
    gpus: float = 0.0  # in service, over the period
    days: int = 0

    def add(self, other: "Line", share: float = 1.0) -> None:
        """Put so much of another line into this one."""
        for use, hours in other.hours.items():
            self.hours[use] += hours * share
        for product, usd in other.revenue.items():
            self.revenue[product] += usd * share
        for name in (
            "power", "upkeep", "depreciation", "book_start", "book_end", "cost", "added", "megawatts",
            "gpus",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name) * share)
        self.days = max(self.days, other.days)

    @property
    def total_revenue(self) -> float:
        return sum(self.revenue.values())

    @property
    def cash_cost(self) -> float:
        return self.power + self.upkeep

    @property
    def book_cost(self) -> float:
        return self.cash_cost + self.depreciation

    @property
    def worked_hours(self) -> float:
        return self.hours[INTERNAL] + self.earning_hours

    @property
    def earning_hours(self) -> float:
        return sum(self.hours[use] for use in EARNING)

    @property
    def cost_per_hour(self) -> float | None:
        """Return the book cost of a GPU-hour at work: what sat idle or was down is in it."""
        return self.book_cost / self.worked_hours if self.worked_hours else None

    @property
    def margin(self) -> float | None:
        """Return what is left of each dollar of revenue after the cash cost."""
        return 1 - self.cash_cost / self.total_revenue if self.total_revenue else None

    @property
    def roic(self) -> float | None:
        """Return the year's return on the mean book value, at this period's pace."""
        mean = (self.book_start + self.book_end) / 2
        years = self.days / 365
        return (self.total_revenue - self.book_cost) / mean / years if mean and years else None

    @property
    def payback_years(self) -> float | None:
        """Return after how long the cost is repaid, at this period's pace; None: never."""
        cash = self.total_revenue - self.cash_cost
        return (
            self.cost / (cash * 365 / self.days) if self.days and cash > 0 and self.cost else None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Yield:
    """What a megawatt brings in a year, and what it is made of: price x share sold x density."""

    usd_per_megawatt_year: float
    usd_per_gpu_hour: float  # of the hours that earned
    share_sold: float  # of all hours of the lots
    gpus_per_megawatt: float

    @property
    def usd_per_gigawatt_year(self) -> float:
        return 1000 * self.usd_per_megawatt_year


def yield_of(line: Line) -> Yield | None:
    """Return what the power that a line stands for brings; None of what draws or earns nothing."""
    hours = sum(line.hours.values())
    if not (line.megawatts and hours and line.earning_hours):
        return None
    price = line.total_revenue / line.earning_hours
    share = line.earning_hours / hours
    density = line.gpus / line.megawatts
    return Yield(
        usd_per_megawatt_year=price * share * density * HOURS_A_YEAR,
        usd_per_gpu_hour=price,
        share_sold=share,
        gpus_per_megawatt=density,
    )


def statement(
    lots: Sequence[Lot], changes: Sequence[Change], record: Record, *, by: By
) -> list[Line]:
    """Work out a line a lot, pool, site, generation or product, in the order of their names.

    What the records have of pools without a lot is in a line of its own, so that lines add up to
    the records. By product, costs go to products by their hours at work.

    Raises:
        Invalid: the period is empty.
    """
    if record.days <= 0:
        raise Invalid(
            f"a statement's period ends after it starts, not {record.start} to {record.end}"
        )
    lines = _lines(lots, changes, record)
    if by is By.PRODUCT:
        return _products(lines.values())
    of = {lot.name: group_of(lot, by) for lot in lots}
    grouped: dict[str, Line] = {}
    for name, line in lines.items():
        group = of.get(name, NO_POOL)
        grouped.setdefault(group, Line(name=group)).add(line)
    return [grouped[name] for name in sorted(grouped)]


def group_of(lot: Lot, by: By) -> str:
    """Return the name of the line that a lot is in."""
    match by:
        case By.POOL:
            return lot.pool
        case By.SITE:
            return lot.site
        case By.GENERATION:
            return lot.generation
        case By.LOT | By.PRODUCT:  # products are cut from the lots' lines
            return lot.name


def total(lines: Iterable[Line]) -> Line:
    out = Line(name="total")
    for line in lines:
        out.add(line)
    return out


def _lines(lots: Sequence[Lot], changes: Sequence[Change], record: Record) -> dict[str, Line]:
    """Return a line a GPU lot, with what buildings cost in it, and one of what has no lot."""
    start, end = record.start, record.end
    lines = {lot.name: _costs(lot, changes, start, end) for lot in lots}
    gpus = [lot for lot in lots if lot.kind is Kind.GPUS]
    days_of: dict[str, dict[date, float]] = {lot.name: {} for lot in gpus}
    rest = Line(name=NO_POOL, days=record.days)
    _share_hours(gpus, record, lines, days_of, rest)
    _share_revenue(gpus, record, lines, rest)
    for lot in gpus:
        line = lines[lot.name]
        worked, idle = line.worked_hours, line.hours[IDLE]
        line.power = lot.power_usd(worked, idle)
        sold = line.earning_hours
        line.added = line.total_revenue - lot.power_usd(sold, 0) + lot.power_usd(0, sold)
    for lot in lots:
        if lot.kind is not Kind.GPUS:
            _share_building(lot, lines, gpus)
    if any(rest.hours.values()) or rest.total_revenue:
        rest.added = rest.total_revenue
        lines[NO_POOL] = rest
    return lines


def _costs(lot: Lot, changes: Sequence[Change], start: date, end: date) -> Line:
    days = (end - start).days
    served = max((end - max(lot.in_service_on, start)).days, 0)
    return Line(
        name=lot.name,
        upkeep=lot.usd_per_month * served / _DAYS_A_MONTH,
        depreciation=loss_between(lot, changes, start, end).nanos / NANOS,
        book_start=book_value(lot, changes, max(start, lot.bought_on)).nanos / NANOS,
        book_end=book_value(lot, changes, end).nanos / NANOS,
        cost=lot.cost.nanos / NANOS if lot.bought_on < end else 0.0,
        megawatts=lot.megawatts * served / days,
        gpus=lot.gpus * served / days,
        days=days,
    )


def _share_hours(
    lots: Sequence[Lot],
    record: Record,
    lines: Mapping[str, Line],
    days_of: Mapping[str, dict[date, float]],
    rest: Line,
) -> None:
    """Give every GPU-hour of a pool to its lots, by their GPUs in service on its day."""
    seen = {(one.pool, one.day): one for one in record.hours}
    pools = {lot.pool for lot in lots}
    for one in record.hours:
        if one.pool not in pools:
            _fill(rest.hours, one.used, one.healthy, 0.0, 1.0)
    for number in range(record.days):
        day = record.start + timedelta(days=number)
        for pool in pools:
            serving = [lot for lot in lots if lot.pool == pool and lot.in_service_on <= day]
            owned = 24.0 * sum(lot.gpus for lot in serving)
            found = seen.get((pool, day))
            healthy = 0.0 if found is None else found.healthy
            used = {} if found is None else found.used
            if not serving:
                _fill(rest.hours, used, healthy, 0.0, 1.0)
                continue
            # More healthy than bought: the rest has no lot.
            owned_share = min(owned / healthy, 1.0) if healthy else 1.0
            if owned_share < 1.0:
                _fill(rest.hours, used, healthy, 0.0, 1 - owned_share)
            for lot in serving:
                share = 24.0 * lot.gpus / owned
                days_of[lot.name][day] = share
                _fill(
                    lines[lot.name].hours, used, healthy,
                    max(owned - healthy, 0.0), share, owned_share,
                )  # fmt: skip


def _fill(
    hours: dict[str, float],
    used: Mapping[str, float],
    healthy: float,
    down: float,
    share: float,
    owned: float = 1.0,
) -> None:
    for use, amount in used.items():
        hours[use] += amount * share * owned
    hours[IDLE] += max(healthy - sum(used.values()), 0.0) * share * owned
    hours[DOWN] += down * share


def _share_revenue(
    lots: Sequence[Lot], record: Record, lines: Mapping[str, Line], rest: Line
) -> None:
    """Give a pool's revenue of a product to its lots by their hours of that product.

    Where nothing ran (a reserved window unused, say), by their GPUs.
    """
    for one in record.earned:
        usd = one.nanos / NANOS
        of = [lot for lot in lots if lot.pool == one.pool and lines[lot.name].gpus]
        weights = [lines[lot.name].hours.get(one.product, 0.0) for lot in of]
        if not sum(weights):
            weights = [lines[lot.name].gpus for lot in of]
        if not of:
            rest.revenue[one.product] += usd
            continue
        for lot, weight in zip(of, weights, strict=True):
            lines[lot.name].revenue[one.product] += usd * weight / sum(weights)


def _share_building(lot: Lot, lines: dict[str, Line], gpus: Sequence[Lot]) -> None:
    """Put a building's cost into the GPU lots of its site; alone at its site it stays a line."""
    at_site = [other for other in gpus if other.site == lot.site and lines[other.name].megawatts]
    power = sum(lines[other.name].megawatts for other in at_site)
    if not power:
        return
    building = lines.pop(lot.name)
    building.days = 0
    for other in at_site:
        lines[other.name].add(building, lines[other.name].megawatts / power)


def _products(lines: Iterable[Line]) -> list[Line]:
    """Cut the whole into products, and internal use: costs go by hours at work."""
    whole = total(lines)
    out = []
    named = [INTERNAL, *SOLD, MODEL]
    named += sorted(set(whole.revenue) - set(named))
    for name in named:
        hours = whole.hours.get(name, 0.0)
        usd = whole.revenue.get(name, 0.0)
        if not hours and not usd:
            continue
        line = Line(name=name)
        share = hours / whole.worked_hours if whole.worked_hours else 0.0
        costs = Line(name=name)
        costs.add(whole, share)
        for part in ("power", "upkeep", "depreciation", "book_start", "book_end", "cost"):
            setattr(line, part, getattr(costs, part))
        line.hours[name if name in USES else IDLE] = hours
        line.revenue[name] = usd
        earning = whole.earning_hours
        extra = whole.total_revenue - whole.added  # the power beyond idle, of all that was sold
        line.added = usd - (extra * hours / earning if name in EARNING and earning else 0.0)
        line.added = 0.0 if name == INTERNAL else line.added
        line.days = whole.days
        out.append(line)
    return out


def cost_per_million_tokens(model_cost: float, tokens: int) -> float | None:
    """Return USD per million tokens; None where none were made."""
    return model_cost / tokens * 1e6 if tokens else None
