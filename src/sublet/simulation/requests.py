"""Who asks for a lease, when, for how long and at what price: drawn once, for all rules alike.

Declared synthetic: no public data on arrivals of leases exists. Requests come as a Poisson
stream with a daily cycle; lengths and offers are log-normal; offers follow the scenario's path
of prices. A tenant pays what it offers where it is admitted, unless the rules set the price.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sublet.core.money import NANOS
from sublet.simulation.demand import DAY_STEPS, World
from sublet.simulation.scenario import RESERVED, STEP, Scenario

Ints = NDArray[np.int64]
_CYCLE: Final = 0.3  # height of the daily cycle of arrivals
_LONGEST_HOURS: Final = 24 * 30
_STEP_NANOS: Final = NANOS // 1000  # offers are in tenths of a cent


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Columns of requests in order of arrival; times in seconds since the epoch."""

    at: Ints
    pool: Ints
    tier: Ints
    tenant: Ints
    gpus: Ints
    seconds: Ints  # asked for
    starts_at: Ints  # `at`, or later where it is reserved
    offer: Ints  # nanos per GPU-hour
    checkpoint: Ints  # seconds between two checkpoints; 0: none
    resumable: NDArray[np.bool_]
    first: Ints  # index of the first request of each step, shape (steps + 1,)

    def __len__(self) -> int:
        return len(self.at)


def make_requests(scenario: Scenario, world: World, seed: int) -> Requests:
    steps = world.steps - world.first
    start = world.start + world.first * STEP
    parts = []
    for kind, spec in enumerate(scenario.arrivals):
        dice = np.random.default_rng([seed, 2, kind])
        count = int(dice.poisson(spec.per_day * scenario.days))
        at = start + _moments(count, steps, dice)
        days = (at - start) / 86_400
        level = _level(scenario.prices, days)
        offer = spec.offer_nanos * level * np.exp(dice.normal(0.0, spec.offer_spread, count))
        hours = spec.hours * np.exp(dice.normal(0.0, spec.hours_spread, count))
        seconds = np.rint(np.clip(hours, 0.1, _LONGEST_HOURS) * 60) * 60
        ahead = dice.uniform(0.5, max(spec.ahead_hours, 0.5), count) * 3_600
        starts_at = at + (ahead if spec.tier == RESERVED else 0)
        if spec.tier == RESERVED:  # windows start and end on the hour
            starts_at, seconds = (
                np.ceil(starts_at / 3_600) * 3_600,
                np.ceil(seconds / 3_600) * 3_600,
            )
        parts.append(
            {
                "at": at,
                "pool": np.array(spec.pools)[dice.integers(len(spec.pools), size=count)],
                "tier": np.full(count, spec.tier),
                "tenant": dice.integers(scenario.tenants.count, size=count),
                "gpus": np.array(spec.gpus)[dice.integers(len(spec.gpus), size=count)],
                "seconds": seconds,
                "starts_at": starts_at,
                "offer": np.maximum(np.rint(offer / _STEP_NANOS), 1) * _STEP_NANOS,
                "checkpoint": np.full(count, round(spec.checkpoint_hours * 3_600)),
                "resumable": dice.random(count) < spec.resumable,
            }
        )
    empty = {name: np.zeros(0) for name in _NAMES}
    every = {name: np.concatenate([part[name] for part in parts or [empty]]) for name in _NAMES}
    order = np.argsort(every["at"], kind="stable")
    columns = {name: every[name][order].astype(np.int64) for name in _NAMES if name != "resumable"}
    edges = start + np.arange(steps + 1) * STEP
    return Requests(
        **columns,
        resumable=every["resumable"][order].astype(np.bool_),
        first=np.searchsorted(columns["at"], edges).astype(np.int64),
    )


_NAMES: Final = (
    "at", "pool", "tier", "tenant", "gpus", "seconds", "starts_at", "offer", "checkpoint",
    "resumable",
)  # fmt: skip


def _moments(count: int, steps: int, dice: np.random.Generator) -> Ints:
    """Draw moments in whole seconds from the start on, more of them by day than by night."""
    of_day = np.arange(steps) % DAY_STEPS / DAY_STEPS
    weight = 1 + _CYCLE * np.sin(2 * np.pi * (of_day - 0.375))
    step = dice.choice(steps, count, p=weight / weight.sum())
    moments: Ints = (step * STEP + dice.integers(0, STEP, count)).astype(np.int64)
    return moments


def _level(path: tuple[tuple[float, float], ...], days: NDArray[np.float64]) -> NDArray[np.float64]:
    if not path:
        return np.ones(len(days))
    level: NDArray[np.float64] = np.interp(days, [day for day, _ in path], [at for _, at in path])
    return level
