"""What was bought: one call of a supplier, as a line on a gateway's disk and a row of the record.

A purchase is not a usage: a request may need two of them, when the first supplier broke off and will
be paid all the same, and one whose buyer is charged nothing still costs what it costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec
from msgspec import Struct

from sublet.core.db import Tx
from sublet.core.errors import Invalid
from sublet.core.failpoint import failpoint
from sublet.core.ids import sibling_id
from sublet.core.money import Money
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.suppliers.store import QUERIES
from sublet.suppliers.usage import Used

REASON = "purchase"


def cost_of(supplier: str) -> str:
    """Return the code of the account of what was bought there: cost of sales."""
    return f"supplier:{supplier}:cost"


def payable_to(supplier: str) -> str:
    """Return the code of the account of what is owed there."""
    return f"supplier:{supplier}:payable"


class Purchase(Struct, frozen=True, kw_only=True):
    id: UUID
    supplier: str
    model: str
    deployment: str
    tenant_id: UUID
    request_id: str
    supplier_request: str | None
    asked_tier: str
    tier: str  # as which it was served, and is paid
    price_id: int
    used: Used
    amount_nanos: int
    outcome: str  # 'completed', 'aborted', 'failed'
    basis: str  # 'reported'; 'partly', when it broke off between two counts; 'estimated'
    first_token_ms: int | None
    happened_at: datetime


@dataclass(frozen=True, slots=True)
class Bought:
    """A purchase, written down: what a spool keeps."""

    id: UUID
    line: bytes
    purchase: Purchase

    @classmethod
    def write(cls, purchase: Purchase) -> "Bought":
        return cls(purchase.id, msgspec.json.encode(purchase), purchase)

    @classmethod
    def read(cls, line: bytes) -> "Bought":
        """Raises Invalid: it is no such line."""
        try:
            purchase = msgspec.json.decode(line, type=Purchase)
        except msgspec.MsgspecError as error:
            raise Invalid(f"a purchase cannot be read: {error}") from error
        return cls(purchase.id, line, purchase)


def record(tx: Tx, bought: Sequence[Bought], *, now: datetime) -> int:
    """Record purchases, each once, and owe what they cost; return how many were new.

    One transfer a supplier moves what all of its new ones cost: from cost of sales to what is owed.
    """
    ids = [one.id for one in bought]
    known = {row["id"] for row in tx.execute(QUERIES["find_purchases"], {"ids": ids})}
    new = {one.id: one.purchase for one in bought if one.id not in known}
    by_supplier: dict[str, list[Purchase]] = {}
    for purchase in new.values():
        by_supplier.setdefault(purchase.supplier, []).append(purchase)
    for supplier, purchases in sorted(by_supplier.items()):
        transfer_id = _owe(tx, supplier, purchases, now=now)
        failpoint("suppliers.record.owed")
        for purchase in purchases:
            row = msgspec.structs.asdict(purchase)
            used = row.pop("used")
            free = not purchase.amount_nanos
            row |= dict(used.quantities()) | {"doubt": used.doubt, "now": now}
            row["transfer_id"] = None if free else transfer_id
            tx.execute(QUERIES["insert_purchase"], row)
    return len(new)


def _owe(tx: Tx, supplier: str, purchases: Sequence[Purchase], *, now: datetime) -> UUID | None:
    nanos = sum(purchase.amount_nanos for purchase in purchases)
    if not nanos:
        return None
    debit = ledger.open_account(tx, cost_of(supplier), prepaid=False)
    credit = ledger.open_account(tx, payable_to(supplier), prepaid=False)
    transfer = Transfer(
        id=sibling_id(purchases[0].id, 1),
        debit_account=debit.id,
        credit_account=credit.id,
        amount=Money(nanos),
        reason=REASON,
        happened_at=max(purchase.happened_at for purchase in purchases),
    )
    ledger.post(tx, transfer, now=now)
    return transfer.id
