"""What may be sold from a pool's past: decided by the past alone, and cautious without one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublet.core.errors import Invalid
from sublet.planner.curve import DAY_SECONDS, HOUR_SECONDS, Curve
from sublet.planner.prospect import FIRM_HOURS, Policy, Prospect, Reason, prospect

STEP = 300
SLOTS_A_DAY = DAY_SECONDS // STEP
SURE = Policy(confidence=0.99)
START = 1_767_225_600


def curve(demand: np.ndarray, *, gpus: float = 100.0) -> Curve:
    return Curve(
        start=START, step_seconds=STEP, total=np.full(len(demand), gpus),
        running=demand.astype(np.float64), pending=np.zeros(len(demand)),
    )  # fmt: skip


def look(found: Curve, policy: Policy = SURE) -> Prospect:
    return prospect(found, now=found.end, policy=policy)


def steady(days: int, demand: int = 60) -> np.ndarray:
    return np.full(days * SLOTS_A_DAY, demand)


def test_what_was_always_idle_is_sold_firm_for_a_day() -> None:
    plan = look(curve(steady(28)))
    assert (plan.firm, plan.interruptible, plan.reserve) == ({1: 40, 4: 40, 24: 40}, 40, 0)
    assert plan.reasons == ()
    assert plan.known_seconds == 28 * DAY_SECONDS
    assert {q: gpus for band in plan.band for q, gpus in band.demand.items()} == {
        0.5: 60, 0.9: 60, 0.95: 60, 0.99: 60,
    }  # fmt: skip


def test_a_daily_rise_is_kept_free_for_the_windows_that_it_falls_in() -> None:
    """Each day ten more are wanted for two hours: every day-long window has a rise in it."""
    demand = steady(28).reshape(28, SLOTS_A_DAY)
    demand[:, 100:124] += 10
    plan = look(curve(demand.ravel()))
    assert plan.firm == {1: 30, 4: 30, 24: 30}
    rare = steady(28)
    rare[-SLOTS_A_DAY - 12 : -SLOTS_A_DAY] += 10  # once in four weeks, an hour
    plan = look(curve(rare))
    assert plan.firm[1] == 40 and plan.firm[24] == 30


def test_without_a_history_nothing_is_sold_and_it_says_why() -> None:
    plan = look(curve(np.zeros(0)))
    assert (plan.firm, plan.interruptible) == ({1: 0, 4: 0, 24: 0}, 0)
    assert plan.reasons == (Reason.NO_HISTORY,)


@pytest.mark.parametrize(
    ("hours", "firm"),
    [(0.5, {1: 0, 4: 0, 24: 0}), (5, {1: 40, 4: 0, 24: 0}), (20, {1: 40, 4: 40, 24: 0}),
     (120, {1: 40, 4: 40, 24: 40})],
)  # fmt: skip
def test_a_cold_start_sells_no_window_longer_than_a_quarter_of_what_it_knows(
    hours: float, firm: dict[int, int]
) -> None:
    plan = look(curve(np.full(int(hours * 12), 60)))
    assert plan.firm == {hours: min(count, 30) for hours, count in firm.items()}
    assert (plan.interruptible, plan.reserve) == (30, 10)  # a tenth is kept
    assert Reason.SHORT_HISTORY in plan.reasons


def test_a_short_history_counts_the_worst_it_saw() -> None:
    demand = np.full(5 * SLOTS_A_DAY, 60)
    demand[200] = 95  # once, for five minutes
    assert look(curve(demand)).firm == {1: 5, 4: 5, 24: 5}


@pytest.mark.parametrize("gpus", [1, 2, 3, 8, 100_000])
def test_pools_of_every_size_are_planned(gpus: int) -> None:
    idle = look(curve(steady(28, 0), gpus=gpus))
    assert idle.firm == {1: gpus, 4: gpus, 24: gpus}
    full = look(curve(steady(28, gpus), gpus=gpus))
    assert (full.firm[1], full.interruptible) == (0, 0)
    assert Reason.NOTHING_FREE in full.reasons


def test_a_pool_that_shrinks_is_sold_as_it_is_now_and_one_that_grew_too() -> None:
    found = curve(steady(28))
    halved = found.total.copy()
    halved[-SLOTS_A_DAY:] = 80
    shrunk = look(replace(found, total=halved))
    assert shrunk.gpus == 80 and shrunk.interruptible == 20 and shrunk.firm[24] <= 20
    grown = found.total.copy()
    grown[-SLOTS_A_DAY:] = 200
    assert look(replace(found, total=grown)).firm[24] == 140


def test_gaps_are_said_and_a_pool_that_nobody_looks_at_sells_nothing_firm() -> None:
    found = curve(steady(28))
    total = found.total.copy()
    total[::5] = np.nan
    gaps = look(replace(found, total=total, running=found.running.copy()))
    assert Reason.GAPS in gaps.reasons and gaps.firm[1] == 40
    later = prospect(found, now=found.end + HOUR_SECONDS, policy=SURE)
    assert Reason.STALE in later.reasons and later.firm == {1: 0, 4: 0, 24: 0}


def test_what_jobs_wait_for_is_not_free() -> None:
    found = curve(steady(28))
    pending = np.zeros(len(found))
    pending[-1] = 25
    plan = look(replace(found, pending=pending))
    assert plan.demand == 85 and plan.interruptible <= 15
    assert Reason.DEMAND_WAITS in plan.reasons


def test_the_operator_lends_no_more_than_they_said() -> None:
    found = curve(steady(28))
    none = look(found, replace(SURE, lendable=False))
    assert (none.firm[1], none.interruptible, none.reasons) == (0, 0, (Reason.NOT_LENDABLE,))
    some = look(found, replace(SURE, lending_limit=7))
    assert (some.firm[24], some.interruptible, some.reasons) == (7, 7, (Reason.LENDING_LIMIT,))
    with pytest.raises(Invalid):
        look(found, replace(SURE, confidence=1.0))


@st.composite
def histories(draw: st.DrawFn) -> Curve:
    """Draw a few days of demand in steps, with gaps and waiting jobs."""
    slots = draw(st.integers(1, 3 * SLOTS_A_DAY))
    dice = np.random.default_rng(draw(st.integers(0, 2**32)))
    demand = np.repeat(dice.integers(0, 120, slots // 12 + 1), 12)[:slots].astype(np.float64)
    demand[dice.random(slots) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
    found = curve(demand)
    return replace(found, pending=dice.integers(0, 5, slots).astype(np.float64))


@given(histories(), st.integers(0, 3 * DAY_SECONDS), st.integers(0, 2**32))
@settings(max_examples=30)
def test_a_plan_sees_only_the_past(found: Curve, until: int, seed: int) -> None:
    now = found.start + until
    dice = np.random.default_rng(seed)
    after = np.arange(len(found)) * STEP >= until
    other = replace(
        found,
        total=np.where(after, dice.integers(0, 300, len(found)), found.total),
        running=np.where(after, dice.integers(0, 300, len(found)), found.running),
    )
    assert prospect(found, now=now, policy=SURE) == prospect(other, now=now, policy=SURE)


@given(histories(), st.floats(0.5, 0.999), st.none() | st.integers(0, 50))
@settings(max_examples=30)
def test_a_plan_never_sells_what_is_not_free(
    found: Curve, confidence: float, limit: int | None
) -> None:
    plan = look(found, Policy(confidence=confidence, lending_limit=limit))
    free = max(plan.gpus - plan.demand, 0)
    assert 0 <= plan.firm[24] <= plan.firm[4] <= plan.firm[1] <= plan.interruptible
    assert plan.interruptible + plan.reserve <= free
    assert list(plan.firm) == list(FIRM_HOURS)
    for band in plan.band:
        counts = list(band.demand.values())
        assert counts == sorted(counts) and counts[0] >= plan.demand
