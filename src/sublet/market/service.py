"""Setting prices and floors so that no price stands below its floor without a named exception."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sublet.core.db import Tx, one
from sublet.core.errors import Refused
from sublet.core.money import Rate
from sublet.market import store
from sublet.market.floor import Cost, below, hold_to_floor
from sublet.market.price import Price, Tier, lease_sku
from sublet.market.store import QUERIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What a pool's GPUs cost, and how much of the capital the least price includes."""

    id: int
    pool: str
    cost: Cost
    capital_share: float

    @property
    def rate(self) -> Rate:
        return self.cost.floor(self.capital_share)


def find_floor(tx: Tx, pool: str) -> Floor | None:
    """Return what holds now; None where the operator has said nothing of it."""
    row = one(tx, QUERIES["get_cost"], {"pool": pool})
    return None if row is None else _floor(pool, row)


def list_exceptions(tx: Tx, floor: Floor) -> list[tuple[str, str]]:
    """Return SKUs that were let pass below a floor, and why."""
    rows = tx.execute(QUERIES["list_exceptions"], {"cost_id": floor.id}).fetchall()
    return [(row["sku"], row["name"]) for row in rows]


def set_price(
    tx: Tx,
    sku: str,
    rate: Rate,
    *,
    exception: str | None,
    now: datetime,
    valid_from: datetime | None = None,
    valid_until: datetime | None = None,
    tenant_id: UUID | None = None,
) -> Price:
    """Sell `sku` at `rate` from now on, if that is not below the floor of its pool.

    Args:
        tx: a transaction.
        sku: which.
        rate: the new price.
        exception: why it may be below its floor; None when it is not.
        now: the present instant.
        valid_from: as `store.set_price` has it.
        valid_until: the same.
        tenant_id: the same.

    Raises:
        Refused: it is below, and no exception is named.
        Invalid: an exception is named and needs none, or the price is no price.
    """
    floor = _floor_of_sku(tx, sku)
    hold_to_floor(rate, None if floor is None else floor.rate, exception=exception)
    price = store.set_price(
        tx,
        sku,
        rate,
        now=now,
        valid_from=valid_from,
        valid_until=valid_until,
        tenant_id=tenant_id,
    )
    if floor is not None and exception is not None:
        let_pass(tx, price, floor, exception, now=now)
    return price


def set_floor(
    tx: Tx, pool: str, cost: Cost, *, capital_share: float, exception: str | None, now: datetime
) -> Floor:
    """Let nothing of `pool` be sold below its cost from now on.

    Args:
        tx: a transaction.
        pool: which; it need not have prices yet.
        cost: of one of its GPUs.
        capital_share: how much of the capital's cost the floor includes, from 0 to 1.
        exception: why present prices may stay below it; None when none is.
        now: the present instant.

    Raises:
        Refused: a present price is below, and no exception is named. Nothing changed.
        Invalid: the share does not lie in 0 to 1.
    """
    rate = cost.floor(capital_share)
    tx.execute(QUERIES["lock_floor"], {"pool": pool})
    skus = {lease_sku(pool, tier) for tier in Tier}
    # Tenants' own rates, and prices that begin later, included.
    prices = [price for price in store.list_valid(tx, at=now, tenant_id=None) if price.sku in skus]
    low = [price for price in prices if below(price.rate, rate)]
    if low and (exception is None or not exception.strip()):
        listed = sorted({_name_of(price) for price in low})
        raise Refused(
            f"{', '.join(listed)} would be below the floor: raise prices first,"
            " or name why they may stay as the exception"
        )
    row = one(
        tx,
        QUERIES["insert_cost"],
        {
            "pool": pool,
            "power_nanos": cost.power_nanos,
            "wear_nanos": cost.wear_nanos,
            "support_nanos": cost.support_nanos,
            "capital_nanos": cost.capital_nanos,
            "capital_share": capital_share,
            "currency": rate.currency,
            "happened_at": now,
            "recorded_at": now,
        },
    )
    assert row is not None
    floor = _floor(pool, row)
    for price in low:
        assert exception is not None
        let_pass(tx, price, floor, exception, now=now)
    return floor


def _name_of(price: Price) -> str:
    return price.sku if price.tenant_id is None else f"{price.sku} of tenant {price.tenant_id}"


def check_sales(tx: Tx) -> tuple[int, list[str]]:
    """Compare every sale with the floor of its pool at the time.

    Returns:
        how many kinds of sale (of one price under one floor) there were, and a sentence for each
        that was below its floor without a named exception.
    """
    rows = tx.execute(QUERIES["list_sales_under_floors"]).fetchall()
    wrong = []
    for row in rows:
        floor = _floor(row["pool"], row)
        rate = Rate(nanos=int(row["nanos"]), per=row["per"], currency=row["currency"])
        if below(rate, floor.rate) and not row["excepted"]:
            wrong.append(
                f"{row['sales']} sales of {row['sku']} at price {row['price_id']}, {row['example']}"
                f" the first, were below floor {floor.id} without a named exception"
            )
    return len(rows), wrong


def _floor_of_sku(tx: Tx, sku: str) -> Floor | None:
    kind, _, rest = sku.partition(":")
    pool = rest.rpartition(":")[0]
    if kind != "lease" or not pool:
        return None
    tx.execute(QUERIES["lock_floor"], {"pool": pool})
    return find_floor(tx, pool)


def let_pass(tx: Tx, price: Price, floor: Floor, name: str, *, now: datetime) -> None:
    """Note why a price may stand below what its pool's cost makes the least."""
    tx.execute(
        QUERIES["insert_exception"],
        {
            "price_id": price.id,
            "cost_id": floor.id,
            "name": name.strip(),
            "happened_at": now,
            "recorded_at": now,
        },
    )


def _floor(pool: str, row: Mapping[str, Any]) -> Floor:
    return Floor(
        id=row["id"],
        pool=pool,
        cost=Cost(
            power_nanos=int(row["power_nanos"]),
            wear_nanos=int(row["wear_nanos"]),
            support_nanos=int(row["support_nanos"]),
            capital_nanos=int(row["capital_nanos"]),
        ),
        capital_share=row["capital_share"],
    )
