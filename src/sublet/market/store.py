"""The price book in Postgres."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Invalid, NotFound
from sublet.core.money import MAX_NANOS, Rate, parse_amount
from sublet.market.price import Price

QUERIES: Final = load_queries("sublet.market")


def set_price(
    tx: Tx,
    sku: str,
    rate: Rate,
    *,
    now: datetime,
    valid_from: datetime | None = None,
    valid_until: datetime | None = None,
    tenant_id: UUID | None = None,
) -> Price:
    """Sell `sku` at `rate` from now on, or from `valid_from`; what was sold before keeps its price.

    A tenant's own rate comes before the list price for as long as it is valid.

    Raises:
        Invalid: it cannot be a price, would change the past, or ends before it begins.
    """
    start = now if valid_from is None else valid_from
    if start < now:
        raise Invalid(f"a price is valid from now on or later, not from {start:%Y-%m-%d %H:%M} UTC")
    if valid_until is not None and (tenant_id is None or valid_until <= start):
        raise Invalid("only a tenant's rate ends, and only after it begins")
    if not sku.startswith("lease:") and (start > now or tenant_id is not None):
        raise Invalid("tokens are priced for everybody, and from now on")
    if not 0 <= rate.nanos <= MAX_NANOS:
        raise Invalid("a price is zero or more, and not absurdly large")
    if sku.startswith("lease:") and not rate.nanos:
        raise Invalid("a lease has a price of more than zero: what costs nothing is not held")
    row = one(
        tx,
        QUERIES["insert_price"],
        {
            "sku": sku, "nanos": rate.nanos, "per": rate.per, "currency": rate.currency,
            "tenant_id": tenant_id, "valid_until": valid_until,
            "happened_at": start, "recorded_at": now,
        },
    )  # fmt: skip
    assert row is not None
    return from_row(row)


def find_price(tx: Tx, sku: str) -> Price | None:
    row = one(tx, QUERIES["get_price"], {"sku": sku})
    return None if row is None else from_row(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a tenant pays for a SKU, and what the list says: the same row, or two."""

    contracted: Price
    listed: Price


def find_terms(tx: Tx, sku: str, *, tenant_id: UUID, at: datetime) -> Terms | None:
    """Return what a tenant pays at an instant; None where nothing is on the list."""
    return find_all_terms(tx, [(sku, tenant_id)], at=at).get((sku, tenant_id))


def find_all_terms(
    tx: Tx, wanted: Collection[tuple[str, UUID]], *, at: datetime
) -> dict[tuple[str, UUID], Terms]:
    """Return what each tenant pays for a SKU at an instant, of those that are on the list."""
    given = {
        "skus": [sku for sku, _ in wanted],
        "tenants": [tenant_id for _, tenant_id in wanted],
        "at": at,
    }
    own: dict[tuple[str, UUID], Price] = {}
    listed: dict[tuple[str, UUID], Price] = {}
    for row in tx.execute(QUERIES["find_valid"], given):
        price = from_row(row)
        asked = (row["asked_sku"], row["asked_by"])
        if price.tenant_id is None:
            listed[asked] = price
        elif price.valid_until is None or price.valid_until > at:
            own[asked] = price
    return {
        asked: Terms(contracted=own.get(asked, price), listed=price)
        for asked, price in listed.items()
    }


def list_valid(tx: Tx, *, at: datetime, tenant_id: UUID | None) -> list[Price]:
    """Return what holds or begins later: the list, and a tenant's own rates, or all (None)."""
    rows = tx.execute(QUERIES["list_valid"], {"at": at, "tenant_id": tenant_id}).fetchall()
    return [from_row(row) for row in rows]


def get_price(tx: Tx, price_id: int) -> Price:
    """Raises NotFound: there is no such row."""
    row = one(tx, QUERIES["get_price_by_id"], {"id": price_id})
    if row is None:
        raise NotFound(f"there is no price {price_id}")
    return from_row(row)


def list_prices(tx: Tx) -> list[Price]:
    """Return the price that holds now of every SKU."""
    return [from_row(row) for row in tx.execute(QUERIES["list_prices"]).fetchall()]


def from_row(row: Mapping[str, Any]) -> Price:
    return Price(
        id=row["id"],
        sku=row["sku"],
        rate=Rate(nanos=int(row["nanos"]), per=row["per"], currency=row["currency"]),
        happened_at=row["happened_at"],
        tenant_id=row["tenant_id"],
        valid_until=row["valid_until"],
        base_id=row["base_id"],
    )


def usd_per_million(usd: str) -> Rate:
    """Return the rate of a price in USD per million units, such as tokens."""
    return Rate(nanos=parse_amount(usd).nanos, per=1_000_000)


def usd_per_hour(usd: str) -> Rate:
    """Return the rate of a price in USD per hour, metered in seconds."""
    return Rate(nanos=parse_amount(usd).nanos, per=3600)
