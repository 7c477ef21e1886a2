"""Statements: everything adds up to the records, and the yield is what it is made of."""

from datetime import date, timedelta
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.finance.lots import a_building, a_lot

from sublet.core.errors import Invalid
from sublet.core.money import NANOS
from sublet.finance.asset import Lot
from sublet.finance.record import IDLE, USES, Earned, Hours, Record
from sublet.finance.statement import (
    NO_POOL,
    By,
    Line,
    cost_per_million_tokens,
    statement,
    total,
    yield_of,
)

JUNE = date(2026, 6, 1)
JULY = date(2026, 7, 1)


def month(
    pool: str = "h100", *, gpus: int = 100, earned: float = 100_000.0, **used: float
) -> Record:
    """Return a June in which `gpus` were healthy, with so many GPU-hours a day of each use."""
    return Record(
        start=JUNE,
        end=JULY,
        hours=[
            Hours(pool=pool, day=JUNE + timedelta(days=n), healthy=24.0 * gpus, used=used)
            for n in range(30)
        ],
        earned=[Earned(pool=pool, product="on_demand", nanos=round(earned * NANOS))],
    )


def test_a_lot_s_month_is_what_the_formulas_say() -> None:
    record = month(internal=1000.0, on_demand=800.0)
    (line,) = statement([a_lot(usd_per_month=3_650)], [], record, by=By.LOT)
    assert line.hours["internal"] == pytest.approx(30_000)
    assert line.hours["on_demand"] == pytest.approx(24_000)
    assert line.hours[IDLE] == pytest.approx(18_000)
    assert sum(line.hours.values()) == pytest.approx(72_000)
    power = (54_000 * 1.4 + 18_000 * 0.4) * 1.3 * 0.08
    assert line.power == pytest.approx(power)
    assert line.upkeep == pytest.approx(3_650 * 30 / (365 / 12))
    assert line.depreciation == pytest.approx(4_500_000 / 60)
    assert line.cost_per_hour == pytest.approx((line.cash_cost + 75_000) / 54_000), "idle is in it"
    assert line.margin == pytest.approx(1 - line.cash_cost / 100_000)
    mean = 5_000_000 - 5.5 * 75_000
    assert line.roic == pytest.approx((100_000 - line.book_cost) / mean / (30 / 365))
    assert line.payback_years == pytest.approx(5_000_000 / ((100_000 - line.cash_cost) * 365 / 30))
    assert line.added == pytest.approx(100_000 - 24_000 * 1.0 * 1.3 * 0.08)
    found = yield_of(line)
    assert found is not None
    assert found.usd_per_gpu_hour == pytest.approx(100_000 / 24_000)
    assert found.share_sold == pytest.approx(1 / 3)
    assert found.gpus_per_megawatt == pytest.approx(1e6 / 1400 / 1.3)
    # What the parts make is what the revenue is, for its power and over a year.
    assert found.usd_per_megawatt_year == pytest.approx(100_000 / 0.182 * 8_760 / 720)


def test_gpus_that_are_not_healthy_are_down_and_those_without_a_lot_are_told() -> None:
    lot = a_lot()
    (line,) = statement([lot], [], month(gpus=90, on_demand=1000.0), by=By.LOT)
    assert line.hours["down"] == pytest.approx(30 * 24 * 10)
    more = statement([lot], [], month(gpus=125, on_demand=1000.0), by=By.LOT)
    by_name = {one.name: one for one in more}
    assert by_name["one"].hours["on_demand"] == pytest.approx(30_000 * 0.8)
    assert by_name[NO_POOL].hours["on_demand"] == pytest.approx(30_000 * 0.2)
    (alone,) = statement([], [], month(internal=10.0), by=By.POOL)
    assert alone.name == NO_POOL
    assert alone.total_revenue == pytest.approx(100_000)


