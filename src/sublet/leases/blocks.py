"""Paying for a lease a minute at a time: each minute is held before it is served.

Block `k` of a lease covers the seconds [60·k, 60·(k+1)) after it became usable, and never
more than it was sold for. While a block runs, the next one is held; when that cannot be
paid, the lease ends where the money does. The engine's own fence (its deadline) stands a
notice later, so that even with Sublet dead nothing runs on unpaid for long.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.db import Tx
from sublet.core.errors import NotFound, Refused, SubletError
from sublet.core.failpoint import failpoint
from sublet.core.ids import derived_id
from sublet.core.money import Rate
from sublet.leases.lease import Lease, LeaseId
from sublet.leases.store import QUERIES
from sublet.ledger import batch
from sublet.ledger.batch import Hold
from sublet.ledger.transfer import Transfer

BLOCK_SECONDS: Final = 60
# How long before the held minutes end the next one is held.
AHEAD: Final = timedelta(seconds=20)
# Never, in effect: the row of the block leads us back to its hold, however long we were away. An
# earlier end would let a wallet be emptied of money that was set aside for minutes already served.
_HOLD_FOR: Final = timedelta(days=36_525)
_SIDES: Final = ("wallet", "revenue")


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


def hold_id(lease_id: LeaseId, block: int) -> UUID:
    """Return the id under which the money of a block is held."""
    return derived_id(lease_id, "block", block)


def hold_of(
    lease: Lease, block: int, rate: Rate, *, accounts: Mapping[str, int], now: datetime
) -> Hold:
    """Return what holds the money for one block.

    Args:
        lease: whose.
        block: which.
        rate: what a GPU-second costs.
        accounts: {code: id}, its tenant's among them.
        now: the present instant.

    Raises:
        NotFound: its tenant has no such account.
    """
    amount = rate.charge_most(lease.gpus * block_seconds(lease, block))
    assert amount.nanos > 0, "the price book refuses free leases"
    sides = [f"tenant:{lease.tenant_id}:{kind}" for kind in _SIDES]
    if missing := [code for code in sides if code not in accounts]:
        raise NotFound(f"there is no account {missing[0]}")
    debit, credit = (accounts[code] for code in sides)
    transfer = Transfer(
        id=hold_id(lease.id, block),
        debit_account=debit,
        credit_account=credit,
        amount=amount,
        reason="lease",
        happened_at=now,
    )
    return Hold(transfer=transfer, holder=f"lease:{lease.id}", expires_at=now + _HOLD_FOR)


def add(tx: Tx, held: Sequence[tuple[LeaseId, int, UUID]]) -> None:
    """Note blocks, by lease and number, and the hold of each; doing it again changes nothing."""
    ids, numbers, holds = zip(*held, strict=True) if held else ((), (), ())
    given = {"leases": list(ids), "blocks": list(numbers), "holds": list(holds)}
    tx.execute(QUERIES["insert_blocks"], given)


def hold_next(tx: Tx, leases: Sequence[Lease], *, now: datetime) -> dict[LeaseId, datetime]:
    """Hold the next block of each running lease that its wallet can pay for.

    Returns:
        until when each of those is paid then. Where the money suffices for some of a tenant's,
        they are the first.
    """
    given = {"ids": [lease.id for lease in leases]}
    rows = {row["id"]: row for row in tx.execute(QUERIES["list_next_blocks"], given)}
    codes = {f"tenant:{lease.tenant_id}:{kind}" for lease in leases for kind in _SIDES}
    accounts = batch.find_accounts(tx, sorted(codes))
    holds = []
    for lease in leases:
        row = rows[lease.id]
        rate = Rate(nanos=int(row["nanos"]), per=row["per"], currency=row["currency"])
        holds.append(hold_of(lease, row["block"], rate, accounts=accounts, now=now))
    blocks, until = [], {}
    for lease, hold, outcome in zip(
        leases, holds, batch.hold_many(tx, holds, now=now), strict=True
    ):
        if isinstance(outcome, Refused):
            continue
        if isinstance(outcome, SubletError):
            raise outcome
        assert lease.running_at is not None
        block = rows[lease.id]["block"]
        blocks.append((lease.id, block, hold.transfer.id))
        until[lease.id] = paid_until(lease, blocks=block + 1, running_at=lease.running_at)
    failpoint("lease.block.held_next")
    add(tx, blocks)
    return until


def extend_paid(tx: Tx, until: Mapping[LeaseId, datetime]) -> None:
    tx.execute(QUERIES["extend_paid"], {"ids": list(until), "until": list(until.values())})


def list_open(tx: Tx, leases: Sequence[Lease]) -> dict[LeaseId, list[Block]]:
    """Return the held blocks that are not settled, in order, of the leases that have any."""
    found: dict[LeaseId, list[Block]] = {}
    given = {"ids": [lease.id for lease in leases]}
    for row in tx.execute(QUERIES["list_open_blocks"], given):
        block = Block(number=row["block"], hold_id=row["hold_id"])
        found.setdefault(LeaseId(row["lease_id"]), []).append(block)
    return found


def close(tx: Tx, blocks: Sequence[tuple[LeaseId, int]]) -> None:
    """Note that blocks, by lease and number, are settled."""
    leases, numbers = zip(*blocks, strict=True)
    tx.execute(QUERIES["close_blocks"], {"leases": list(leases), "blocks": list(numbers)})


def over(lease: Lease, *, seen_until: datetime) -> int:
    """Return how many blocks of a running lease are over, as far as it is known to have run."""
    assert lease.running_at is not None
    return (seen_until - lease.running_at) // timedelta(seconds=BLOCK_SECONDS)


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
