"""The live plan: the same decisions as in the back-test, and a word on what they rest on."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from tests.planner.pools import pool, wandering

from sublet.planner.curve import Curve
from sublet.planner.outlook import outlooks
from sublet.planner.plan import HORIZON_HOURS, Policy, Why, learn, make_plan
from sublet.planner.windows import LENGTHS

POLICY = Policy()


def cut(curve: Curve, slots: int) -> Curve:
    return replace(curve, total=curve.total[:slots], running=curve.running[:slots])


def test_a_plan_promises_what_the_back_test_would() -> None:
    curve = wandering(1, days=31)  # the last fit of the back-test is as old as the model
    model = learn(curve, POLICY)
    plan = make_plan(curve, model)
    assert plan.at == curve.end and plan.step_seconds == 3_600
    for hours, forecast in outlooks(curve, LENGTHS).items():
        depth = model.depths[hours]
        if depth is not None:
            sold = forecast.sellable(np.array([depth]))[-1, 0]
            assert abs(plan.firm[hours][0] - sold) <= 1
    assert plan.firm[1][0] > 0 and plan.why[1] is Why.LEARNT


def test_a_plan_looks_a_week_ahead_and_knows_less_the_farther_it_looks() -> None:
    curve = wandering(2, days=20, step_seconds=1_800)
    plan = make_plan(curve, learn(curve, POLICY))
    steps = HORIZON_HOURS * 2
    assert len(plan.interruptible) == steps
    assert all(len(values) == steps for values in (*plan.firm.values(), *plan.expected.values()))
    assert plan.firm[1][0] > 0
    width = plan.expected[0.99] - plan.expected[0.5]
    assert width[0] == 0 < width[2] < width[2 * 24]
    shares = sorted(plan.expected)
    for low, high in pairwise(shares):
        assert (plan.expected[high] >= plan.expected[low]).all()
    assert plan.expected[0.5][0] == curve.running[-1]
    assert plan.interruptible[0] == curve.idle[-1]


def test_a_new_pool_lends_but_promises_nothing_and_says_why() -> None:
    curve = cut(wandering(3), 30)
    plan = make_plan(curve, learn(curve, POLICY))
    assert all(plan.why[hours] is Why.COLD_START for hours in LENGTHS)
    assert all(values.sum() == 0 for values in plan.firm.values())
    assert plan.interruptible[0] == curve.idle[-1]


def test_a_pool_without_a_last_sample_promises_and_lends_nothing() -> None:
    curve = wandering(4)
    running = curve.running.copy()
    running[-1] = np.nan
    blind = replace(curve, running=running)
    plan = make_plan(blind, learn(curve, POLICY))
    assert set(plan.why.values()) == {Why.NO_SAMPLE}
    assert plan.interruptible.sum() == sum(values.sum() for values in plan.firm.values()) == 0


def test_a_pool_that_never_keeps_a_promise_says_so() -> None:
    running = np.tile(np.concatenate([np.zeros(3), np.full(3, 100.0)]), 120)
    plan = make_plan(pool(running, 100), learn(pool(running, 100), POLICY))
    assert plan.why[24] is Why.UNPROVEN and plan.firm[24].sum() == 0


def test_a_full_pool_says_so() -> None:
    curve = wandering(5)
    running = curve.running.copy()
    running[-1] = 200
    full = replace(curve, running=running)
    plan = make_plan(full, learn(curve, POLICY))
    assert plan.why[1] is Why.FULL and plan.firm[1][0] == 0


def test_a_reserve_is_kept_for_sudden_demand() -> None:
    curve = wandering(6)
    plain = make_plan(curve, learn(curve, POLICY))
    ready = make_plan(curve, learn(curve, replace(POLICY, reserve_share=0.95)))
    assert plain.reserve == 0 < ready.reserve < 40
    assert ready.interruptible[0] == max(plain.interruptible[0] - ready.reserve, 0)


def test_a_plan_needs_no_more_than_the_last_days() -> None:
    curve = wandering(7)
    model = learn(curve, POLICY)
    late = replace(
        curve,
        start=curve.start + 14 * 86_400,
        total=curve.total[14 * 24 :],
        running=curve.running[14 * 24 :],
    )
    whole, short = make_plan(curve, model), make_plan(late, model)
    assert all((whole.firm[hours] == short.firm[hours]).all() for hours in LENGTHS)
