"""What may be sold from now on: decided by the past alone, and never what is not free."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublet.planner.curve import DAY_SECONDS, HOUR_SECONDS, Curve
from sublet.planner.plan import Policy, learn
from sublet.planner.prospect import Because, Lending, Prospect, Reason, prospect
from sublet.planner.windows import LENGTHS

STEP = 300
SLOTS_A_DAY = DAY_SECONDS // STEP
START = 1_767_225_600


def curve(demand: np.ndarray, *, gpus: float = 100.0) -> Curve:
    return Curve(
        start=START, step_seconds=STEP, total=np.full(len(demand), gpus),
        running=demand.astype(np.float64), pending=np.zeros(len(demand)),
    )  # fmt: skip


def look(found: Curve, *, now: int | None = None, lending: Lending | None = None) -> Prospect:
    model = learn(found, Policy()) if len(found) else None
    return prospect(
        found, model, now=found.end if now is None else now, lending=lending or Lending()
    )


def steady(days: float, demand: int = 60) -> np.ndarray:
    return np.full(int(days * SLOTS_A_DAY), demand)


@cache
def month() -> Prospect:
    return look(curve(steady(28)))


def reasons(found: Prospect) -> list[Reason]:
    return [because.reason for because in found.because]


def test_what_was_always_idle_is_sold_firm() -> None:
    plan = month()
    assert plan.firm[1] == 40 and 30 <= plan.firm[24] <= plan.firm[4] <= 40
    assert (plan.interruptible, plan.reserve, plan.demand, plan.gpus) == (40, 0, 60, 100)
    assert plan.because == ()
    assert plan.known_seconds == 28 * DAY_SECONDS and plan.known_share == 1
    assert {gpus for band in plan.band for gpus in band.demand.values()} == {60}


def test_without_a_history_nothing_is_sold_and_it_says_why() -> None:
    plan = look(curve(np.zeros(0)))
    assert (plan.firm, plan.interruptible) == ({1: 0, 4: 0, 24: 0}, 0)
    assert plan.because == (Because(reason=Reason.NO_HISTORY),)


@pytest.mark.parametrize("hours", [0.1, 5, 30])
def test_a_cold_start_promises_nothing_keeps_a_tenth_and_says_why(hours: float) -> None:
    plan = look(curve(np.full(max(int(hours * 12), 1), 60)))
    assert (plan.firm, plan.interruptible, plan.reserve) == ({1: 0, 4: 0, 24: 0}, 30, 10)
    assert plan.because == (Because(reason=Reason.COLD_START, hours=LENGTHS),)


def test_a_pool_that_is_not_learnt_of_yet_is_lent_but_not_promised() -> None:
    found = curve(steady(3))
    plan = prospect(found, None, now=found.end, lending=Lending())
    assert (plan.firm[1], plan.interruptible, plan.band) == (0, 30, ())
    assert reasons(plan) == [Reason.NOT_LEARNT]


@pytest.mark.parametrize("gpus", [0, 1, 2, 3, 8, 100_000])
def test_pools_of_every_size_are_planned(gpus: int) -> None:
    idle = look(curve(steady(10, 0), gpus=gpus))
    assert 0.9 * gpus - 1 <= idle.firm[1] <= gpus and idle.interruptible + idle.reserve == gpus
    full = look(curve(steady(10, gpus), gpus=gpus))
    assert (full.firm[1], full.interruptible, full.reserve) == (0, 0, 0)
    assert Reason.NOTHING_FREE in reasons(full)


def test_a_pool_that_shrank_is_sold_as_it_is_now_and_one_that_grew_too() -> None:
    found = curve(steady(14))
    total = found.total.copy()
    total[-SLOTS_A_DAY // 2 :] = 70
    shrunk = look(replace(found, total=total))
    assert shrunk.gpus == 70 and shrunk.interruptible + shrunk.reserve == 10
    assert shrunk.firm[1] <= 10
    total[-SLOTS_A_DAY // 2 :] = 200
    assert look(replace(found, total=total)).interruptible == 140


def test_gaps_are_said_and_a_pool_that_nobody_looks_at_is_promised_to_nobody() -> None:
    found = curve(steady(14))
    total = found.total.copy()
    total[3:-1:5] = np.nan
    gaps = look(replace(found, total=total))
    assert Reason.GAPS in reasons(gaps) and gaps.interruptible > 0
    soon = look(found, now=found.end + 2 * STEP)
    assert soon.because == () and soon.firm[1] == 40
    late = look(found, now=found.end + HOUR_SECONDS)
    assert reasons(late) == [Reason.STALE] and late.firm == {1: 0, 4: 0, 24: 0}
    assert late.as_of == found.end


def test_what_jobs_wait_for_is_not_free() -> None:
    found = curve(steady(14))
    pending = np.zeros(len(found))
    pending[-1] = 25
    plan = look(replace(found, pending=pending))
    assert plan.demand == 85 and plan.interruptible == 15 and plan.firm[1] <= 15
    assert Reason.DEMAND_WAITS in reasons(plan)


def test_the_operator_lends_no_more_than_they_said() -> None:
    found = curve(steady(14))
    none = look(found, lending=Lending(lendable=False))
    assert (none.firm[1], none.interruptible, reasons(none)) == (0, 0, [Reason.NOT_LENDABLE])
    some = look(found, lending=Lending(limit=7))
    assert (some.firm[24], some.interruptible, reasons(some)) == (7, 7, [Reason.LENDING_LIMIT])


@st.composite
def histories(draw: st.DrawFn) -> Curve:
    """Draw a few days of demand in steps, with gaps and waiting jobs."""
    slots = draw(st.integers(1, 5 * SLOTS_A_DAY))
    dice = np.random.default_rng(draw(st.integers(0, 2**32)))
    demand = np.repeat(dice.integers(0, 120, slots // 12 + 1), 12)[:slots].astype(np.float64)
    demand[dice.random(slots) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
    found = curve(demand)
    return replace(found, pending=dice.integers(0, 5, slots).astype(np.float64))


@given(histories(), st.integers(1, 4 * DAY_SECONDS), st.integers(0, 2**32))
@settings(max_examples=15)
def test_a_plan_sees_only_the_past(found: Curve, until: int, seed: int) -> None:
    now = found.start + until
    dice = np.random.default_rng(seed)
    after = np.arange(len(found)) * STEP >= until
    other = replace(
        found,
        total=np.where(after, dice.integers(0, 300, len(found)), found.total),
        running=np.where(after, dice.integers(0, 300, len(found)), found.running),
    )
    seen = -(-until // STEP)
    past = replace(
        found, total=found.total[:seen], running=found.running[:seen], pending=found.pending[:seen]
    )
    model = learn(past, Policy())
    plan = prospect(found, model, now=now, lending=Lending())
    assert plan == prospect(other, model, now=now, lending=Lending())
    assert plan == prospect(past, model, now=now, lending=Lending())


@given(histories(), st.floats(0.5, 0.999), st.none() | st.integers(0, 50))
@settings(max_examples=15)
def test_a_plan_never_sells_what_is_not_free(
    found: Curve, confidence: float, limit: int | None
) -> None:
    model = learn(found, Policy(confidence=confidence))
    plan = prospect(found, model, now=found.end, lending=Lending(limit=limit))
    free = max(plan.gpus - plan.demand, 0)
    assert 0 <= plan.firm[24] <= plan.firm[4] <= plan.firm[1] <= plan.interruptible
    assert plan.interruptible + plan.reserve <= free
    for band in plan.band:
        counts = list(band.demand.values())
        assert counts == sorted(counts) and 0 <= counts[0] <= counts[-1] <= 120
