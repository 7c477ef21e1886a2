"""What a portfolio earns: an example by hand, and bounds that nobody beats."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.pools import pool, wandering

from sublet.planner import bounds
from sublet.planner.curve import Curve, Floats
from sublet.planner.portfolio import DEFAULT_PRICES, Prices, Takings, portfolio
from sublet.planner.windows import LENGTHS, Span, Windows, span, windows

DAYS = 3
HOURS = 24 * (DAYS + 1)


def field(curve: Curve) -> tuple[Span, dict[int, Windows]]:
    """Three days, after one that is only known."""
    scored = span(curve, curve.start + 86_400, curve.end)
    return scored, {hours: windows(curve, hours, scored) for hours in LENGTHS}


def play(
    curve: Curve, sold: dict[int, Floats], *, notice_seconds: int = 600, preempts: bool = True
) -> Takings:
    scored, grids = field(curve)
    return portfolio(
        curve,
        scored,
        grids,
        sold,
        DEFAULT_PRICES,
        notice_seconds=notice_seconds,
        preempts=preempts,
    )


def everywhere(day: float, four: float, one: float) -> dict[int, Floats]:
    return {
        24: np.full(DAYS, float(day)),
        4: np.full(6 * DAYS, float(four)),
        1: np.full(24 * DAYS, float(one)),
    }


def test_a_quiet_pool_earns_what_its_layers_cost() -> None:
    takings = play(pool(np.full(HOURS, 4.0), 10), everywhere(2, 3, 5))
    # Of six idle: two for the day, one more for four hours, two more by the hour, one is lent.
    a_day = 24 * (2 * 1.00 + 1 * 0.85 + 2 * 0.70 + 1 * 0.50)
    assert takings.revenue == pytest.approx(np.full(DAYS, a_day) - [0.5 * 30 / 3600 * 0, 0, 0])
    assert takings.firm_hours.tolist() == [24 * 5] * DAYS
    assert takings.broken_hours.sum() == takings.lacking_hours.sum() == 0
    assert takings.evictions.sum() == 0


def test_internal_demand_takes_interruptible_first_then_the_shortest_promise() -> None:
    running = np.full(HOURS, 4.0)
    running[24 + 10] = 7.5  # two and a half idle left, for one hour of the first day
    takings = play(pool(running, 10), everywhere(2, 3, 5))
    # The lent one goes, both promised by the hour break, and half of the one for four hours.
    assert takings.broken_hours.tolist() == [2 * 1 + 0.5 * 4, 0, 0]
    lost = (
        0.50 * 1  # the lent one, for the hour
        + 0.50 * 30 / 3600 * 1  # and its eviction
        + 2 * 1.5 * 0.70
        + 0.5 * 4 * 1.5 * 0.85
    )
    # What was broken for four hours is lent, or promised by the hour, once it is idle again.
    again = 0.5 * 0.70 * 1
    quiet = 24 * (2 * 1.00 + 1 * 0.85 + 2 * 0.70 + 1 * 0.50)
    assert takings.revenue[0] == pytest.approx(quiet - lost + again)
    assert takings.lacking_hours.sum() == 0
    assert takings.waited_hours[0] == pytest.approx(3.5 * 600 / 3600)


def test_leases_that_do_not_give_way_make_internal_jobs_wait() -> None:
    running = np.full(HOURS, 4.0)
    running[24 + 10 : 24 + 12] = 9
    takings = play(pool(running, 10), everywhere(6, 6, 6), preempts=False)
    # Five GPUs short for two hours; the first ten minutes are the notice.
    assert takings.lacking_hours.tolist() == pytest.approx([5 * (2 - 1 / 6), 0, 0])
    assert takings.broken_hours.sum() == 0


@st.composite
def offers(draw: st.DrawFn) -> tuple[Curve, dict[int, Floats], Prices]:
    dice = np.random.default_rng(draw(st.integers(0, 10**6)))
    running = dice.integers(0, 14, HOURS) * 1.0
    if draw(st.booleans()):  # with hours in which nobody looked
        running[dice.random(HOURS) < 0.2] = np.nan
    curve = pool(running, 12)
    _, grids = field(curve)
    sold = {hours: dice.integers(0, 12, len(grids[hours].slots)) * 1.0 for hours in LENGTHS}
    if draw(st.booleans()):  # such as knows the future
        sold = {hours: np.minimum(sold[hours], grids[hours].kept) for hours in LENGTHS}
    price = st.floats(0.05, 2)
    prices = Prices(firm={hours: draw(price) for hours in LENGTHS}, interruptible=draw(price))
    return curve, sold, prices


@settings(max_examples=15, deadline=None)
@given(offers())
def test_nobody_earns_more_than_who_knows_the_future(
    offer: tuple[Curve, dict[int, Floats], Prices],
) -> None:
    curve, sold, prices = offer
    scored, grids = field(curve)
    takings = portfolio(curve, scored, grids, sold, prices, notice_seconds=0)
    fair = bounds.on_grid(curve, scored, grids, prices)
    assert takings.revenue.sum() <= fair.sum() + 1e-6
    assert fair.sum() <= bounds.any_step(curve, scored, prices) + 1e-6


def test_the_fair_bound_is_reached_by_who_sells_what_it_would() -> None:
    curve = pool(np.full(HOURS, 4.0), 10)
    scored, grids = field(curve)
    fair = bounds.on_grid(curve, scored, grids, DEFAULT_PRICES)
    assert fair == pytest.approx(np.full(DAYS, 24 * 6 * 1.00))
    assert play(curve, everywhere(6, 6, 6)).revenue == pytest.approx(fair)
    cheap = replace(DEFAULT_PRICES, interruptible=1.5)
    assert bounds.on_grid(curve, scored, grids, cheap).sum() == pytest.approx(DAYS * 24 * 6 * 1.5)


def test_every_gpu_hour_is_lent_once_or_not_at_all() -> None:
    curve = wandering(3, days=DAYS + 1, gpus=40, step_seconds=600)
    scored, grids = field(curve)
    sold = {hours: np.maximum(grids[hours].kept - 3, 0) for hours in LENGTHS}
    takings = portfolio(curve, scored, grids, sold, DEFAULT_PRICES, notice_seconds=600)
    idle = np.nansum(curve.idle[scored.first : scored.last]) / 6
    assert takings.broken_hours.sum() == 0
    assert takings.firm_hours.sum() + takings.interruptible_hours.sum() == pytest.approx(idle)
