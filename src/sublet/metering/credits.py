"""Giving money back for promises that were broken, once each, with what says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Json
from pydantic_core import to_jsonable_python

from sublet.core.db import Tx
from sublet.core.money import Money
from sublet.fleet import store as fleet
from sublet.leases import deliveries
from sublet.leases import store as leases
from sublet.leases.lease import Lease
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.metering.store import QUERIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A promise that was broken."""

    transfer_id: UUID
    tenant_id: UUID
    pool: str
    lease: Lease | None  # that gave way, if one did
    reservation_id: UUID | None
    gpus: int
    broken_at: datetime
    promised_until: datetime
    percent: int
    price_id: int
    amount: Money


def give(tx: Tx, broken: Broken, *, now: datetime) -> bool:
    """Credit a wallet for a broken promise, and keep why; False when it was before."""
    wallet = ledger.get_account(tx, f"tenant:{broken.tenant_id}:wallet")
    revenue = ledger.get_account(tx, f"tenant:{broken.tenant_id}:revenue")
    transfer = Transfer(
        id=broken.transfer_id,
        debit_account=revenue.id,
        credit_account=wallet.id,
        amount=broken.amount,
        reason="credit",
        happened_at=broken.broken_at,
    )
    if not ledger.post(tx, transfer, now=now):
        return False
    row = {
        "transfer_id": broken.transfer_id,
        "tenant_id": broken.tenant_id,
        "lease_id": None if broken.lease is None else broken.lease.id,
        "reservation_id": broken.reservation_id,
        "gpus": broken.gpus,
        "happened_at": broken.broken_at,
        "promised_until": broken.promised_until,
        "percent": broken.percent,
        "price_id": broken.price_id,
        "amount_nanos": broken.amount.nanos,
        "evidence": Json(to_jsonable_python(_evidence(tx, broken))),
        "recorded_at": now,
    }
    tx.execute(QUERIES["insert_credit"], row)
    return True


def list_credits(tx: Tx, tenant_id: UUID | None, *, limit: int) -> list[dict[str, Any]]:
    """Return a tenant's credits, or everybody's (None), newest first."""
    row = {"tenant_id": tenant_id, "limit": limit}
    return tx.execute(QUERIES["list_credit_records"], row).fetchall()


def _evidence(tx: Tx, broken: Broken) -> Mapping[str, Any]:
    """Return what was recorded: the lease's moves, and the internal jobs that were in the way."""
    return {
        "lease_events": []
        if broken.lease is None
        else [
            {name: event[name] for name in ("version", "state", "reason", "happened_at")}
            for event in leases.list_events(tx, broken.lease.id)
        ],
        "internal_jobs": fleet.list_jobs_at(tx, broken.pool, broken.broken_at),
        "deliveries": []
        if broken.reservation_id is None
        else deliveries.list_of(tx, broken.reservation_id),
    }
