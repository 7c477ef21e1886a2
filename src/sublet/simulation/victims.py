"""Which leases give way, chosen on columns, for many leases at once.

A test holds the rule `loss` to `leases.reclaim.choose`: tiers and promises, credit owed, turns of
tenants, work since the last checkpoint, whole nodes before fragments. On which nodes a lease is
nobody knows here, so how many GPUs it has decides. The other orders are those of others.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sublet.leases.reclaim import LATELY
from sublet.ledger.columns import charge_each
from sublet.simulation.money import HOUR
from sublet.simulation.rules import Rules
from sublet.simulation.scenario import CONTRACT, INTERRUPTIBLE
from sublet.simulation.table import Ints, Leases

_LATELY: int = int(LATELY.total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What is known of the losses in one pool, beside the leases themselves."""

    lately: Mapping[int, int] = field(default_factory=dict)  # tenant → its reclaims, lately
    node_gpus: int = 1
    credit_share: float = 1.0  # of the price of what is left of a broken promise
    credit_cap_seconds: int = 2**40  # of it, at most


class Turns:
    """How often each tenant gave way in each pool, in the last day."""

    def __init__(self) -> None:
        self._gone: dict[int, deque[tuple[int, int]]] = defaultdict(deque)  # (when, tenant)
        self._times: dict[int, Counter[int]] = defaultdict(Counter)

    def note(self, pools: Ints, tenants: Ints, now: int) -> None:
        for pool, tenant in zip(pools.tolist(), tenants.tolist(), strict=True):
            self._gone[pool].append((now, tenant))
            self._times[pool][tenant] += 1

    def lately(self, pool: int, now: int) -> Mapping[int, int]:
        gone, times = self._gone[pool], self._times[pool]
        while gone and gone[0][0] < now - _LATELY:
            _, tenant = gone.popleft()
            times[tenant] -= 1
        return times


def choose(
    leases: Leases, rows: Ints, *, gpus: int, now: int, rules: Rules, losses: Losses
) -> Ints:
    """Return those of `rows` that go, so that at least `gpus` come free; all when too few.

    Args:
        leases: the table.
        rows: running leases of one pool that have not been told to go.
        gpus: how many must come free.
        now: in seconds since the epoch.
        rules: whose order it is.
        losses: what else is known.
    """
    size = leases.gpus[rows]
    rank = _rank(leases, rows, now=now, rules=rules)
    places = _order(leases, rows, rank, now=now, rules=rules, losses=losses)
    order = rows[places]
    freed = np.cumsum(leases.gpus[order])
    count = int(np.searchsorted(freed, gpus)) + 1
    chosen = order[: min(count, len(order))]
    left = int(leases.gpus[chosen].sum()) - gpus
    if not rules.spares or left < int(size.min(initial=left + 1)):
        return chosen
    # What was taken and turns out not to be needed is spared: what is firm first, then large ones.
    kept = []
    for place in np.lexsort((-leases.gpus[chosen], -rank[places[: len(chosen)]])).tolist():
        if int(leases.gpus[chosen[place]]) <= left:
            left -= int(leases.gpus[chosen[place]])
            kept.append(place)
    return np.delete(chosen, kept)


def work_lost(leases: Leases, rows: Ints, *, now: int) -> Ints:
    """Return the GPU-seconds since each began, or saved its work last."""
    ran = np.maximum(now - leases.running_at[rows], 0)
    every = leases.checkpoint[rows]
    unsafe = np.where(every > 0, ran % np.maximum(every, 1), ran)
    lost: Ints = leases.gpus[rows] * unsafe
    return lost


def _rank(leases: Leases, rows: Ints, *, now: int, rules: Rules) -> Ints:
    """Return how late each gives way: what is not firm, or is so no longer, first."""
    tier = leases.tier[rows]
    if not rules.tiers:
        return np.zeros(len(rows), dtype=np.int64)
    firm = (tier != INTERRUPTIBLE) & (leases.promised_until[rows] > now)
    return np.where(firm, tier, INTERRUPTIBLE)


def _order(
    leases: Leases, rows: Ints, rank: Ints, *, now: int, rules: Rules, losses: Losses
) -> Ints:
    started, request = leases.running_at[rows], leases.request[rows]
    # Older requests have lower numbers; a contract's are below nothing.
    if rules.victims == "oldest":
        return np.lexsort((request, started)).astype(np.int64)
    if rules.victims == "youngest":
        return np.lexsort((-request, -started)).astype(np.int64)
    work = work_lost(leases, rows, now=now)
    about = np.frexp((work // 60).astype(np.float64))[1]  # in powers of two of GPU-minutes
    fragment = leases.gpus[rows] % losses.node_gpus != 0
    owed = np.zeros(len(rows), dtype=np.int64)
    if rules.credits and (firm := rank > 0).any():
        owed[firm] = _owed(leases, rows[firm], now=now, losses=losses)
    by_loss = np.lexsort((request, work, fragment, about, owed, rank))
    # Each lease of a tenant counts for its next one as if it had given way already.
    tenant = leases.tenant[rows][by_loss]
    times = _place_of_each(tenant)
    if losses.lately:
        times = times + np.array([losses.lately.get(one, 0) for one in tenant.tolist()])
    turn = np.lexsort((times, owed[by_loss], rank[by_loss]))
    order: Ints = by_loss[turn].astype(np.int64)
    return order


def _owed(leases: Leases, rows: Ints, *, now: int, losses: Losses) -> Ints:
    """Return the nanos that would be credited for promises, were they broken now."""
    left = np.maximum(leases.promised_until[rows] - now, 0)
    some = (np.minimum(left, losses.credit_cap_seconds) * losses.credit_share).astype(np.int64)
    # A contract gives back by terms of its own, for as long as its step lasts.
    seconds = np.where(leases.tier[rows] == CONTRACT, left, some) * leases.gpus[rows]
    owed: Ints = charge_each(leases.rate[rows], HOUR, seconds)
    return owed


def _place_of_each(values: Ints) -> Ints:
    """Return how many equal values come before each."""
    order = np.argsort(values, kind="stable")
    of = values[order]
    new = np.ones(len(of), dtype=np.bool_)
    new[1:] = of[1:] != of[:-1]
    first = np.maximum.accumulate(np.where(new, np.arange(len(of)), 0))
    places = np.empty(len(of), dtype=np.int64)
    places[order] = np.arange(len(of)) - first
    return places
