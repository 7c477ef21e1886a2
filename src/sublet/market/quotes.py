"""Quotes in Postgres."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sublet.core.db import Tx, one
from sublet.core.errors import NotFound
from sublet.market.price import Tier
from sublet.market.quote import Quote
from sublet.market.store import QUERIES, get_price


def insert(tx: Tx, quote: Quote) -> None:
    row = {
        "id": quote.id, "tenant_id": quote.tenant_id, "pool": quote.pool, "gpus": quote.gpus,
        "tier": quote.tier, "notice_seconds": int(quote.notice.total_seconds()),
        "max_seconds": int(quote.max_duration.total_seconds()), "starts_at": quote.starts_at,
        "price_id": quote.price.id, "list_price_id": quote.list_price.id,
        "made_at": quote.made_at, "expires_at": quote.expires_at,
    }  # fmt: skip
    tx.execute(QUERIES["insert_quote"], row)


def lock(tx: Tx, quote_id: UUID, *, tenant_id: UUID) -> Quote:
    """Return a tenant's quote, and keep others from accepting it until the transaction ends.

    Raises:
        NotFound: there is no such quote, or it is another tenant's.
    """
    row = one(tx, QUERIES["lock_quote"], {"id": quote_id, "tenant_id": tenant_id})
    if row is None:
        raise NotFound(f"there is no quote {quote_id}")
    return _quote(tx, row)


def list_of(tx: Tx, tenant_id: UUID, *, limit: int) -> list[Quote]:
    """Return a tenant's quotes, newest first."""
    row = {"tenant_id": tenant_id, "limit": limit}
    return [_quote(tx, found) for found in tx.execute(QUERIES["list_quotes"], row).fetchall()]


def accept(tx: Tx, quote: Quote, *, sold: UUID, now: datetime) -> None:
    """Say what a quote became; once.

    Raises:
        Refused: it became something else before, or has expired.
    """
    quote.check(sold, now=now)
    tx.execute(QUERIES["accept_quote"], {"id": quote.id, "sold": sold, "now": now})


def _quote(tx: Tx, row: Mapping[str, Any]) -> Quote:
    return Quote(
        id=row["id"],
        tenant_id=row["tenant_id"],
        pool=row["pool"],
        gpus=row["gpus"],
        tier=Tier(row["tier"]),
        notice=timedelta(seconds=row["notice_seconds"]),
        max_duration=timedelta(seconds=row["max_seconds"]),
        starts_at=row["starts_at"],
        price=get_price(tx, row["price_id"]),
        list_price=get_price(tx, row["list_price_id"]),
        made_at=row["made_at"],
        expires_at=row["expires_at"],
        accepted_at=row["accepted_at"],
        sold=row["sold"],
    )
