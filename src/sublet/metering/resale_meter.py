"""Giving tenants their share of what their unused GPUs brought, once for each lease that had them."""

import logging
from datetime import datetime
from uuid import UUID

from sublet.core.db import Database, Tx
from sublet.core.ids import derived_id
from sublet.core.money import Money
from sublet.leases import resales
from sublet.leases.resale import is_over, share, used_seconds
from sublet.leases.resales import Use
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market import store as market

log = logging.getLogger(__name__)


def share_id(found: Use) -> UUID:
    return derived_id(found.resale.id, found.lease.id, "share")


def share_of(tx: Tx, found: Use, *, now: datetime) -> Money:
    """Return what is the seller's of what was paid until now, or until it was over."""
    return share(
        market.get_price(tx, found.lease.price_id).rate,
        gpus=found.gpus,
        seconds=used_seconds(found.lease, found.resale, found.window, now=now),
        percent=found.resale.share_percent,
    )


def pay_shares(db: Database, *, now: datetime) -> None:
    """Pay the share of every use that is over.

    Raises:
        Unavailable: the database did not answer.
    """
    with db.transaction() as tx:
        due = [
            found
            for found in resales.list_uses(tx, unpaid=True)
            if is_over(found.lease, found.resale, found.window, now=now)
        ]
    for found in due:
        with db.transaction("resale.pay") as tx:
            _pay(tx, found, now=now)


def _pay(tx: Tx, found: Use, *, now: datetime) -> None:
    amount = share_of(tx, found, now=now)
    if amount.nanos:
        owner = f"tenant:{found.window.tenant_id}"
        wallet, revenue = ledger.lock(tx, f"{owner}:wallet", f"{owner}:revenue")
        transfer = Transfer(
            id=share_id(found),
            debit_account=revenue.id,
            credit_account=wallet.id,
            amount=amount,
            reason="resale",
            happened_at=now,
        )
        ledger.post(tx, transfer, now=now)
        log.info("resale.paid", extra={"resale": found.resale.id, "lease": found.lease.id})
    resales.set_paid(tx, found)
