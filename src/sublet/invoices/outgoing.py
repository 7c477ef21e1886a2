"""What is to be sent: e-mails and signed calls, kept until they are delivered or given up.

It is written in the transaction of what it tells of, under an id that follows from that, so it is sent
for what happened and only once; `app/mail.py` sends it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx
from sublet.invoices.store import QUERIES

MOST_ATTEMPTS: Final = 12
_FIRST: Final = timedelta(seconds=30)
# Older than that it is news no more: such as all that was kept before a mail server was named.
_FRESH: Final = timedelta(days=3)


class Channel(StrEnum):
    EMAIL = "email"
    WEBHOOK = "webhook"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    id: UUID
    tenant_id: UUID
    channel: Channel
    target: str
    subject: str
    body: str
    invoice_id: UUID | None = None  # whose PDF goes with it
    made_at: datetime | None = None
    attempts: int = 0

    def again_at(self, now: datetime) -> datetime | None:
        """Return when to try it again, twice as long after each attempt; None: not any more."""
        assert self.made_at is not None
        at = now + _FIRST * 2 ** (self.attempts - 1)
        return at if self.attempts < MOST_ATTEMPTS and at < self.made_at + _FRESH else None

    def is_stale(self, now: datetime) -> bool:
        assert self.made_at is not None
        return now >= self.made_at + _FRESH


def add(tx: Tx, one: Outgoing, *, now: datetime) -> None:
    """Keep it to be sent; the same id again changes nothing."""
    row = {
        "id": one.id, "tenant_id": one.tenant_id, "channel": one.channel, "target": one.target,
        "subject": one.subject, "body": one.body, "invoice_id": one.invoice_id, "now": now,
    }  # fmt: skip
    tx.execute(QUERIES["insert_outgoing"], row)


def claim(
    tx: Tx, channels: Sequence[Channel], *, now: datetime, until: datetime, limit: int
) -> list[Outgoing]:
    """Take what is due; nobody else takes it until then."""
    row = {"channels": list(map(str, channels)), "now": now, "until": until, "limit": limit}
    return [_outgoing(found) for found in tx.execute(QUERIES["claim_outgoing"], row)]


def note(tx: Tx, id_: UUID, *, outcome: str | None, next_at: datetime | None, detail: str) -> None:
    row = {"id": id_, "outcome": outcome, "next_at": next_at, "detail": detail[:500]}
    tx.execute(QUERIES["note_outgoing"], row)


def list_of(tx: Tx, tenant_id: UUID, *, limit: int = 100) -> list[dict[str, Any]]:
    row = {"tenant_id": tenant_id, "limit": limit}
    return tx.execute(QUERIES["list_outgoing"], row).fetchall()


def _outgoing(row: dict[str, Any]) -> Outgoing:
    return Outgoing(
        id=row["id"], tenant_id=row["tenant_id"], channel=Channel(row["channel"]),
        target=row["target"], subject=row["subject"], body=row["body"],
        invoice_id=row["invoice_id"], made_at=row["made_at"], attempts=row["attempts"],
    )  # fmt: skip
