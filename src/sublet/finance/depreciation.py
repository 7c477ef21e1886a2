"""What a lot loses in value: by the books, month by month and to the nano, and by the market.

Straight-line:  (book value - salvage) / months left, the same each month.
Declining:      2 / life of the book value a month, never below salvage, until straight is more.
Economic:       cost x (curve now - curve then): what a market says that its like is worth.

The months' sums are exact: what was not written off by rounding comes in a later month.
A change of life or salvage is prospective (IAS 8): past months stand, and what is left is spread anew.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from sublet.core.errors import Invalid
from sublet.core.money import Money
from sublet.finance.asset import Change, Lot, Method, add_months, month_of, months_between


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
        a row a month; the losses add up to the cost less the last salvage value, to the nano.
    """
    pending = sorted((c for c in changes if c.lot == lot.name), key=lambda c: c.effective_on)
    first = month_of(lot.in_service_on)
    book, life, salvage = lot.cost.nanos, lot.life_months, lot.salvage.nanos
    rows: list[Month] = []
    age = 0
    while age < life:
        month = add_months(first, age)
        while pending and month_of(pending[0].effective_on) <= month:
            change = pending.pop(0)
            life, salvage = change.life_months, change.salvage.nanos
        left = life - age
        straight = (book - salvage) // left
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


def market_value(lot: Lot, curve: Curve, at: date) -> Money:
    """Mark a lot to a price curve: what its like would bring on the day `at`."""
    if at < lot.bought_on:
        return Money(0)
    months = months_between(lot.bought_on, at) + (at.day - lot.bought_on.day) / 30.4375
    return Money(round(lot.cost.nanos * curve.at(max(months, 0.0))))
