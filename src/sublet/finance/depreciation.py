"""What a lot loses in value: by the books, month by month and to the nano, and by the market.

Straight-line:  (book value - salvage) / months left, the same each month.
Declining:      2 / life of the book value a month, never below salvage, until straight is more.
Economic:       cost x (curve then - curve now): what a market says that its like is worth. A
                month in which it rises is a gain, so this is for managing, not for IAS 16's cost model.

The months' sums are exact: what was not written off by rounding comes in a later month.
A change of life or salvage is prospective (IAS 8): past months stand, and what is left is spread anew.
So is another curve: what it says otherwise is lost, or gained, in the month from which it holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from fractions import Fraction

from sublet.core.money import Money
from sublet.finance.asset import (
    Change,
    Lot,
    Method,
    add_months,
    month_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """One month of one lot."""

    month: date  # its first day
    loss: Money  # written off in it
    book: Money  # what is left at its end


def schedule(lot: Lot, changes: Sequence[Change] = ()) -> list[Month]:
    """Write a lot off, from its first month in service to the end of its life.

    Args:
        lot: what it cost, and how long it is thought to live.
        changes: its own, in any order.

    Returns:
        a row a month; the losses add up to the cost less the last salvage value, to the nano, and
        of an economic lot to the cost less what its curve says at the end.
    """
    pending = sorted((c for c in changes if c.lot == lot.name), key=lambda c: c.effective_on)
    first = month_of(lot.in_service_on)
    book, life, salvage = lot.cost.nanos, lot.life_months, lot.salvage.nanos
    curve = lot.curve
    rows: list[Month] = []
    age = 0
    while age < life:
        month = add_months(first, age)
        while pending and month_of(pending[0].effective_on) <= month:
            change = pending.pop(0)
            life, salvage = change.life_months, change.salvage.nanos
            curve = change.curve or curve
        if lot.method is Method.ECONOMIC:
            assert curve is not None, lot.name
            loss = book - round(lot.cost.nanos * Fraction(curve.at(age + 1)))
        else:
            straight = (book - salvage) // (life - age)
            loss = straight
            if lot.method is Method.DECLINING:
                loss = max(straight, min(2 * book // life, book - salvage))
            loss = max(loss, 0)  # thought to be worth more than the books say: they are not raised
        book -= loss
        rows.append(Month(month=month, loss=Money(loss), book=Money(book)))
        age += 1
    return rows


def book_value(lot: Lot, changes: Sequence[Change], at: date) -> Money:
    """Return what the books say at the beginning of the day `at`, in whole months."""
    value = lot.cost if at >= lot.bought_on else Money(0)
    for row in schedule(lot, changes):
        if add_months(row.month, 1) > at:
            break
        value = row.book
    return value


def loss_between(lot: Lot, changes: Sequence[Change], start: date, end: date) -> Money:
    """Return what is written off in `[start, end)`: whole months whole, parts by their days."""
    nanos = 0
    for row in schedule(lot, changes):
        after = add_months(row.month, 1)
        days = (min(end, after) - max(start, row.month)).days
        if days > 0:
            # From the month's start to a day, less the same to another: parts add up to the whole.
            whole = (after - row.month).days
            upto = (min(end, after) - row.month).days
            since = max((start - row.month).days, 0)
            nanos += row.loss.nanos * upto // whole - row.loss.nanos * since // whole
    return Money(nanos)
