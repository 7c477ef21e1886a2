"""What nobody can beat: the most that the same requests could have paid, knowing all of them.

A linear programme: in every hour and pool, GPU-time that internal jobs leave idle is given to
requests, at what they offer; each may be served in any part, paused and resumed at no cost. Its
rows do not share columns between hours, so its optimum is found by filling each hour with the
highest offers first. It allows more than any real seller may do within the hours that a request
asked for; what comes back after an eviction, and runs later than that, is not in it.
"""

from datetime import UTC, datetime
from typing import Final

import numpy as np

from sublet.planner.curve import Floats
from sublet.simulation.demand import World
from sublet.simulation.requests import Requests
from sublet.simulation.scenario import STEP, Contract, Pool, Scenario

_HOUR: Final = 3_600


def clairvoyant(scenario: Scenario, world: World, requests: Requests) -> int:
    """Return the bound in nanos."""
    return sum(_of_pool(scenario, world, requests, pool) for pool in range(len(scenario.pools)))


def _of_pool(scenario: Scenario, world: World, requests: Requests, pool: int) -> int:
    spec = scenario.pools[pool]
    if not spec.lendable:
        return 0
    start = world.start + world.first * STEP
    total, demand = world.total[pool, world.first :], world.demand[pool, world.first :]
    idle = np.maximum(total - demand, 0)
    if spec.lending_limit is not None:
        idle = np.minimum(idle, spec.lending_limit)
    room = idle.reshape(-1, _HOUR // STEP).sum(axis=1).astype(np.float64) * STEP
    hours = len(room)
    floor = spec.cost.floor(spec.full_cost).nanos
    mine = np.flatnonzero((requests.pool == pool) & (requests.offer >= floor))
    begins, offers = requests.starts_at[mine] - start, requests.offer[mine]
    ends, gpus = begins + requests.seconds[mine], requests.gpus[mine]
    asked = tuple(one.astype(np.float64) for one in (begins, ends, gpus, offers))
    parts: list[tuple[Floats, ...]] = [asked]
    parts += [_contract(one, spec, start) for one in scenario.contracts if pool in one.pools]
    begins, ends, gpus, offers = (
        np.concatenate([part[n] for part in parts]).astype(np.int64) for n in range(4)
    )
    ends = np.minimum(ends, hours * _HOUR)
    rows = np.flatnonzero(ends > begins)
    first, last = begins[rows] // _HOUR, -(-ends[rows] // _HOUR)
    count = last - first
    which = np.repeat(rows, count)
    hour = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    hour += np.repeat(first, count)
    seconds = np.minimum(ends[which], (hour + 1) * _HOUR) - np.maximum(begins[which], hour * _HOUR)
    work = (seconds * gpus[which]).astype(np.float64)
    order = np.lexsort((-offers[which], hour))
    hour, work, offer = hour[order], work[order], offers[which][order].astype(np.float64)
    upto = np.cumsum(work)
    edges = np.searchsorted(hour, np.arange(hours))
    before = np.concatenate([[0.0], upto])[edges]
    filled = np.minimum(upto - before[hour], room[hour])
    earlier = np.minimum(upto - work - before[hour], room[hour])
    return round(float(((filled - earlier) * offer).sum()) / _HOUR)


def _contract(spec: Contract, pool: Pool, start: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Return a contract's steps as requests, until its end or its recall."""
    first = datetime.fromtimestamp(start, UTC)
    signed, recalled = spec.as_signed(first, pool), spec.recalled_at(first)
    if signed is None:
        none = np.zeros(0)
        return none, none, none, none
    last = signed.ends_at
    if recalled is not None and recalled < last:
        last = signed.end_by("operator", recalled)
    begins = np.array([(step.starts_at - first).total_seconds() for step in signed.steps])
    ends = [(min(signed.end_of(n), last) - first).total_seconds() for n in range(len(begins))]
    gpus = np.array([float(step.gpus) for step in signed.steps])
    return begins, np.array(ends), gpus, np.full(len(begins), float(spec.nanos))
