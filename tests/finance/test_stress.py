"""Cash through scenarios: what happens in them shows, and the same dice make the same figures."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import numpy_financial
import pytest
from tests.finance.lots import a_lot, usd

from sublet.core.errors import Invalid, NotFound
from sublet.finance.asset import Debt
from sublet.finance.curves import PriceCurve, read_curve
from sublet.finance.scenarios import load, parse, shipped
from sublet.finance.stress import (
    HOURS_A_MONTH,
    Contract,
    Dice,
    Event,
    Scenario,
    debt_service,
    monte_carlo,
    outlook,
)

START = date(2026, 12, 1)
LOT = a_lot(
    gpus=1000, cost=usd(50e6), salvage=usd(7.5e6), bought_on=date(2026, 6, 1),
    in_service_on=date(2026, 6, 1), usd_per_month=125_000.0,
)  # fmt: skip
PLAIN = Scenario(
    name="plain", about="", start=START, quarters=8, lots=[LOT],
    price=PriceCurve(points=((START, 2.0),), source="a test"), internal_share=0.25, sold_share=0.8,
    revenue_cost_share=0.1, covenant_dscr=0.0, contracts=(), events=(),
    dice=Dice(price_volatility=0.3, sold_spread=0.05),
)  # fmt: skip


def test_a_quarter_is_what_the_formulas_say() -> None:
    first = outlook(PLAIN).quarters[0]
    assert first.sold == pytest.approx(600)
    assert first.revenue == pytest.approx(600 * 2.0 * HOURS_A_MONTH * 3)
    busy = 850 * HOURS_A_MONTH * 3
    idle = 150 * HOURS_A_MONTH * 3
    assert first.power == pytest.approx((busy * 1.4 + idle * 0.4) * 1.3 * 0.08)
    assert first.other_cost == pytest.approx(375_000 + 0.1 * first.revenue)
    assert first.free_cash == pytest.approx(first.revenue - first.power - first.other_cost)
    assert (first.dscr, first.covenant_kept) == (None, True)


def test_at_the_break_even_price_the_cash_adds_up_to_nothing() -> None:
    scenario = replace(PLAIN, lots=[replace(LOT, debt=Debt(share=0.6, rate=0.1, months=48))])
    price = outlook(scenario).break_even
    assert price is not None
    assert price > 0
    flat = replace(scenario, price=PriceCurve(points=((START, price),), source="a test"))
    assert outlook(flat).quarters[-1].cumulative == pytest.approx(0, abs=1)


def test_interest_and_principal_are_those_of_a_library() -> None:
    debt = Debt(share=0.6, rate=0.1, months=48)
    for age in (0, 1, 20, 47):
        interest, principal = debt_service(debt, 1e6, age)
        assert interest == pytest.approx(-float(numpy_financial.ipmt(0.1 / 12, age + 1, 48, 6e5)))
        assert principal == pytest.approx(-float(numpy_financial.ppmt(0.1 / 12, age + 1, 48, 6e5)))
    assert debt_service(debt, 1e6, 48) == debt_service(debt, 1e6, -1) == (0, 0)
    assert debt_service(Debt(share=1, rate=0, months=10), 1e6, 3) == (0, 1e5)


CONTRACTS = (
    Contract(tenant="north", gpus=400, usd_per_gpu_hour=3.0, first=0, months=6, renews=True),
    Contract(tenant="west", gpus=100, usd_per_gpu_hour=2.5, first=0, months=24, renews=False),
)


def test_a_contract_is_renewed_at_the_market_s_price_or_its_gpus_go_to_the_market() -> None:
    kept = outlook(replace(PLAIN, contracts=CONTRACTS)).quarters
    assert kept[0].revenue == pytest.approx(
        (400 * 3.0 + 100 * 2.5 + 250 * 0.8 * 2.0) * HOURS_A_MONTH * 3
    )
    assert kept[2].revenue == pytest.approx(
        (400 * 2.0 + 100 * 2.5 + 250 * 0.8 * 2.0) * HOURS_A_MONTH * 3
    )
    lost = Event(kind="non_renewal", month=3, share=0, months=1)
    gone = outlook(replace(PLAIN, contracts=CONTRACTS, events=(lost,))).quarters
    assert gone[1] == kept[1], "what is signed holds until its end"
    assert gone[2].revenue == pytest.approx((100 * 2.5 + 650 * 0.8 * 2.0) * HOURS_A_MONTH * 3)


def test_the_largest_tenant_fails_and_the_others_go_on() -> None:
    event = Event(kind="default", month=3, share=0, months=1)
    quarters = outlook(replace(PLAIN, contracts=CONTRACTS, events=(event,))).quarters
    assert quarters[1].revenue == pytest.approx((100 * 2.5 + 650 * 0.8 * 2.0) * HOURS_A_MONTH * 3)


def test_a_recall_pays_for_less_and_ends() -> None:
    event = Event(kind="recall", month=3, share=0.5, months=3)
    quarters = outlook(replace(PLAIN, contracts=CONTRACTS, events=(event,))).quarters
    assert quarters[1].sold == pytest.approx(250)
    # Half of the contracts' GPUs are delivered, and paid.
    assert quarters[1].revenue == pytest.approx((1200 + 250) / 2 * HOURS_A_MONTH * 3)
    assert quarters[2].sold == pytest.approx(700)


def test_a_new_generation_takes_its_share_of_the_price_and_use_may_fall() -> None:
    events = (
        Event(kind="new_generation", month=0, share=0.5, months=6),
        Event(kind="utilisation", month=12, share=0.5, months=1),
    )
    quarters = outlook(replace(PLAIN, events=events)).quarters
    assert [round(q.price, 4) for q in quarters[:3]] == [round(2 * (1 - 1 / 6), 4), 1.1667, 1.0]
    assert quarters[3].sold == pytest.approx(600)
    assert quarters[4].sold == pytest.approx(375)


def test_it_says_when_cash_turns_negative_and_a_covenant_breaks() -> None:
    lot = replace(LOT, debt=Debt(share=0.6, rate=0.1, months=60))
    falling = PriceCurve(points=((START, 2.5),), source="a test", half_life_months=6)
    found = outlook(replace(PLAIN, lots=[lot], price=falling, covenant_dscr=1.3))
    assert found.negative_from is not None
    assert found.covenant_broken_from is not None
    assert found.covenant_broken_from <= found.negative_from
    by_start = {q.start: q for q in found.quarters}
    assert by_start[found.negative_from].free_cash < 0
    broken = by_start[found.covenant_broken_from].dscr
    assert broken is not None
    assert broken < 1.3


def test_the_same_seed_makes_the_same_figures_and_dice_stay_about_the_path() -> None:
    one, same = monte_carlo(PLAIN, runs=60, seed=3), monte_carlo(PLAIN, runs=60, seed=3)
    assert one == same
    assert one != monte_carlo(PLAIN, runs=60, seed=4)
    by_percent = dict(one.percentiles)
    last = [values[-1] for _, values in one.percentiles]
    assert last == sorted(last)
    calm = replace(PLAIN, dice=Dice(price_volatility=0, sold_spread=0))
    path = [q.cumulative for q in outlook(PLAIN).quarters]
    assert np.allclose(dict(monte_carlo(calm, runs=3, seed=1).percentiles)[50], path)
    assert by_percent[5][-1] < path[-1] < by_percent[95][-1]


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario_runs_and_says_what_it_is(name: str) -> None:
    scenario = load(name)
    assert scenario.name == name
    assert len(scenario.about) > 30
    assert len(outlook(scenario).quarters) == scenario.quarters
    with_lots = load(name, [LOT])
    assert [lot.name for lot in with_lots.lots] == ["one"]


def test_a_forward_curve_comes_from_a_file(folder: Path) -> None:
    (folder / "curve.csv").write_text("day,usd\n2026-12-01,2.0\n2027-12-01,1.0\n")
    text = 'name = "x"\n[fleet]\ngpus = 10\n[market]\ncurve = "file"\nfile = "curve.csv"\n'
    scenario = parse(text, folder=folder)
    assert scenario.price.at(date(2027, 6, 1)) == pytest.approx(1.5, abs=0.01)
    assert scenario.price.at(date(2030, 1, 1)) == 1.0


GOOD = 'name = "x"\n[fleet]\ngpus = 10\n[market]\nusd_per_gpu_hour = 2.0\n'


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("gpus = 10", "gpus = -1", "gpus must lie in"),
        ("gpus = 10", "gpus = 1.5", "gpus must be a whole number"),
        ("gpus = 10", "gpus = 10\npower = 3", "unknown: power"),
        ("2.0", "-2.0", "usd_per_gpu_hour must lie in"),
        ("[market]", '[[event]]\nkind = "war"\nmonth = 1\n[market]', "kind must be one of"),
        ("[market]", '[[event]]\nkind = "recall"\nmonth = 1\n[market]', "share is missing"),
        ("[market]", "[market]\nmonths = 2", "unknown: months"),
        ("[market]", '[market]\ncurve = "points"\npoints = [[1, 2]]', "pairs of a day and a number"),
        ("[market]", '[market]\ncurve = "file"\nfile = "none.csv"', "cannot read"),
        ("name", "name = ", "no TOML"),
    ],
)  # fmt: skip
def test_a_scenario_that_cannot_be_used_says_where(old: str, new: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        parse(GOOD.replace(old, new, 1), folder=Path())


def test_an_unknown_scenario_names_those_that_there_are() -> None:
    with pytest.raises(NotFound, match="price-halves"):
        load("no-such")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("date,usd\n", "first line"), ("day,usd\n", "needs points"),
        ("day,usd\n2026-01-01,x\n", "line 2"), ("day,usd\n2026-01-02,1\n2026-01-01,1\n", "rise"),
        ("day,usd\n2026-01-02,0\n", "more than nothing"),
    ],
)  # fmt: skip
def test_a_curve_that_is_none_says_why(text: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        read_curve(text, "curve.csv")