def test_a_pool_is_shared_by_gpus_in_service_on_the_day() -> None:
    early = a_lot(name="early", gpus=60)
    late = a_lot(name="late", gpus=40, bought_on=JUNE, in_service_on=date(2026, 6, 16))
    lines = {
        one.name: one for one in statement([early, late], [], month(on_demand=600.0), by=By.LOT)
    }
    assert lines["late"].hours["on_demand"] == pytest.approx(15 * 600 * 0.4)
    # In the first half 40 healthy GPUs have no lot yet.
    assert lines["early"].hours["on_demand"] == pytest.approx(15 * 600 * 0.6 + 15 * 600 * 0.6)
    assert lines[NO_POOL].hours["on_demand"] == pytest.approx(15 * 600 * 0.4)


def test_a_building_is_shared_by_the_power_of_its_site() -> None:
    big = a_lot(name="big", gpus=75)
    small = a_lot(name="small", gpus=25, pool="a100")
    lines = statement([big, small, a_building()], [], month(gpus=75), by=By.LOT)
    plain = statement([big, small], [], month(gpus=75), by=By.LOT)
    extra = [a.depreciation - b.depreciation for a, b in zip(lines, plain, strict=True)]
    assert extra == pytest.approx([7_500, 2_500])
    alone = statement([a_building(site="south")], [], month(gpus=75), by=By.SITE)
    assert {one.name for one in alone} == {"south", NO_POOL}


LOTS = st.lists(
    st.builds(
        lambda n, pool, gpus, site: a_lot(name=f"lot{n}", pool=pool, gpus=gpus, site=site,
                                          generation=pool.upper()),
        st.integers(0, 10**6), st.sampled_from(["h100", "a100", "b200"]), st.integers(1, 500),
        st.sampled_from(["north", "south"]),
    ),
    max_size=5, unique_by=lambda lot: lot.name,
)  # fmt: skip
USED = st.fixed_dictionaries(
    {use: st.floats(0, 2000) for use in ("internal", "on_demand", "contract", "model")}
)


@given(LOTS, st.lists(st.tuples(st.sampled_from(["h100", "a100"]), USED, st.integers(0, 600)), max_size=8),
       st.lists(st.tuples(st.sampled_from(["h100", "b200", ""]),
                          st.sampled_from(["on_demand", "model", "minimum"]),
                          st.integers(-10**12, 10**15)), max_size=6),
       st.sampled_from(By), st.booleans())  # fmt: skip
def test_every_cut_adds_up_to_the_records(
    lots: list[Lot],
    days: list[tuple[str, dict[str, float], int]],
    earned: list[tuple[str, str, int]],
    by: By,
    hall: bool,
) -> None:
    hours = {}
    for number, (pool, used, spare) in enumerate(days):
        day = JUNE + timedelta(days=number % 3)
        healthy = sum(used.values()) + spare
        hours[pool, day] = Hours(pool=pool, day=day, healthy=healthy, used=used)
    record = Record(
        start=JUNE, end=JUNE + timedelta(days=3), hours=list(hours.values()),
        earned=[Earned(pool=p, product=q, nanos=n) for p, q, n in earned],
    )  # fmt: skip
    owned = [*lots, a_building()] if hall else lots
    whole = total(statement(owned, [], record, by=by))
    assert whole.total_revenue == pytest.approx(record.revenue_nanos / NANOS, abs=1e-3)
    for use in ("internal", "on_demand", "contract", "model"):
        expected = sum(one.used[use] for one in record.hours)
        assert whole.hours[use] == pytest.approx(expected, abs=1e-6)
    if by is not By.PRODUCT:
        healthy = sum(one.healthy for one in record.hours)
        up = sum(whole.hours[use] for use in USES if use != "down")
        assert up == pytest.approx(healthy, abs=1e-6)
        assert all(one.hours["down"] >= -1e-9 for one in statement(owned, [], record, by=by))


