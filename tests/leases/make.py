"""Leases to test with: one of each state, as its own moves would have made it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.leases import blocks
from sublet.leases.lease import MOVES, EndReason, Lease, LeaseId, Move, State
from sublet.market.price import Tier

NOON: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)
REQUESTED: Final = Lease(
    id=LeaseId(UUID(int=1)),
    tenant_id=UUID(int=2),
    pool="h200",
    gpus=8,
    tier=Tier.INTERRUPTIBLE,
    notice=10 * SECOND,
    price_id=1,
    max_duration=3600 * SECOND,
    requested_at=NOON,
    state=State.REQUESTED,
    since=NOON,
    version=1,
)
# How each state is reached, and when: the shortest way there.
_WAY: Final = (
    Move(to=State.ADMITTED, at=NOON),
    Move(to=State.PROVISIONING, at=NOON + SECOND),
    Move(to=State.RUNNING, at=NOON + 2 * SECOND),
    Move(to=State.DRAINING, at=NOON + 30 * SECOND, reason=EndReason.RELEASED),
    Move(to=State.ENDED, at=NOON + 31 * SECOND),
)


def lease_in(state: State, **changes: object) -> Lease:
    """Return a lease that has come to `state`; one that runs has paid for a minute."""
    lease = replace(REQUESTED, **changes)
    for move in _WAY:
        if lease.state is state:
            break
        assert move.to in MOVES[lease.state]
        at = move.at if lease.paid_until is None else min(move.at, lease.paid_until)
        lease = lease.move(replace(move, at=at))
        if lease.state is State.RUNNING:
            assert lease.running_at is not None
            until = blocks.paid_until(lease, blocks=1, running_at=lease.running_at)
            lease = replace(lease, paid_until=until)
    assert lease.state is state
    return lease
