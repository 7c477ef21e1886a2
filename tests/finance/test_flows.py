"""What lots return: at a period's pace and since they were bought, beside two libraries."""

from datetime import date, timedelta
from typing import Any

import numpy_financial
import pytest
import pyxirr
from hypothesis import given
from hypothesis import strategies as st
from tests.finance.lots import a_building, a_lot, usd
from tests.finance.test_statement import month

from sublet.core.errors import Invalid
from sublet.core.money import NANOS
from sublet.finance.asset import Change, Curve, Lot, Method
from sublet.finance.depreciation import schedule
from sublet.finance.flows import TOTAL, months_of, pace, so_far
from sublet.finance.record import Earned, Hours, Record
from sublet.finance.statement import By, statement

BOUGHT = date(2026, 1, 1)
CURVE = Curve(points=((0, 1.0), (60, 0.1)), source="a broker's list", dated=date(2026, 11, 1))


def record(start: date, end: date, earned: dict[str, float]) -> Record:
    days = [start + timedelta(days=n) for n in range((end - start).days)]
    return Record(
        start=start,
        end=end,
        hours=[
            Hours(pool=pool, day=day, healthy=2400.0, used={"on_demand": 1200.0})
            for pool in earned for day in days
        ],
        earned=[
            Earned(pool=pool, product="on_demand", nanos=round(amount * NANOS))
            for pool, amount in earned.items()
        ],
    )  # fmt: skip


@pytest.mark.parametrize(
    "lot",
    [
        a_lot(cost=usd(3_000_000)),
        a_lot(cost=usd(3_000_000), method=Method.DECLINING),
        a_lot(cost=usd(3_000_000), salvage=usd(0), method=Method.ECONOMIC, curve=CURVE),
    ],
)
def test_the_return_at_a_pace_is_that_of_two_libraries(lot: Lot) -> None:
    june = month(on_demand=1200.0, earned=90_000.0)
    found = pace([lot], [], june, by=By.POOL, discount=0.12)
    assert set(found) == {"h100", TOTAL}
    (line,) = statement([lot], [], june, by=By.LOT)
    cash = (line.total_revenue - line.cash_cost) / 30 * 365 / 12
    flows = [-3_000_000.0, *[cash] * 59, cash + lot.left.nanos / NANOS]
    monthly = numpy_financial.irr(flows)
    assert found["h100"].rate == pytest.approx((1 + monthly) ** 12 - 1, abs=1e-9)
    assert found["h100"].rate == pytest.approx((1 + pyxirr.irr(flows)) ** 12 - 1, abs=1e-9)
    rate = 1.12 ** (1 / 12) - 1
    assert found[TOTAL].npv == pytest.approx(numpy_financial.npv(rate, flows), abs=1e-3)
    assert found[TOTAL].npv == pytest.approx(pyxirr.npv(rate, flows), abs=1e-3)


def test_a_change_of_life_is_in_the_return_at_a_pace() -> None:
    lot = a_lot(cost=usd(3_000_000))
    longer = Change(lot="one", effective_on=date(2027, 1, 1), life_months=72, salvage=usd(0))
    june = month(on_demand=1200.0, earned=90_000.0)
    short = pace([lot], [], june, by=By.LOT, discount=0.1)["one"]
    long = pace([lot], [longer], june, by=By.LOT, discount=0.1)["one"]
    assert short.rate is not None and long.rate is not None and long.rate > short.rate


@given(
    st.lists(st.tuples(st.floats(0, 3e5), st.floats(0, 3e5)), min_size=1, max_size=14),
    st.floats(-0.2, 0.5),
)
def test_what_was_returned_so_far_is_that_of_two_libraries(
    earned: list[tuple[float, float]], discount: float
) -> None:
    lots = [
        a_lot(name="one", cost=usd(900_000), salvage=usd(0)),
        a_lot(name="two", pool="a100", cost=usd(400_000), salvage=usd(0)),
        a_building(cost=usd(240_000)),
    ]
    spans = months_of(BOUGHT, date(2027, 3, 1))[: len(earned)]
    records = [
        record(start, end, {"h100": one, "a100": two})
        for (start, end), (one, two) in zip(spans, earned, strict=True)
    ]
    found = so_far(lots, [], records, by=By.POOL, discount=discount)
    end = records[-1].end
    for pool, cost in (
        ("h100", 900_000 + 120_000),
        ("a100", 400_000 + 120_000),
        (TOTAL, 1_540_000),
    ):
        flows: list[tuple[date, float]] = [(BOUGHT, -float(cost))]
        lines: list[Any] = []
        for one in records:
            lines = [
                line for line in statement(lots, [], one, by=By.POOL) if pool in {line.name, TOTAL}
            ]
            flows.append((one.end, sum(line.total_revenue - line.cash_cost for line in lines)))
        flows.append((end, sum(line.book_end for line in lines)))
        days, amounts = [day for day, _ in flows], [amount for _, amount in flows]
        theirs = pyxirr.xirr(days, amounts)
        ours = found[pool]
        if theirs is not None and ours.rate is not None:
            assert ours.rate == pytest.approx(theirs, abs=1e-6)
        assert ours.npv == pytest.approx(pyxirr.xnpv(discount, days, amounts), abs=0.01)
    apart = found["h100"].npv + found["a100"].npv
    assert found[TOTAL].npv == pytest.approx(apart, abs=0.01), "lines add up"


def test_months_are_cut_where_the_period_is() -> None:
    assert months_of(date(2026, 11, 20), date(2027, 1, 5)) == [
        (date(2026, 11, 20), date(2026, 12, 1)),
        (date(2026, 12, 1), date(2027, 1, 1)),
        (date(2027, 1, 1), date(2027, 1, 5)),
    ]
    assert months_of(BOUGHT, BOUGHT) == []


def test_a_discount_that_is_no_rate_is_refused() -> None:
    with pytest.raises(Invalid, match="discount"):
        pace([a_lot()], [], month(), by=By.LOT, discount=-1.0)


def test_books_of_the_whole_life_end_in_what_is_left() -> None:
    lot = a_lot(salvage=usd(0), method=Method.ECONOMIC, curve=CURVE)
    assert schedule(lot)[-1].book == lot.left == usd(500_000)
