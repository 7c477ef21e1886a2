"""What lots lose in value: exact sums, prospective changes, and the market's view."""

from datetime import date
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.finance.lots import a_lot, usd

from sublet.core.errors import Invalid
from sublet.core.money import Money
from sublet.finance.asset import Change, Curve, Lot, Method, add_months, check_changes
from sublet.finance.depreciation import book_value, loss_between, schedule


@st.composite
def lots(draw: st.DrawFn) -> Lot:
    cost = draw(st.integers(1, 10**18))
    return a_lot(
        cost=Money(cost),
        salvage=Money(draw(st.integers(0, cost))),
        life_months=draw(st.integers(1, 200)),
        method=draw(st.sampled_from([Method.STRAIGHT, Method.DECLINING])),
        in_service_on=draw(st.dates(date(2026, 1, 1), date(2030, 1, 1))),
    )


@given(lots())
def test_a_whole_life_writes_off_the_cost_less_the_salvage_to_the_nano(lot: Lot) -> None:
    rows = schedule(lot)
    assert len(rows) == lot.life_months
    assert sum(row.loss.nanos for row in rows) == lot.cost.nanos - lot.salvage.nanos
    assert rows[-1].book == lot.salvage
    assert all(row.loss.nanos >= 0 for row in rows)


@given(lots(), st.data())
def test_a_change_of_life_leaves_past_months_as_they_are(lot: Lot, data: st.DataObject) -> None:
    age = data.draw(st.integers(0, lot.life_months - 1))
    life = data.draw(st.integers(age + 1, 250))
    salvage = Money(data.draw(st.integers(0, lot.salvage.nanos)))
    when = add_months(lot.in_service_on.replace(day=1), age)
    change = Change(
        lot=lot.name, effective_on=max(when, lot.in_service_on), life_months=life, salvage=salvage
    )
    check_changes({lot.name: lot}, [change])
    before, after = schedule(lot), schedule(lot, [change])
    assert after[:age] == before[:age], "the past stands"
    assert len(after) == life
    assert sum(row.loss.nanos for row in after) == lot.cost.nanos - salvage.nanos


@given(lots(), st.lists(st.dates(date(2025, 6, 1), date(2046, 1, 1)), min_size=1, max_size=5))
def test_parts_of_a_life_add_up_to_it(lot: Lot, cuts: list[date]) -> None:
    edges = [date(2025, 1, 1), *sorted(set(cuts)), date(2060, 1, 1)]
    parts = sum(loss_between(lot, [], a, b).nanos for a, b in pairwise(edges))
    assert parts == lot.cost.nanos - lot.salvage.nanos


def test_a_straight_line_is_the_same_each_month() -> None:
    lot = a_lot(cost=usd(6_000), salvage=usd(0), life_months=60)
    assert {row.loss for row in schedule(lot)} == {usd(100)}
    assert book_value(lot, [], date(2026, 1, 31)) == usd(6_000)
    assert book_value(lot, [], date(2026, 2, 1)) == usd(5_900)
    assert book_value(lot, [], date(2025, 12, 31)) == usd(0)
    assert loss_between(lot, [], date(2026, 4, 1), date(2026, 4, 16)) == usd(50)


def test_a_declining_balance_loses_most_at_first_and_is_straight_in_the_end() -> None:
    rows = schedule(a_lot(cost=usd(1_000), salvage=usd(0), life_months=10, method=Method.DECLINING))
    assert [float(Fraction(row.loss.nanos, 10**9)) for row in rows[:3]] == [200, 160, 128]
    assert rows[-1].loss == rows[-2].loss
    assert all(a.loss.nanos >= b.loss.nanos for a, b in pairwise(rows))


def test_a_longer_life_from_the_third_year_on() -> None:
    """As in Meta's and Amazon's accounts: what is left is spread over the longer rest."""
    lot = a_lot(cost=usd(4_800), salvage=usd(0), life_months=48)
    change = Change(lot="one", effective_on=date(2028, 1, 1), life_months=72, salvage=usd(0))
    rows = schedule(lot, [change])
    assert rows[23].book == usd(2_400)
    assert {row.loss for row in rows[:24]} == {usd(100)}
    assert {row.loss for row in rows[24:]} == {usd(50)}


