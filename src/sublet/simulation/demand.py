"""What each pool has and what its internal jobs want, at every step: a file's curve, or made up.

The generator adds a level that wanders for days, a daily cycle, and jobs that come at random:
many small and few large, most short and some for days. Its defaults are calibrated to public
statistics of real clusters: a mean use of three quarters, and a rise within five minutes of
some hundredths of a pool once in a hundred steps. A test holds it to that.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sublet.core.errors import Invalid
from sublet.planner.curve import HOUR_SECONDS, Columns, Curve, Floats, read_curve
from sublet.planner.signals import held
from sublet.simulation.scenario import STEP, Demand, Pool, Scenario

Counts = NDArray[np.int64]
DAY_STEPS: Final = 86_400 // STEP
_HOUR_STEPS: Final = HOUR_SECONDS // STEP
_LEVEL_DAYS: Final = 4.0  # over which the level forgets where it was
_JOB_SPREAD: Final = 1.3  # of the logarithm of a job's length
_LONGEST_JOB_HOURS: Final = 72.0
_SIZE_POWER: Final = 1.4  # doubling a job's size makes it rarer by this power of two
_JOB_UNIT: Final = 8  # GPUs: one node


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What nobody can influence. Arrays have shape (pools, steps); the first ones are warm-up."""

    start: int  # seconds since the epoch, of step 0
    first: int  # step at which the simulation starts
    total: Counts  # healthy GPUs
    demand: Counts  # GPUs that internal jobs hold or wait for

    @property
    def steps(self) -> int:
        return int(self.total.shape[1])

    def curve(self, pool: int, until: int, *, since: int = 0) -> Curve:
        """Return what a planner has seen of a pool before step `until`."""
        total = self.total[pool, since:until].astype(np.float64)
        running = self.demand[pool, since:until].astype(np.float64)
        start = self.start + since * STEP
        return Curve(start=start, step_seconds=STEP, total=total, running=running)


def make_world(scenario: Scenario, seed: int) -> World:
    """Draw the fleet's fate. The same seed draws the same, pool by pool."""
    midnight = datetime.combine(scenario.start, time(), UTC)
    first = scenario.warmup_days * DAY_STEPS
    steps = first + scenario.days * DAY_STEPS
    start = int(midnight.timestamp()) - first * STEP
    shape = (len(scenario.pools), steps)
    total, demand = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for place, pool in enumerate(scenario.pools):
        dice = np.random.default_rng([seed, 1, place])
        wanted = _demand(pool, pool.demand, start=start, steps=steps, dice=dice)
        total[place] = pool.gpus - _down(scenario, pool, steps=steps, dice=dice)
        for event in scenario.events:
            if place in event.pools:
                at = first + round(event.day * DAY_STEPS)
                length = max(round(event.hours * HOUR_SECONDS / STEP), 1)
                if event.kind == "site_down":
                    total[place, at : at + length] = 0
                else:
                    ramp = np.clip((np.arange(steps) - at + 1) / length, 0.0, 1.0)
                    sign = 1.0 if event.kind == "launch" else -1.0
                    wanted += sign * event.share * pool.gpus * ramp
        demand[place] = np.clip(np.rint(wanted), 0, pool.gpus)
    return World(start=start, first=first, total=total, demand=demand)


def _demand(
    pool: Pool, spec: Demand, *, start: int, steps: int, dice: np.random.Generator
) -> Floats:
    if spec.file is not None:
        return _from_file(pool, spec, steps=steps, dice=dice)
    mean = spec.mean * pool.gpus
    at = (start + np.arange(steps) * STEP) % 86_400 / 86_400
    cycle = spec.day * pool.gpus * np.sin(2 * np.pi * (at - 0.375))
    wander = spec.drift * pool.gpus * _wander(steps, dice)
    jobs = _jobs(pool, spec, load=mean * spec.jobs, steps=steps, dice=dice)
    return mean * (1 - spec.jobs) + cycle + wander + jobs


