"""The planner's promises for every pool and step, by models that are learnt as time goes on.

Models are `planner.plan.learn`, anew every some days on what had happened by then; promises are
`planner.batch.firm_at`, which says what `make_plan` would have said at each step. Internal
demand does not depend on what is sold, so both can be worked out before the clock starts; a test
changes the future and sees the same decisions before it.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sublet.planner.batch import Ask, firm_at
from sublet.planner.curve import Curve
from sublet.planner.plan import Model, Policy, learn
from sublet.simulation.demand import DAY_STEPS, World
from sublet.simulation.scenario import Scenario

# From so many hours ahead of a promised hour on, it is this promise that must hold.
ASKS: Final = (
    (1, Ask(hours=1)), (4, Ask(hours=4)), (24, Ask(hours=24)),
    (48, Ask(hours=24, lead_hours=24)), (96, Ask(hours=24, lead_hours=72)),
    (10**6, Ask(hours=24, lead_hours=168)),
)  # fmt: skip
_LEARNT_DAYS: Final = 28
_SIGNAL_DAYS: Final = 8
_FEW_POOLS: Final = 8  # which are planned in this process
WORKERS: Final = 2  # processes that plan more

Told = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    firm: NDArray[np.int32]  # shape (asks, pools, steps of the simulation): GPUs
    models: tuple[tuple[Model, ...], ...]  # by pool, then by the turn in which it was learnt
    learn_steps: int  # steps from one turn to the next

    def model(self, pool: int, step: int) -> Model:
        """Return what was known of a pool at a step of the simulation."""
        turns = self.models[pool]
        return turns[min(step // self.learn_steps, len(turns) - 1)]


def make_plans(scenario: Scenario, world: World, told: Told = lambda _what, _share: None) -> Plans:
    steps = world.steps - world.first
    every = max(round(scenario.conduct.learn_days * DAY_STEPS), 1)
    policy = Policy(confidence=scenario.conduct.confidence)
    tasks = [
        (world.curve(pool, world.steps), world.first, every, policy)
        for pool in range(len(scenario.pools))
    ]
    firm = np.zeros((len(ASKS), len(tasks), steps), dtype=np.int32)
    models = []
    results: Iterable[tuple[NDArray[np.int32], tuple[Model, ...]]] = map(_plan, tasks)
    executor = None
    if len(tasks) >= _FEW_POOLS and (os.cpu_count() or 1) >= WORKERS:
        executor = ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn"))
        results = executor.map(_plan, tasks, chunksize=4)
    try:
        for pool, (promised, learnt) in enumerate(results):
            firm[:, pool] = promised
            models.append(learnt)
            told("planning", (pool + 1) / len(tasks))
    finally:
        if executor is not None:
            executor.shutdown(cancel_futures=True)
    return Plans(firm=firm, models=tuple(models), learn_steps=every)


def _plan(
    task: tuple[Curve, int, int, Policy],
) -> tuple[NDArray[np.int32], tuple[Model, ...]]:
    """Plan one pool throughout, each stretch by what was learnt when it began."""
    curve, first, every, policy = task
    out = np.zeros((len(ASKS), len(curve) - first), dtype=np.int32)
    models = []
    for start in range(first, len(curve), every):
        end = min(start + every, len(curve))
        # The step's own sample is not seen: a plan rests on the last one before it.
        model = learn(_cut(curve, max(start - _LEARNT_DAYS * DAY_STEPS, 0), start), policy)
        models.append(model)
        back = max(start - _SIGNAL_DAYS * DAY_STEPS, 0)
        seen = _cut(curve, back, end)
        slots = np.arange(max(start - back, 1), end - back, dtype=np.int64)
        out[:, end - first - len(slots) : end - first] = firm_at(
            seen, model, slots, [ask for _, ask in ASKS]
        )
    return out, tuple(models)


def _cut(curve: Curve, start: int, end: int) -> Curve:
    return replace(
        curve,
        start=curve.start + start * curve.step_seconds,
        total=curve.total[start:end],
        running=curve.running[start:end],
    )
