"""A simulated fleet: the laws hold at every step, and the same seed writes the same history."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sublet.planner.plan import make_plan
from sublet.simulation.demand import World, make_world
from sublet.simulation.outcome import Outcome
from sublet.simulation.planning import ASKS, make_plans
from sublet.simulation.play import Stage, Variant, play, set_stage
from sublet.simulation.requests import make_requests
from sublet.simulation.rules import RULES
from sublet.simulation.run import Simulation
from sublet.simulation.scenario import Demand, Scenario, parse_scenario

SMALL = (Path(__file__).parent / "small.toml").read_text(encoding="utf-8")
SEEDS = 20


def scenario(text: str = SMALL) -> Scenario:
    return parse_scenario(text, folder=Path())


def outcome(stage: Stage, rules: str = "sublet", pricing: str = "bid") -> Outcome:
    (played,) = play(stage, [Variant(rules=rules, pricing=pricing)], keep=True)
    return played.outcome


@pytest.fixture(scope="module")
def stage() -> Stage:
    return set_stage(scenario(), 1)


@pytest.mark.parametrize("seed", range(2, 2 + SEEDS))
def test_no_law_is_broken_whatever_the_dice_say(seed: int) -> None:
    played = outcome(set_stage(replace(scenario(), days=1), seed))
    assert played.messages == ()
    assert played.violations == 0 and played.checks == 288
    assert played.shortage_share == 0
    assert played.waits["max"] <= 120
    assert played.revenue_nanos > 0


def test_the_same_seed_writes_the_same_history_to_the_byte(stage: Stage) -> None:
    first, second = outcome(stage), outcome(set_stage(scenario(), 1))
    assert b"".join(first.csv()) == b"".join(second.csv())
    assert first.history == second.history
    assert len(b"".join(first.csv()).splitlines()) > 100
    assert outcome(set_stage(scenario(), 2)).history != first.history


def test_every_gpu_hour_is_told_and_every_tier_can_be_sold(stage: Stage) -> None:
    played, unplanned = outcome(stage), outcome(stage, "slurm")
    assert sum(played.gpu_hours.values()) == pytest.approx(2 * 400 * 24 * 2)
    # How much is promised is the planner's to say; who asks no planner sells in every tier.
    assert all(hours > 0 for hours in unplanned.gpu_hours.values()), unplanned.gpu_hours
    assert all(revenue > 0 for revenue in unplanned.revenue_by_tier)
    assert unplanned.evictions > 0 and unplanned.counts["node_lost"] > 0
    assert played.revenue_by_tier[0] > 0
    assert played.credits_by_tier[0] == 0, "nothing was promised to an interruptible lease"


def test_nobody_earns_more_than_the_clairvoyant(stage: Stage) -> None:
    for rules in RULES:
        assert outcome(stage, rules).revenue_nanos <= stage.clairvoyant_nanos
    for pricing in ("fixed", "cost_plus", "greedy"):
        assert outcome(stage, "sublet", pricing).revenue_nanos <= stage.clairvoyant_nanos


@pytest.mark.parametrize("rules", sorted(RULES))
def test_the_rules_of_others_lose_no_money_and_sell_no_gpu_twice(stage: Stage, rules: str) -> None:
    played = outcome(stage, rules)
    assert played.violations == 0, played.messages
    late = played.shortage_share > 0
    assert late == (rules == "blocks"), "only blocks that are kept let internal jobs wait"


def test_what_comes_later_changes_no_decision_before(stage: Stage) -> None:
    world = stage.world
    cut = world.first + 200
    demand = world.demand.copy()
    demand[:, cut:] = demand[:, cut:][:, ::-1]
    other = World(start=world.start, first=world.first, total=world.total, demand=demand)
    short = replace(stage.scenario, conduct=replace(stage.scenario.conduct, learn_days=0.5))
    first, second = make_plans(short, world), make_plans(short, other)
    assert np.array_equal(first.firm[:, :, :201], second.firm[:, :, :201])
    assert not np.array_equal(first.firm, second.firm)


def test_plans_in_a_batch_are_the_plans_one_by_one(stage: Stage) -> None:
    plans, world = stage.plans, stage.world
    assert plans is not None
    for pool in range(2):
        for step in range(3, world.steps - world.first, 97):
            plan = make_plan(world.curve(pool, world.first + step), plans.model(pool, step))
            for place, (_, ask) in enumerate(ASKS):
                ahead = ask.lead_hours * 12
                at = min(ahead, len(plan.firm[ask.hours]) - 1)
                if at == ahead:
                    assert plans.firm[place, pool, step] == plan.firm[ask.hours][ahead]


def test_a_law_that_is_broken_is_said(stage: Stage) -> None:
    scenario_, world, requests = stage.scenario, stage.world, stage.requests

    class Greedy(Simulation):
        """Keeps a lease that it should have let go, and forgets a hold."""

        def leave(self, rows: object, now: int, **_: object) -> None:
            """Does nothing."""

    run = Greedy(scenario_, world, requests, stage.plans, seed=1)
    played = run.run()
    assert played.broken_laws["internal_first"] > 0
    assert played.shortage_share > 0


def test_money_that_vanishes_is_noticed(stage: Stage) -> None:
    class Leaky(Simulation):
        def _hold_next(self, now: int) -> None:
            super()._hold_next(now)
            self.till.book.debits_posted[1] -= 1

    run = Leaky(stage.scenario, stage.world, stage.requests, stage.plans, seed=1)
    assert run.run().broken_laws["money"] > 0


def test_made_up_demand_moves_like_that_of_real_clusters() -> None:
    """As measured on public traces: three quarters in use, and rises of a few hundredths."""
    calm = replace(scenario(), failures=replace(scenario().failures, node_days=0), days=14)
    calm = replace(
        calm, pools=tuple(replace(pool, gpus=1_000, demand=Demand()) for pool in calm.pools)
    )
    share = make_world(calm, 3).demand / 1_000
    rise = np.maximum(np.diff(share, axis=1), 0)
    assert 0.65 < share.mean() < 0.85
    assert 0.85 < np.quantile(share, 0.95) <= 1
    assert 0.02 < np.quantile(rise, 0.99) < 0.06


def test_requests_do_not_depend_on_the_rules(stage: Stage) -> None:
    again = make_requests(stage.scenario, stage.world, 1)
    assert np.array_equal(again.at, stage.requests.at)
    assert bool((np.diff(again.at) >= 0).all())
