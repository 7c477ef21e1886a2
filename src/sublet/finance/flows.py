"""A lot's cash, month by month: over a whole life at one period's pace, and as it was so far.

    at this pace  = - cost now, (revenue - cash cost) a month for all of its life, what is left of it
    so far        = - cost on the day it was bought, (revenue - cash cost) of each month since at its
                    end, and what the books say it is worth, as if it were sold for that

Of several together the flows are added up. Loans are left out: it is what the assets return, whoever
paid for them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import zip_longest
from typing import Final

from sublet.core.errors import Invalid
from sublet.core.money import NANOS
from sublet.finance.asset import Change, Kind, Lot
from sublet.finance.depreciation import schedule
from sublet.finance.record import Record
from sublet.finance.statement import NO_POOL, By, Line, group_of, statement
from sublet.finance.worth import irr, npv, xirr, xnpv

TOTAL: Final = "total"
_DAYS_A_MONTH: Final = 365 / 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """What flows are worth: at `discount` a year, and at which rate a year they are worth nothing."""

    npv: float
    rate: float | None  # None: there is none


def pace(
    lots: Sequence[Lot], changes: Sequence[Change], record: Record, *, by: By, discount: float
) -> dict[str, Return]:
    """Return {line: its return}, were every month of every life like this period.

    The total is under `TOTAL`. Lines without a cost have none.

    Raises:
        Invalid: the period is empty, or the discount no rate.
    """
    _check(discount)
    of = {lot.name: lot for lot in lots}
    flows: dict[str, list[float]] = defaultdict(list)
    for line in statement(lots, changes, record, by=By.LOT):
        lot = of.get(line.name)
        if lot is None or not line.cost:
            continue
        life = _life(line, lot, changes)
        for name in (group_of(lot, by), TOTAL):
            flows[name] = [a + b for a, b in zip_longest(flows[name], life, fillvalue=0.0)]
    monthly = (1 + discount) ** (1 / 12) - 1
    found = {}
    for name, values in flows.items():
        rate = irr(values)
        yearly = None if rate is None else (1 + rate) ** 12 - 1
        found[name] = Return(npv=npv(monthly, values), rate=yearly)
    return found


def _life(line: Line, lot: Lot, changes: Sequence[Change]) -> list[float]:
    cash = (line.total_revenue - line.cash_cost) * _DAYS_A_MONTH / line.days
    books = schedule(lot, changes)
    months = [cash] * len(books)
    months[-1] += books[-1].book.nanos / NANOS
    return [-line.cost, *months]


def so_far(
    lots: Sequence[Lot],
    changes: Sequence[Change],
    records: Sequence[Record],
    *,
    by: By,
    discount: float,
) -> dict[str, Return]:
    """Return {line: its return} from the day that it was bought to the end of the last record.

    Args:
        lots: of the register.
        changes: of their lives.
        records: a month each, or part of one, one after the other since the first lot was bought;
            one at least.
        by: what a line is.
        discount: a year.

    Raises:
        Invalid: the discount is no rate.
    """
    _check(discount)
    assert records
    by = By.LOT if by is By.PRODUCT else by  # then the total alone is anybody's
    flows: dict[str, list[tuple[date, float]]] = defaultdict(list)

    def put(name: str, day: date, usd: float) -> None:
        if usd and name != NO_POOL:
            flows[name].append((day, usd))
            flows[TOTAL].append((day, usd))

    end = records[-1].end
    for lot in lots:
        if lot.bought_on < end:
            for name, share in _bearers(lot, lots, by).items():
                put(name, lot.bought_on, -share * lot.cost.nanos / NANOS)
    for record in records:
        lines = statement(lots, changes, record, by=by)
        for line in lines:
            cash = line.total_revenue - line.cash_cost
            worth = line.book_end if record is records[-1] else 0.0
            put(line.name, record.end, cash + worth)
    return {
        name: Return(npv=xnpv(discount, values), rate=xirr(values))
        for name, values in flows.items()
    }


def _bearers(lot: Lot, lots: Iterable[Lot], by: By) -> Mapping[str, float]:
    """Return {line: the share of a lot's cost that it bears}: of a building by its site's power."""
    if lot.kind is Kind.GPUS:
        return {group_of(lot, by): 1.0}
    there = [one for one in lots if one.kind is Kind.GPUS and one.site == lot.site]
    power = sum(one.megawatts for one in there)
    if not power:
        return {group_of(lot, by): 1.0}
    shares: dict[str, float] = defaultdict(float)
    for one in there:
        shares[group_of(one, by)] += one.megawatts / power
    return shares


def months_of(first: date, end: date) -> list[tuple[date, date]]:
    """Return the months of `[first, end)`, the first and the last as far as they are in it."""
    out = []
    while first < end:
        after = date(first.year + first.month // 12, first.month % 12 + 1, 1)
        out.append((first, min(after, end)))
        first = after
    return out


def _check(discount: float) -> None:
    if not -0.99 <= discount <= 10:
        raise Invalid(f"discount: a rate a year lies in -0.99 to 10, not at {discount:g}")
