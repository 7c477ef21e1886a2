"""Made-up pools for the planner's tests."""

import numpy as np

from sublet.planner.curve import Curve, Floats

MONDAY = 1_767_571_200  # 2026-01-05


def pool(running: Floats, total: float | Floats, *, step_seconds: int = 3_600) -> Curve:
    capacity = np.broadcast_to(np.asarray(total, dtype=np.float64), running.shape).copy()
    return Curve(
        start=MONDAY, step_seconds=step_seconds, total=capacity, running=running.astype(np.float64)
    )


def wandering(seed: int, *, days: int = 24, gpus: int = 200, step_seconds: int = 3_600) -> Curve:
    """A pool whose demand wanders about its half."""
    dice = np.random.default_rng(seed)
    steps = days * 86_400 // step_seconds
    demand = np.zeros(steps)
    demand[0] = gpus / 2
    for step in range(1, steps):
        pull = 0.03 * (gpus / 2 - demand[step - 1])
        demand[step] = np.clip(demand[step - 1] + pull + dice.normal(0, gpus / 50), 0, gpus)
    return pool(np.round(demand), gpus, step_seconds=step_seconds)
