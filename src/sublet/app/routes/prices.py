"""The price book: prices, floors, what notices cost; and what the market says of them."""

import re
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from sublet.app.documents import usd
from sublet.app.http import AnyCaller, Operator, Ours
from sublet.app.price_documents import (
    NewFloor,
    NewNoticePrices,
    NewPrice,
    floor_document,
    price_document,
    scale_document,
)
from sublet.app.routes.tenants import instant
from sublet.app.signals_of_pools import signals_of_pools
from sublet.core.errors import Invalid, NotFound
from sublet.core.money import Money
from sublet.fleet import store as fleet
from sublet.market import scales
from sublet.market import service as pricing
from sublet.market import store as market
from sublet.market.floor import Cost
from sublet.market.notice import Step
from sublet.market.price import input_sku
from sublet.metering import store as metering
from sublet.models.earnings import set_token_price
from sublet.tenants import store as tenants
from sublet.tenants.tenant import TenantId

router = APIRouter(prefix="/v1")
_OF_TIER: Final = re.compile(
    r"model:(.{1,100}):(?:priority|flex|batch):(?:input|cache_read|cache_write|output|reasoning)"
    # Of fine-tuning, and what models that come of it begin with.
    r"|model:(.{1,100}):(?:training|tuned:(?:input|cache_read|output))"
)
_OF_MODEL: Final = re.compile(r"model:(.{1,150}):[a-z_]+")


@router.get("/prices", tags=["prices"])
def list_prices(ours: Ours, found: AnyCaller) -> dict[str, Any]:
    """List what everything costs now, what will be so later, and your own rates."""
    tenant_id = None if found.tenant is None else found.tenant.id
    with ours.db.transaction() as tx:
        prices = market.list_valid(tx, at=ours.clock.now(), tenant_id=tenant_id)
    return {"items": [price_document(price) for price in prices]}


@router.put("/prices/{sku:path}", tags=["prices"])
def set_price(ours: Ours, _: Operator, sku: str, body: NewPrice) -> dict[str, Any]:
    """Set a price from now on, or from a date. What was sold keeps the price it was sold at.

    With `tenant_id`, that tenant's own rate, which comes before the list price while it is valid.
    """
    hourly = sku.startswith("lease:")
    if hourly != (body.per == "hour"):
        raise Invalid("leases are priced per hour, tokens per million_tokens")
    rate = market.usd_per_hour(body.usd) if hourly else market.usd_per_million(body.usd)
    with ours.db.transaction() as tx:
        of_tier = _OF_TIER.fullmatch(sku)  # which need no price before their first one
        known = sku if of_tier is None else input_sku(of_tier[1] or of_tier[2])
        if market.find_price(tx, known) is None:
            raise NotFound(f"there is no SKU {sku[:200]!r}; see GET /v1/prices")
        if body.tenant_id is not None:
            tenants.get_tenant(tx, TenantId(body.tenant_id))
        of_model = _OF_MODEL.fullmatch(sku)
        price = set_token_price(
            tx,
            None if of_model is None else of_model[1],
            sku,
            rate,
            exception=body.exception,
            now=ours.clock.now(),
            valid_from=instant(body.valid_from, "valid_from"),
            valid_until=instant(body.valid_until, "valid_until"),
            tenant_id=body.tenant_id,
        )
        return price_document(price)


@router.get("/trades", tags=["prices"])
def list_trades(ours: Ours, _: Operator) -> dict[str, Any]:
    """List what customers paid for leases, by day and pool, for the last year."""
    with ours.db.transaction() as tx:
        rows = metering.list_trades(tx, since=ours.clock.now() - timedelta(days=366))
    return {
        "items": [
            {
                "day": row["day"],
                "pool": row["pool"],
                "gpu_hours": f"{row['gpu_seconds'] / 3_600:.4f}",
                "usd_gpu_hour": usd(Money(int(row["amount_nanos"]) * 3_600 // row["gpu_seconds"])),
            }
            for row in rows
        ]
    }


@router.get("/signals", tags=["prices"])
def show_signals(
    ours: Ours, _: Operator, days: Annotated[int, Query(ge=1, le=56)] = 7
) -> dict[str, Any]:
    """Say how fast each pool's idle capacity was taken, at what price, and what that means."""
    with ours.db.transaction() as tx:
        return {"items": signals_of_pools(tx, days=days, now=ours.clock.now())}


@router.get("/pools/{name}/floor", tags=["prices"])
def get_floor(ours: Ours, _: Operator, name: str) -> dict[str, Any]:
    """Show below which price nothing of a pool is sold, and what is let pass below it."""
    with ours.db.transaction() as tx:
        fleet.lock_pool(tx, name)
        floor = pricing.find_floor(tx, name)
        if floor is None:
            raise NotFound(f"pool {name[:200]!r} has no floor: set one with `sublet price floor`")
        return floor_document(floor, pricing.list_exceptions(tx, floor))


@router.put("/pools/{name}/floor", tags=["prices"])
def set_floor(ours: Ours, _: Operator, name: str, body: NewFloor) -> dict[str, Any]:
    """Say what a GPU of a pool costs. Nothing is sold below it without a named exception."""
    cost = Cost.of_usd(
        watts=body.watts, pue=body.pue, usd_per_kwh=body.kwh_usd, wear=body.wear_usd,
        support=body.support_usd, capital=body.capital_usd,
    )  # fmt: skip
    with ours.db.transaction() as tx:
        fleet.lock_pool(tx, name)
        floor = pricing.set_floor(
            tx, name, cost, capital_share=body.capital_share, exception=body.exception,
            now=ours.clock.now(),
        )  # fmt: skip
        return floor_document(floor, pricing.list_exceptions(tx, floor))


@router.get("/pools/{name}/notice-prices", tags=["prices"])
def get_notice_prices(ours: Ours, _: AnyCaller, name: str) -> dict[str, Any]:
    """Show how many per cent of the price are paid for a notice, from so many seconds on."""
    with ours.db.transaction() as tx:
        fleet.lock_pool(tx, name)
        return scale_document(name, scales.find_scale(tx, name, at=ours.clock.now()))


@router.put("/pools/{name}/notice-prices", tags=["prices"])
def set_notice_prices(ours: Ours, _: Operator, name: str, body: NewNoticePrices) -> dict[str, Any]:
    """Price the notices of a pool from now on, or from a date. What was sold keeps its price.

    A longer notice costs no less, and none costs less than the price book says, so floors hold.
    """
    steps = [
        Step(notice=timedelta(seconds=step.notice_seconds), percent=step.percent)
        for step in body.steps
    ]
    with ours.db.transaction() as tx:
        fleet.lock_pool(tx, name)
        start = instant(body.valid_from, "valid_from")
        scale = scales.set_scale(tx, name, steps, now=ours.clock.now(), valid_from=start)
        return scale_document(name, scale)