def _wander(steps: int, dice: np.random.Generator) -> Floats:
    """Draw a level that forgets, of variance one, from hour to hour."""
    hours = -(-steps // _HOUR_STEPS) + 1
    keep = float(np.exp(-1 / (24 * _LEVEL_DAYS)))
    noise = dice.normal(0.0, np.sqrt(1 - keep**2), hours)
    level = np.empty(hours)
    last = float(dice.normal())
    for hour in range(hours):
        last = keep * last + float(noise[hour])
        level[hour] = last
    out: Floats = np.interp(np.arange(steps), np.arange(hours) * _HOUR_STEPS, level)
    return out


def _jobs(
    pool: Pool, spec: Demand, *, load: float, steps: int, dice: np.random.Generator
) -> Floats:
    """Draw jobs that hold `load` GPUs on average, and return how many they want at each step."""
    doublings = max(int(np.log2(max(spec.largest * pool.gpus / _JOB_UNIT, 1.0))), 0)
    sizes = _JOB_UNIT * 2.0 ** np.arange(doublings + 1)
    if sizes[0] > pool.gpus:
        sizes = np.array([1.0])
    odds = 2.0 ** (-_SIZE_POWER * np.arange(len(sizes)))
    odds /= odds.sum()
    before = int(_LONGEST_JOB_HOURS * _HOUR_STEPS)  # those that run already when it begins
    trial = np.minimum(
        spec.hours * np.exp(dice.normal(0.0, _JOB_SPREAD, 4_000)), _LONGEST_JOB_HOURS
    )
    each = float(sizes @ odds) * float(trial.mean()) * _HOUR_STEPS  # GPU-steps
    count = int(dice.poisson(load * (steps + before) / each)) if load > 0 else 0
    begins = dice.integers(-before, steps, count)
    lasts = spec.hours * np.exp(dice.normal(0.0, _JOB_SPREAD, count))
    lasts = np.maximum(np.rint(np.minimum(lasts, _LONGEST_JOB_HOURS) * _HOUR_STEPS), 1)
    gpus = sizes[dice.choice(len(sizes), count, p=odds)]
    ends = np.minimum(begins + lasts.astype(np.int64), steps)
    change = np.zeros(steps + 1)
    np.add.at(change, np.clip(begins, 0, steps), gpus)
    np.subtract.at(change, np.clip(ends, 0, steps), gpus)
    held_gpus: Floats = np.cumsum(change)[:steps]
    return held_gpus


def _from_file(pool: Pool, spec: Demand, *, steps: int, dice: np.random.Generator) -> Floats:
    """Scale a curve's shares to the pool, from a place drawn, again and again."""
    assert spec.file is not None
    curve = read_curve(spec.file, columns=Columns())
    share = held(curve.running) / np.maximum(held(curve.total), 1.0)
    share = share[~np.isnan(share)]
    if len(share) < 2:
        raise Invalid(f"{spec.file} has no two samples")
    at = np.arange(steps) * STEP / curve.step_seconds + int(dice.integers(len(share)))
    out: Floats = np.clip(share[at.astype(np.int64) % len(share)], 0.0, 1.0) * pool.gpus
    return out


def _down(scenario: Scenario, pool: Pool, *, steps: int, dice: np.random.Generator) -> Counts:
    """Draw GPUs on nodes that have failed and are not repaired yet, at each step."""
    spec = scenario.failures
    if spec.node_days <= 0:
        return np.zeros(steps, dtype=np.int64)
    nodes = max(pool.gpus // spec.node_gpus, 1)
    count = int(dice.poisson(nodes * steps / DAY_STEPS / spec.node_days))
    begins = dice.integers(0, steps, count)
    lasts = np.ceil(dice.exponential(spec.repair_hours * _HOUR_STEPS, count)).astype(np.int64)
    change = np.bincount(begins, minlength=steps + 1).astype(np.int64)
    change = change - np.bincount(np.minimum(begins + lasts, steps), minlength=steps + 1)
    down = np.cumsum(change)[:steps] * min(spec.node_gpus, pool.gpus)
    return np.minimum(down, pool.gpus).astype(np.int64)