BROKERS = Curve(
    points=((0, 1.0), (12, 0.6), (24, 0.4)), source="a broker's list", dated=date(2026, 11, 1)
)


def test_the_market_marks_an_economic_lot_by_a_curve_with_its_source() -> None:
    lot = economic(cost=usd(1_000), life_months=36)
    rows = schedule(lot)
    assert [row.book for row in (rows[11], rows[17], rows[23], rows[35])] == [
        usd(600), usd(500), usd(400), usd(400),
    ]  # fmt: skip
    assert book_value(lot, [], date(2027, 1, 1)) == usd(600)
    assert sum(row.loss.nanos for row in rows) == lot.cost.nanos - lot.left.nanos
    assert lot.left == usd(400)
    for points, source, why in (
        ((), "x", "points"), (((5, 1.0), (3, 0.5)), "x", "rise"), (((0, -1.0),), "x", "0 or more"),
        (((0, 1.0),), " ", "source"),
    ):  # fmt: skip
        with pytest.raises(Invalid, match=why):
            Curve(points=points, source=source, dated=date(2026, 1, 1))
    with pytest.raises(Invalid, match="needs a curve"):
        economic(curve=None)
    with pytest.raises(Invalid, match="no salvage"):
        economic(salvage=usd(1))


def economic(**changes: Any) -> Lot:
    given: dict[str, Any] = {"method": Method.ECONOMIC, "curve": BROKERS, "salvage": usd(0)}
    return a_lot(**given | changes)


SHARES = st.lists(st.floats(0, 2, allow_subnormal=False), min_size=1, max_size=6)


@given(SHARES, SHARES, st.integers(0, 23))
def test_another_curve_leaves_past_months_as_they_are_and_marks_from_its_month_on(
    before: list[float], later: list[float], age: int
) -> None:
    old, new = (
        Curve(points=tuple((6.0 * n, share) for n, share in enumerate(shares)), source="an index",
              dated=date(2026, 1, 1))
        for shares in (before, later)
    )  # fmt: skip
    lot = economic(curve=old, life_months=24)
    when = add_months(lot.in_service_on, age)
    change = Change(lot="one", effective_on=when, life_months=24, salvage=usd(0), curve=new)
    check_changes({"one": lot}, [change])
    rows, told = schedule(lot), schedule(lot, [change])
    assert told[:age] == rows[:age], "the past stands"
    for place in range(age, 24):
        marked = lot.cost.nanos * Fraction(new.at(place + 1))
        assert abs(told[place].book.nanos - marked) <= 1
    assert sum(row.loss.nanos for row in told) == lot.cost.nanos - told[-1].book.nanos
    parts = [date(2025, 1, 1), date(2026, 3, 9), when, date(2027, 5, 17), date(2040, 1, 1)]
    cut = sum(loss_between(lot, [change], a, b).nanos for a, b in pairwise(sorted(parts)))
    assert cut == lot.cost.nanos - told[-1].book.nanos, "gains and losses add up, however cut"


def test_only_an_economic_lot_is_given_another_curve() -> None:
    change = Change(
        lot="one", effective_on=date(2027, 1, 1), life_months=60, salvage=usd(0), curve=BROKERS
    )
    with pytest.raises(Invalid, match="only an economic lot has a curve"):
        check_changes({"one": a_lot()}, [change])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (Change(lot="two", effective_on=date(2027, 1, 1), life_months=60, salvage=usd(0)), "no such"),
        (Change(lot="one", effective_on=date(2025, 1, 1), life_months=60, salvage=usd(0)), "backwards"),
        (Change(lot="one", effective_on=date(2028, 1, 1), life_months=24, salvage=usd(0)), "over by"),
        (Change(lot="one", effective_on=date(2027, 1, 1), life_months=60, salvage=usd(9e9)), "salvage"),
    ],
)  # fmt: skip
def test_a_change_that_does_not_fit_its_lot_is_refused(change: Change, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        check_changes({"one": a_lot()}, [change])
