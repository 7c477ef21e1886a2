"""Paying for a lease a minute at a time: each minute is held before it is served.

Block `k` of a lease covers the seconds [60·k, 60·(k+1)) after it became usable, and never
more than it was sold for. While a block runs, the next one is held; when that cannot be
paid, the lease ends where the money does. The engine's own fence (its deadline) stands a
notice later, so that even with Sublet dead nothing runs on unpaid for long.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.db import Tx, one
from sublet.core.failpoint import failpoint
from sublet.core.ids import derived_id
from sublet.core.money import Rate
from sublet.leases.lease import Lease
from sublet.leases.store import QUERIES
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer

BLOCK_SECONDS: Final = 60
# How long before the held minutes end the next one is held.
AHEAD: Final = timedelta(seconds=20)
# Never, in effect: the row of the block leads us back to its hold, however long we were away. An
# earlier end would let a wallet be emptied of money that was set aside for minutes already served.
_HOLD_FOR: Final = timedelta(days=36_525)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    number: int
    hold_id: UUID


def block_seconds(lease: Lease, block: int) -> int:
    """Return how many seconds block `block` covers: 60, fewer at the end, 0 beyond it."""
    sold = int(lease.max_duration.total_seconds())
    return max(min(BLOCK_SECONDS, sold - block * BLOCK_SECONDS), 0)


def paid_until(lease: Lease, *, blocks: int, running_at: datetime) -> datetime:
    """Return until when `blocks` held blocks pay for a lease usable since `running_at`."""
    covered = sum(block_seconds(lease, block) for block in range(blocks))
    return running_at + timedelta(seconds=covered)


def hold_block(tx: Tx, lease: Lease, block: int, *, rate: Rate, now: datetime) -> None:
    """Hold the money for one block; doing it again changes nothing.

    Raises:
        Unpaid: the wallet cannot pay for it.
    """
    amount = rate.charge_most(lease.gpus * block_seconds(lease, block))
    assert amount.nanos > 0, "the price book refuses free leases"
    owner = f"tenant:{lease.tenant_id}"
    wallet, revenue = ledger.lock(tx, f"{owner}:wallet", f"{owner}:revenue")
    transfer = Transfer(
        id=derived_id(lease.id, "block", block),
        debit_account=wallet.id,
        credit_account=revenue.id,
        amount=amount,
        reason="lease",
        happened_at=now,
    )
    ledger.hold(
        tx, transfer, holder=f"lease:{lease.id}", expires_at=now + _HOLD_FOR, now=now,
        locked=(wallet, revenue),
    )  # fmt: skip
    failpoint("lease.block.held")
    row = {"lease_id": lease.id, "block": block, "hold_id": transfer.id}
    tx.execute(QUERIES["insert_block"], row)


def next_block(tx: Tx, lease: Lease) -> int:
    """Return the number of the first block that is not held yet."""
    row = one(tx, QUERIES["count_blocks"], {"lease_id": lease.id})
    assert row is not None
    return int(row["blocks"])


def extend_paid(tx: Tx, lease: Lease, until: datetime) -> None:
    tx.execute(QUERIES["extend_paid"], {"id": lease.id, "paid_until": until})


def list_open(tx: Tx, lease: Lease) -> list[Block]:
    """Return the held blocks that are not settled, in order."""
    rows = tx.execute(QUERIES["list_open_blocks"], {"lease_id": lease.id}).fetchall()
    return [Block(number=row["block"], hold_id=row["hold_id"]) for row in rows]


def close(tx: Tx, lease: Lease, block: Block) -> None:
    tx.execute(QUERIES["close_block"], {"lease_id": lease.id, "block": block.number})


def used_seconds(lease: Lease, block: int, *, until: datetime) -> int:
    """Return the whole seconds of `block` that had been used at `until`.

    Seconds are counted from the start of the lease, so that cutting it into blocks does not
    round each of them.
    """
    if lease.running_at is None:
        return 0
    if lease.stopped_at is not None:
        # Not the earlier of the two: the engine's clock may be a little ahead of ours.
        until = lease.stopped_at
    usable = (until - lease.running_at) // timedelta(seconds=1)
    return min(max(usable - block * BLOCK_SECONDS, 0), block_seconds(lease, block))
