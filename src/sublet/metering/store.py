"""Usage and charges in Postgres: added once, with the money, in the caller's transaction."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Conflict, SubletError, Unpaid
from sublet.core.failpoint import failpoint
from sublet.core.ids import derived_id
from sublet.core.money import Money
from sublet.ledger import batch
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.metering.usage import Line, Usage

QUERIES: Final = load_queries("sublet.metering")


def price_of(lines: Sequence[Line]) -> Money:
    """Return what `lines` cost together: each rounded by itself, as each is a charge."""
    return Money(sum(line.price.rate.charge(line.quantity).nanos for line in lines))


def most_of(lines: Sequence[Line]) -> Money:
    """Return what to hold so that no charge for at most these quantities can exceed it."""
    return Money(sum(line.price.rate.charge_most(line.quantity).nanos for line in lines))


def settle(tx: Tx, usage: Usage, lines: Sequence[Line], *, hold_id: UUID, now: datetime) -> Money:
    """Record `usage`, resolve its hold and charge `lines`, once, all or nothing.

    A hold that was voided or expired meanwhile (its holder was taken for dead) is charged to
    the wallet directly, if that can pay; if not, nothing is recorded as charged.

    Returns:
        what was charged: zero when this usage was recorded before.

    Raises:
        Unpaid: the hold was gone and the wallet cannot pay.
        Invalid: it costs more than was held, which is a bug of the caller's.
    """
    if one(tx, QUERIES["insert_usage"], {**asdict(usage), "recorded_at": now}) is None:
        return Money(0)
    failpoint("metering.usage.inserted")
    amount = price_of(lines)
    try:
        with tx.transaction():
            transfer_id = ledger.settle(tx, hold_id, amount, happened_at=usage.happened_at, now=now)
    except Conflict:
        transfer_id = _charge_directly(tx, usage, amount, hold_id=hold_id, now=now)
    failpoint("metering.money.moved")
    row: dict[str, Any] = {
        "usage_id": usage.id,
        "tenant_id": usage.tenant_id,
        "price_ids": [line.price.id for line in lines],
        "quantities": [line.quantity for line in lines],
        "amounts": [Decimal(line.price.rate.charge(line.quantity).nanos) for line in lines],
        "amount_nanos": amount.nanos,
        "transfer_id": transfer_id,
        "happened_at": usage.happened_at,
        "recorded_at": now,
    }
    tx.execute(QUERIES["insert_charge"], row)
    failpoint("metering.charge.inserted")
    return amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A usage with one line, and the hold that pays for it."""

    usage: Usage
    line: Line
    hold_id: UUID


def settle_many(
    tx: Tx, charges: Sequence[Charge], *, voids: Sequence[UUID] = (), now: datetime
) -> bool:
    """Do `settle` for GPU-seconds of many leases, and return other holds, in a few statements.

    Returns:
        False when one of them was recorded before or its hold is gone: undo all then, and settle
        them one by one.
    """
    usages = [charge.usage for charge in charges]
    amounts = [price_of([charge.line]) for charge in charges]
    given = {
        "ids": [usage.id for usage in usages],
        "sources": [usage.source for usage in usages],
        "sequences": [usage.sequence for usage in usages],
        "tenants": [usage.tenant_id for usage in usages],
        "leases": [usage.lease_id for usage in usages],
        "seconds": [usage.gpu_seconds for usage in usages],
        "outcomes": [usage.outcome.value for usage in usages],
        "happened": [usage.happened_at for usage in usages],
        "now": now,
    }
    if tx.execute(QUERIES["insert_lease_usages"], given).rowcount != len(charges):
        return False
    settlements = [
        batch.Settlement(
            hold_id=charge.hold_id, amount=amount, happened_at=charge.usage.happened_at
        )
        for charge, amount in zip(charges, amounts, strict=True)
    ]
    settlements += [
        batch.Settlement(hold_id=id_, amount=Money(0), happened_at=now) for id_ in voids
    ]
    moved = batch.settle_many(tx, settlements, now=now)
    if any(isinstance(outcome, SubletError) for outcome in moved):
        return False
    more = {
        "prices": [charge.line.price.id for charge in charges],
        "quantities": [charge.line.quantity for charge in charges],
        "amounts": [amount.nanos for amount in amounts],
        "transfers": moved[: len(charges)],
    }
    tx.execute(QUERIES["insert_lease_charges"], given | more)
    return True


def _charge_directly(
    tx: Tx, usage: Usage, amount: Money, *, hold_id: UUID, now: datetime
) -> UUID | None:
    if not amount.nanos:
        return None
    wallet = ledger.get_account(tx, f"tenant:{usage.tenant_id}:wallet")
    revenue = ledger.get_account(tx, f"tenant:{usage.tenant_id}:revenue")
    transfer = Transfer(
        id=derived_id(hold_id, "late"),
        debit_account=wallet.id,
        credit_account=revenue.id,
        amount=amount,
        reason="tokens" if usage.model else "lease",
        happened_at=usage.happened_at,
    )
    try:
        ledger.post(tx, transfer, now=now)
    except Unpaid as error:
        raise Unpaid(f"usage {usage.id} came after its hold was gone: {error}") from error
    return transfer.id


def list_charges(
    tx: Tx,
    tenant_id: UUID,
    *,
    limit: int,
    before: int | None = None,
    request_id: str | None = None,
    lease_id: UUID | None = None,
) -> list[dict[str, Any]]:
    """Return a tenant's charges, newest first, each line with the usage and price behind it.

    Args:
        tx: any transaction.
        tenant_id: whose.
        limit: how many charges at most; each has a line a SKU.
        before: the `record` of the last one seen, to page on.
        request_id: only this request's.
        lease_id: only this lease's.
    """
    row = {
        "tenant_id": tenant_id, "limit": limit, "before": before,
        "request_id": request_id, "lease_id": lease_id,
    }  # fmt: skip
    return tx.execute(QUERIES["list_charges"], row).fetchall()


def charged_for_lease(tx: Tx, lease_id: UUID) -> Money:
    """Return what was charged for a lease's seconds so far."""
    row = one(tx, QUERIES["sum_lease_charges"], {"lease_id": lease_id})
    assert row is not None
    return Money(int(row["nanos"]))


def list_trades(tx: Tx, *, since: datetime) -> list[dict[str, Any]]:
    """Return what customers paid for leases, by day and pool: `day`, `pool`, sums."""
    return tx.execute(QUERIES["list_trades"], {"since": since}).fetchall()


def list_leased(tx: Tx, *, since: datetime, slot_seconds: int) -> list[dict[str, Any]]:
    """Return what ran on leases by pool and slot: GPU-seconds, those paid, and for how much."""
    return tx.execute(QUERIES["list_leased"], {"since": since, "slot": slot_seconds}).fetchall()
