"""One world, one stream of requests, and any number of rules played on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sublet.simulation.clairvoyant import clairvoyant
from sublet.simulation.demand import World, make_world
from sublet.simulation.outcome import Outcome
from sublet.simulation.planning import Plans, Told, make_plans
from sublet.simulation.requests import Requests, make_requests
from sublet.simulation.rules import RULES
from sublet.simulation.run import Simulation, with_rules
from sublet.simulation.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Rules, and how prices are set under them; rules without prices of their own have both."""

    rules: str
    pricing: str

    @property
    def name(self) -> str:
        return self.rules if RULES[self.rules].pricing else f"{self.rules}, {self.pricing}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    variant: Variant
    seed: int
    outcome: Outcome
    clairvoyant_nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What all variants share."""

    scenario: Scenario
    seed: int
    world: World
    requests: Requests
    plans: Plans | None
    clairvoyant_nanos: int


def set_stage(
    scenario: Scenario,
    seed: int,
    *,
    plans: bool = True,
    told: Told = lambda _what, _share: None,
) -> Stage:
    """Draw a world and its requests, and plan it where somebody will ask for plans."""
    world = make_world(scenario, seed)
    requests = make_requests(scenario, world, seed)
    return Stage(
        scenario=scenario,
        seed=seed,
        world=world,
        requests=requests,
        plans=make_plans(scenario, world, told) if plans else None,
        clairvoyant_nanos=clairvoyant(scenario, world, requests),
    )


def play(
    stage: Stage,
    variants: Sequence[Variant],
    told: Told = lambda _what, _share: None,
    *,
    keep: bool = False,
) -> Iterator[Played]:
    """Play every variant on the same stage; `keep` what became of every lease, too."""
    for variant in variants:
        scenario = with_rules(stage.scenario, variant.rules, variant.pricing)
        run = Simulation(
            scenario, stage.world, stage.requests, stage.plans, seed=stage.seed, keep=keep
        )
        yield Played(
            variant=variant,
            seed=stage.seed,
            outcome=run.run(told),
            clairvoyant_nanos=stage.clairvoyant_nanos,
        )
