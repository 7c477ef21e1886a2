"""Webhooks in Postgres: which are due, and what became of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sublet.core.db import Tx, one
from sublet.leases.lease import Lease, LeaseId
from sublet.leases.store import QUERIES, get
from sublet.leases.webhook import check_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    lease: Lease
    url: str
    attempts: int  # this one included


def add(tx: Tx, lease_id: LeaseId, url: str) -> None:
    """Note where a lease's notice goes; again changes nothing.

    Raises:
        Invalid: that is no address.
    """
    check_url(url)
    tx.execute(QUERIES["insert_webhook"], {"lease_id": lease_id, "url": url})


def carry_all_over(tx: Tx, pairs: Sequence[tuple[LeaseId, LeaseId]]) -> None:
    """Let leases that go on with others' work be told at the same addresses; (before, after) each."""
    given = {"before": [one for one, _ in pairs], "after": [after for _, after in pairs]}
    tx.execute(QUERIES["copy_webhooks"], given)


def claim(tx: Tx, *, now: datetime, until: datetime, limit: int, each: int) -> list[Webhook]:
    """Take webhooks that are due, at most `each` of a tenant; nobody else has them until `until`."""
    tx.execute(QUERIES["close_webhooks"], {"now": now})
    given = {"now": now, "until": until, "limit": limit, "each": each}
    rows = tx.execute(QUERIES["claim_webhooks"], given).fetchall()
    return [
        Webhook(lease=get(tx, LeaseId(row["lease_id"])), url=row["url"], attempts=row["attempts"])
        for row in rows
    ]


def note(
    tx: Tx, lease_id: UUID, *, outcome: str | None, next_at: datetime | None, detail: str
) -> None:
    """Note what became of an attempt; `outcome` None: it is sent again at `next_at`."""
    row = {"id": lease_id, "outcome": outcome, "next_at": next_at, "detail": detail[:500]}
    tx.execute(QUERIES["note_webhook"], row)


def find(tx: Tx, lease_id: LeaseId) -> Mapping[str, Any] | None:
    """Return `url`, `attempts`, `outcome` and `detail`; None: the lease has no webhook."""
    return one(tx, QUERIES["get_webhook"], {"id": lease_id})
