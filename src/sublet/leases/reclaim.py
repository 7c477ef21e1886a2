"""Which leases give way when others need their GPUs: those whose loss is least."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from heapq import heapify, heappop, heappush
from typing import Final
from uuid import UUID

from sublet.core.money import Rate
from sublet.leases.lease import Lease, State

# For so long a tenant that gave way goes after those that did not.
LATELY: Final = timedelta(days=1)
_CAN_GO: Final = frozenset({State.ADMITTED, State.PROVISIONING, State.RUNNING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What is known of the losses in one pool, beside the leases themselves."""

    rates: Mapping[int, Rate] = field(default_factory=dict)  # by price
    lately: Mapping[UUID, int] = field(default_factory=dict)  # tenant → its reclaims, lately
    node_gpus: int = 1  # of the pool's largest node

    def owed(self, lease: Lease, now: datetime) -> int:
        """Return the nanos that would be credited for a promise, were it broken now."""
        if not lease.is_firm(now):
            return 0
        until = lease.until or lease.firm_until or now
        seconds = max(until - now, timedelta(0)) // timedelta(seconds=1)
        rate = self.rates.get(lease.price_id, Rate(nanos=1, per=1))
        price = Fraction(rate.nanos * lease.gpus * seconds, rate.per)
        return int(price * lease.credit_percent / 100)


NOTHING_KNOWN: Final = Losses()


def choose(
    leases: Sequence[Lease], *, gpus: int, now: datetime, losses: Losses = NOTHING_KNOWN
) -> list[Lease]:
    """Return leases that free at least `gpus` GPUs, the least loss first.

    What is not firm goes first, then on-demand leases, then reserved ones, and contracts last.
    Within them by what would be credited; then tenants take turns, those first that gave way
    least; then by the work that is lost since the last checkpoint; then whole nodes before
    fragments; then in the order of request. What the choice turns out not to need is spared
    again, so that one large lease does not take three small ones with it.

    Args:
        leases: of one pool, any state; only those that have not been told to go are chosen.
        gpus: how many must come free. All that can go, go, when there are too few.
        now: the present instant.
        losses: what else is known.
    """
    of_tenant: dict[UUID, list[tuple[_Key, Lease]]] = defaultdict(list)
    for lease in leases:
        if lease.state in _CAN_GO and lease.release_asked is None:
            of_tenant[lease.tenant_id].append((_key(lease, now, losses), lease))
    turns = []
    for tenant, those in of_tenant.items():
        those.sort(key=lambda one: one[0], reverse=True)  # the next one is at the end
        turns.append(_turn(those, losses.lately.get(tenant, 0)))
    heapify(turns)
    chosen: list[Lease] = []
    freed = 0
    while turns and freed < gpus:
        _, _, times, _, tenant = heappop(turns)
        _, lease = of_tenant[tenant].pop()
        chosen.append(lease)
        freed += lease.gpus
        if of_tenant[tenant]:
            heappush(turns, _turn(of_tenant[tenant], times + 1))
    spared = set()
    for lease in sorted(chosen, key=lambda lease: (-lease.rank(now), -lease.gpus)):
        if freed - lease.gpus >= gpus:
            spared.add(lease.id)
            freed -= lease.gpus
    return [lease for lease in chosen if lease.id not in spared]


# Rank, credit, GPU-seconds of work lost, is it a fragment?, when it was asked for, id.
_Key = tuple[int, int, float, bool, datetime, UUID]
# Rank and credit of a tenant's next lease, how often the tenant gave way, the rest, the tenant.
_Turn = tuple[int, int, int, tuple[float, bool, datetime, UUID], UUID]


def _key(lease: Lease, now: datetime, losses: Losses) -> _Key:
    safe_until = max(lease.running_at or now, lease.checkpoint_at or lease.running_at or now)
    return (
        lease.rank(now),
        losses.owed(lease, now),
        lease.gpus * max((now - safe_until).total_seconds(), 0.0),
        lease.gpus % losses.node_gpus != 0,
        # As Slurm's own preemption has it: should it choose beside us, it chooses the same.
        lease.requested_at,
        lease.id,
    )


def _turn(those: Sequence[tuple[_Key, Lease]], times: int) -> _Turn:
    (rank, owed, work, fragment, requested_at, id_), lease = those[-1]
    return (rank, owed, times, (work, fragment, requested_at, id_), lease.tenant_id)