def test_products_bear_costs_by_their_hours() -> None:
    record = month(internal=1000.0, on_demand=500.0, contract=500.0)
    lines = {one.name: one for one in statement([a_lot()], [], record, by=By.PRODUCT)}
    assert set(lines) == {"internal", "on_demand", "contract"}
    (whole,) = statement([a_lot()], [], record, by=By.LOT)
    assert lines["internal"].book_cost == pytest.approx(whole.book_cost / 2)
    assert lines["on_demand"].total_revenue == pytest.approx(100_000)
    assert lines["contract"].total_revenue == 0
    assert sum(one.added for one in lines.values()) == pytest.approx(whole.added)


def test_tokens_bear_what_their_hours_cost() -> None:
    assert cost_per_million_tokens(250.0, 1_000_000_000) == pytest.approx(0.25)
    assert cost_per_million_tokens(250.0, 0) is None


def test_nothing_is_divided_by_nothing() -> None:
    line = Line(name="empty")
    assert (line.cost_per_hour, line.margin, line.roic, line.payback_years) == (None,) * 4
    assert yield_of(line) is None
    with pytest.raises(Invalid, match="ends after it starts"):
        statement([], [], Record(start=JULY, end=JUNE), by=By.LOT)


# ── public figures ───────────────────────────────────────────────────────────────────────


def deal(*, gpus: float, megawatts: float, usd_a_month: float) -> Line:
    """Return a month of 730 hours in which all of `gpus` were under one contract."""
    line = Line(name="deal", gpus=gpus, megawatts=megawatts, days=30)
    line.hours["contract"] = gpus * 730
    line.revenue["contract"] = usd_a_month
    return line


def test_a_deal_of_1_25_billion_a_month_for_300_megawatts() -> None:
    """15 billion a year for 0.3 GW: 50 billion per GW-year; of 220,000 GPUs 7.78 USD an hour."""
    found = yield_of(deal(gpus=220_000, megawatts=300, usd_a_month=1.25e9))
    assert found is not None
    assert round(found.usd_per_gpu_hour, 2) == 7.78
    assert round(found.usd_per_gigawatt_year / 1e9) == 50
    other = yield_of(deal(gpus=325_000, megawatts=300, usd_a_month=1.25e9))
    assert other is not None
    assert round(other.usd_per_gpu_hour, 2) == 5.27


def test_a_deal_of_920_million_a_month_for_110_000_gpus() -> None:
    found = yield_of(deal(gpus=110_000, megawatts=150, usd_a_month=0.92e9))
    assert found is not None
    assert round(found.usd_per_gpu_hour, 2) == 11.46


@pytest.mark.parametrize(
    ("watts", "pue", "price"),
    [
        (1400, 1.3, 7.79),
        (1275, 1.2, 6.55),
        (1400, 1.54, 9.23),
        (1275, 1.54, 8.41),
        (2000, 1.2, 10.27),
    ],
)
def test_thirty_billion_per_gigawatt_and_year_needs(watts: float, pue: float, price: float) -> None:
    """At 80 per cent sold; the price is what the decomposition leaves for it."""
    density = 1e9 / watts / pue
    assert round(30e9 / (density * 0.8 * 8_760), 2) == price
    line = Line(name="gw", gpus=density, megawatts=1000, days=365)
    line.hours["contract"], line.hours[IDLE] = density * 0.8 * 8_760, density * 0.2 * 8_760
    line.revenue["contract"] = price * line.hours["contract"]
    found = yield_of(line)
    assert found is not None
    assert isclose(found.usd_per_gigawatt_year, 30e9, rel_tol=1e-3)


def test_coreweave_s_2025_revenue_over_its_mean_assets() -> None:
    """5.13 billion of revenue; 0.24 of mean net property: 30.6 billion at its end.

    What there was at its beginning is what the published ratio implies.
    """
    line = Line(name="coreweave", book_start=12.2e9, book_end=30.6e9, days=365)
    line.revenue["contract"] = 5.13e9
    assert line.roic is not None
    assert round(line.roic, 2) == 0.24, "before any cost, as the figure is quoted"
