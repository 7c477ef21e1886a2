"""Which leases give way when others need their GPUs: those whose loss is least."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from operator import itemgetter
from typing import Final
from uuid import UUID

from sublet.core.money import Rate
from sublet.fleet.topology import Shape, Topology
from sublet.leases.lease import Lease, State

# For so long a tenant that gave way goes after those that did not.
LATELY: Final = timedelta(days=1)
_CAN_GO: Final = frozenset({State.ADMITTED, State.PROVISIONING, State.RUNNING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What is known of the losses in one pool, beside the leases themselves."""

    rates: Mapping[int, Rate] = field(default_factory=dict)  # by price
    lately: Mapping[UUID, int] = field(default_factory=dict)  # tenant → its reclaims, lately
    topology: Topology = field(default_factory=Topology)
    placed: Mapping[UUID, Sequence[str]] = field(default_factory=dict)  # lease → its nodes

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
    least; then by the work that is lost since the last checkpoint, of which what lies within a
    factor of two is alike; then whole blocks before whole nodes before fragments, and of those
    as many as can be of one block; then in the order of request. What the choice turns out not to
    need is spared again, so that one large lease does not take three small ones with it.

    Args:
        leases: of one pool, any state; only those that have not been told to go are chosen.
        gpus: how many must come free. All that can go, go, when there are too few.
        now: the present instant.
        losses: what else is known.
    """
    can_go = [one for one in leases if one.state in _CAN_GO and one.release_asked is None]
    places = _places(can_go, gpus, now, losses)
    keyed = [
        (_key(lease, place, now, losses), lease)
        for lease, place in zip(can_go, places, strict=True)
    ]
    order = sorted(keyed, key=itemgetter(0))
    # Each lease of a tenant counts for its next one as if it had given way already.
    times = Counter(losses.lately)
    turns = []
    for (rank, owed, *_), lease in order:
        turns.append((rank, owed, times[lease.tenant_id]))
        times[lease.tenant_id] += 1
    chosen: list[Lease] = []
    freed = 0
    for number in sorted(range(len(order)), key=turns.__getitem__):
        if freed >= gpus:
            break
        chosen.append(order[number][1])
        freed += chosen[-1].gpus
    spared = set()
    for lease in sorted(chosen, key=lambda lease: (-lease.rank(now), -lease.gpus)):
        if freed - lease.gpus >= gpus:
            spared.add(lease.id)
            freed -= lease.gpus
    return [lease for lease in chosen if lease.id not in spared]


# What comes free, and how early the block is in which it does.
_Place = tuple[Shape, int]
# Rank, credit, work lost in powers of two, place, GPU-seconds of work, when asked for, id.
_Key = tuple[int, int, int, _Place, float, datetime, UUID]


def _places(can_go: Sequence[Lease], gpus: int, now: datetime, losses: Losses) -> list[_Place]:
    """Return what each lease leaves free, and how early its block is among those like it.

    A job that spans nodes wants them in one block. So the smallest block of which enough can go
    is emptied first; where none is large enough, the largest. What one node gives is in one block
    anyway.
    """
    topology, placed = losses.topology, losses.placed
    if not topology.block_of or gpus <= topology.node_gpus:
        return [(topology.shape(one.gpus, placed.get(one.id, ())), 0) for one in can_go]
    shapes, blocks = [], []
    room: dict[tuple[int, int, str], int] = defaultdict(int)  # by rank, work lost and block
    for lease in can_go:
        on = placed.get(lease.id, ())
        shapes.append(topology.shape(lease.gpus, on))
        alike = lease.rank(now), about(work_lost(lease, now))
        block = topology.block(on)
        blocks.append(None if block is None else (*alike, block))
        if block is not None:
            room[*alike, block] += lease.gpus
    order = sorted(
        room, key=lambda of: (room[of] < gpus, room[of] if room[of] >= gpus else -room[of], of)
    )
    early = {of: number for number, of in enumerate(order)}
    return [
        (shape, len(order) if block is None else early[block])
        for shape, block in zip(shapes, blocks, strict=True)
    ]


def work_lost(lease: Lease, now: datetime) -> float:
    """Return the GPU-seconds since it began, or since its tenant said that its work is safe."""
    safe_until = max(lease.running_at or now, lease.checkpoint_at or lease.running_at or now)
    return lease.gpus * max((now - safe_until).total_seconds(), 0.0)


def about(work: float) -> int:
    """Return how much work it is, in powers of two of GPU-minutes: what is alike is as bad."""
    return int(work // 60).bit_length()


def _key(lease: Lease, place: _Place, now: datetime, losses: Losses) -> _Key:
    work = work_lost(lease, now)
    return (
        lease.rank(now),
        losses.owed(lease, now),
        about(work),
        place,
        work,
        # As Slurm's own preemption has it: should it choose beside us, it chooses the same.
        lease.requested_at,
        lease.id,
    )
