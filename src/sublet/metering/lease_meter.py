"""Turning the seconds of leases into usage and charges, a block at a time."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.db import Database, Tx
from sublet.core.errors import Conflict, Unpaid
from sublet.core.failpoint import failpoint
from sublet.core.ids import derived_id
from sublet.core.money import Money, Rate
from sublet.leases import blocks
from sublet.leases.blocks import BLOCK_SECONDS, Block
from sublet.leases.lease import LEAVING, EndReason, Lease, State
from sublet.ledger import store as ledger
from sublet.market import store as market
from sublet.market.price import Tier
from sublet.metering import store
from sublet.metering.credits import Broken, give
from sublet.metering.usage import Line, Outcome, Usage

_TOGETHER: Final = 500  # leases that are settled in one transaction
# What was sold before there were minimum runs gets its last minutes back when it is reclaimed.
_BEFORE_SECONDS: Final = 600

_OUTCOMES: Final = {
    EndReason.RECLAIMED: Outcome.RECLAIMED,
    EndReason.NODE_LOST: Outcome.FAILED,
    EndReason.START_FAILED: Outcome.FAILED,
}


def settle_blocks(lease: Lease, *, db: Database, seen_until: datetime, now: datetime) -> None:
    """Charge every held block that is over, and all of them once the lease is.

    A lease that was reclaimed is credited with it; see `credit_reclaimed`.

    Args:
        lease: as it stands now.
        db: each block is settled in a transaction of its own.
        seen_until: the instant until which the engine is known to have run it. A block is
            over only then: a process found dead later may have died inside it.
        now: the present instant.

    Raises:
        Unpaid: a block's hold is gone and its wallet cannot pay; all others are settled.
        Unavailable: the database did not answer.
    """
    over = lease.state in LEAVING
    if not _is_due(lease):
        return
    with db.transaction() as tx:
        open_blocks = blocks.list_open(tx, [lease]).get(lease.id, [])
    if over and open_blocks:
        # Before its last block is settled: an unsettled block is what brings us back here
        # after a crash, so neither the charge nor the credit can be forgotten.
        credit_reclaimed(lease, db=db, now=now)
    unpaid: Unpaid | None = None
    for block in open_blocks:
        if not over and block.number >= blocks.over(lease, seen_until=seen_until):
            continue
        try:
            with db.transaction("lease.settle") as tx:
                _settle(tx, lease, block, now=now)
        except Unpaid as error:
            unpaid = error
    if unpaid is not None:
        raise unpaid


def settle_together(
    seen: Sequence[tuple[Lease, datetime]], *, db: Database, now: datetime
) -> list[Lease]:
    """Charge the blocks that are over of many leases, a few hundred in one transaction.

    Args:
        seen: leases, and until when the engine is known to have run each.
        db: where.
        now: the present instant.

    Returns:
        leases that must be settled by themselves: a credit is due to them, the hold of a block is
        gone, or it was settled a moment ago.

    Raises:
        Unavailable: the database did not answer.
    """
    apart = [lease for lease, _ in seen if _may_be_credited(lease)]
    plain = [one for one in seen if _is_due(one[0]) and not _may_be_credited(one[0])]
    for begin in range(0, len(plain), _TOGETHER):
        some = plain[begin : begin + _TOGETHER]
        try:
            with db.transaction("lease.settle_together") as tx:
                _settle_together(tx, some, now=now)
        except _Apart:
            apart += [lease for lease, _ in some]
    return apart


def _is_due(lease: Lease) -> bool:
    """Say whether a lease has begun to cost anything, or never will."""
    return lease.running_at is not None or lease.state is State.ENDED


def _may_be_credited(lease: Lease) -> bool:
    return lease.tier is Tier.ON_DEMAND and lease.end_reason is EndReason.RECLAIMED


class _Apart(Exception):
    """Of many, one is not as the others: the transaction is undone, and each has one of its own."""


def _settle_together(tx: Tx, seen: Sequence[tuple[Lease, datetime]], *, now: datetime) -> None:
    open_blocks = blocks.list_open(tx, [lease for lease, _ in seen])
    over = [
        (lease, block)
        for lease, until in seen
        for block in open_blocks.get(lease.id, ())
        if lease.state in LEAVING or block.number < blocks.over(lease, seen_until=until)
    ]
    if not over:
        return
    wanted = {lease.price_id for lease, _ in over}
    prices = {price_id: market.get_price(tx, price_id) for price_id in sorted(wanted)}
    charges, voids = [], []
    for lease, block in over:
        usage = _usage(lease, block.number, now=now)
        if usage.gpu_seconds:
            line = Line(price=prices[lease.price_id], quantity=usage.gpu_seconds)
            charges.append(store.Charge(usage=usage, line=line, hold_id=block.hold_id))
        else:
            voids.append(block.hold_id)
    if not store.settle_many(tx, charges, voids=voids, now=now):
        raise _Apart
    failpoint("lease.settle_together.before_close")
    blocks.close(tx, [(lease.id, block.number) for lease, block in over])


def _usage(lease: Lease, block: int, *, now: datetime) -> Usage:
    return Usage(
        id=derived_id(lease.id, "usage", block),
        source=f"lease:{lease.id}",
        sequence=block,
        tenant_id=lease.tenant_id,
        lease_id=lease.id,
        gpu_seconds=lease.gpus * blocks.used_seconds(lease, block, until=now),
        outcome=_outcome(lease),
        happened_at=min(now, lease.stopped_at or now),
    )


def _settle(tx: Tx, lease: Lease, block: Block, *, now: datetime) -> None:
    usage = _usage(lease, block.number, now=now)
    if usage.gpu_seconds == 0:
        # Expired, it has returned its money already.
        with suppress(Conflict), tx.transaction():
            ledger.void(tx, block.hold_id, now=now)
    else:
        line = Line(price=market.get_price(tx, lease.price_id), quantity=usage.gpu_seconds)
        store.settle(tx, usage, [line], hold_id=block.hold_id, now=now)
    failpoint("lease.settle.before_close")
    blocks.close(tx, [(lease.id, block.number)])


def _outcome(lease: Lease) -> Outcome:
    if lease.end_reason is None:
        return Outcome.COMPLETED
    return _OUTCOMES.get(lease.end_reason, Outcome.COMPLETED)


def credit_id(lease_id: UUID) -> UUID:
    return derived_id(lease_id, "credit", "reclaimed")


def credit_of(lease: Lease, rate: Rate) -> Money:
    """Return what a firm lease that was reclaimed gets: the price of what was left of its promise.

    As many per cent of it as were agreed, and never more than the price of the whole promise.
    """
    if lease.running_at is None or lease.stopped_at is None:
        return Money(0)
    if lease.firm is None:
        return _credit_of_before(lease, lease.running_at, lease.stopped_at, rate)
    second = timedelta(seconds=1)
    whole = lease.firm // second
    left = max(whole - (lease.stopped_at - lease.running_at) // second, 0)
    agreed = Rate(nanos=rate.nanos * lease.credit_percent, per=rate.per * 100)
    credit = agreed.charge(lease.gpus * left)
    return min(credit, rate.charge(lease.gpus * whole), key=lambda money: money.nanos)


def _credit_of_before(lease: Lease, start: datetime, end: datetime, rate: Rate) -> Money:
    """Return what was credited before there were minimum runs: the last ten minutes' charges."""
    seconds = (end - start) // timedelta(seconds=1)
    # Never more than was charged, which was rounded a block at a time.
    last = range(-(-min(seconds, _BEFORE_SECONDS) // BLOCK_SECONDS))
    charged = sum(
        rate.charge(lease.gpus * blocks.used_seconds(lease, block, until=end)).nanos
        for block in last
    )
    whole = rate.charge(lease.gpus * min(seconds, _BEFORE_SECONDS))
    return Money(min(whole.nanos, charged), whole.currency)


def credit_reclaimed(lease: Lease, *, db: Database, now: datetime) -> Money:
    """Credit an on-demand lease for a promise that was broken, once.

    Returns:
        what was credited, now or before; zero for every other lease.
    """
    if lease.tier is not Tier.ON_DEMAND or lease.end_reason is not EndReason.RECLAIMED:
        return Money(0)
    with db.transaction() as tx:
        credit = credit_of(lease, market.get_price(tx, lease.price_id).rate)
        if not credit.nanos:
            return credit
        assert lease.running_at is not None
        assert lease.stopped_at is not None
        broken = Broken(
            transfer_id=credit_id(lease.id),
            tenant_id=lease.tenant_id,
            pool=lease.pool,
            lease=lease,
            reservation_id=None,
            gpus=lease.gpus,
            broken_at=lease.stopped_at,
            promised_until=lease.firm_until or lease.running_at + lease.max_duration,
            percent=lease.credit_percent,
            price_id=lease.price_id,
            amount=credit,
        )
        give(tx, broken, now=now)
    return credit
