"""The price book in Postgres."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Invalid, NotFound
from sublet.core.money import MAX_NANOS, Rate, parse_amount
from sublet.market.price import Price

QUERIES: Final = load_queries("sublet.market")


def set_price(tx: Tx, sku: str, rate: Rate, *, now: datetime) -> Price:
    """Sell `sku` at `rate` from now on; what was sold before keeps its price."""
    if not 0 <= rate.nanos <= MAX_NANOS:
        raise Invalid("a price is zero or more, and not absurdly large")
    if sku.startswith("lease:") and not rate.nanos:
        raise Invalid("a lease has a price of more than zero: what costs nothing is not held")
    row = one(
        tx,
        QUERIES["insert_price"],
        {
            "sku": sku, "nanos": rate.nanos, "per": rate.per, "currency": rate.currency,
            "happened_at": now, "recorded_at": now,
        },
    )  # fmt: skip
    assert row is not None
    return _price(row)


def find_price(tx: Tx, sku: str) -> Price | None:
    row = one(tx, QUERIES["get_price"], {"sku": sku})
    return None if row is None else _price(row)


def get_price(tx: Tx, price_id: int) -> Price:
    """Raises NotFound: there is no such row."""
    row = one(tx, QUERIES["get_price_by_id"], {"id": price_id})
    if row is None:
        raise NotFound(f"there is no price {price_id}")
    return _price(row)


def list_prices(tx: Tx) -> list[Price]:
    """Return the price that holds now of every SKU."""
    return [_price(row) for row in tx.execute(QUERIES["list_prices"]).fetchall()]


def _price(row: Mapping[str, Any]) -> Price:
    return Price(
        id=row["id"],
        sku=row["sku"],
        rate=Rate(nanos=int(row["nanos"]), per=row["per"], currency=row["currency"]),
        happened_at=row["happened_at"],
    )


def usd_per_million(usd: str) -> Rate:
    """Return the rate of a price in USD per million units, such as tokens."""
    return Rate(nanos=parse_amount(usd).nanos, per=1_000_000)


def usd_per_hour(usd: str) -> Rate:
    """Return the rate of a price in USD per hour, metered in seconds."""
    return Rate(nanos=parse_amount(usd).nanos, per=3600)
