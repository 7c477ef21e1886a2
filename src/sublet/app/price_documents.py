"""The API's documents of the price book."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from sublet.app.documents import Body, Name, Usd, usd
from sublet.core.money import Money
from sublet.market.notice import Scale
from sublet.market.price import Price
from sublet.market.service import Floor


class NewPrice(Body):
    usd: Usd
    per: Literal["hour", "million_tokens"]
    exception: Name | None = Field(default=None, description="Why it may be below its floor")
    valid_from: datetime | None = Field(None, description="Of leases; from now on, if left out")
    valid_until: datetime | None = Field(None, description="Only of a tenant's own rate")
    tenant_id: UUID | None = Field(None, description="Whose own rate for leases it is")


class NewFloor(Body):
    """What one GPU of a pool costs."""

    watts: float = Field(ge=0, le=100_000, description="With its share of its server, at the plug")
    pue: float = Field(ge=1, le=3, default=1.3)
    kwh_usd: Usd = Field(description="The tariff; 0 is free power")
    wear_usd: Usd = Field(default="0", description="Per GPU-hour")
    support_usd: Usd = Field(default="0", description="Per GPU-hour")
    capital_usd: Usd = Field(default="0", description="Per GPU-hour")
    capital_share: float = Field(ge=0, le=1, default=0, description="Of it, in the floor")
    exception: Name | None = Field(default=None, description="Why prices may stay below it")


def floor_document(floor: Floor, exceptions: list[tuple[str, str]]) -> dict[str, Any]:
    cost = floor.cost
    return {
        "pool": floor.pool,
        "floor_usd": usd(Money(floor.rate.nanos)),
        "marginal_usd": usd(Money(cost.marginal_nanos)),
        "full_usd": usd(Money(cost.full_nanos)),
        "capital_share": floor.capital_share,
        "exceptions": [{"sku": sku, "name": name} for sku, name in exceptions],
    }


class NoticePrice(Body):
    notice_seconds: Annotated[int, Field(ge=1, le=86_400, strict=True)]
    percent: Annotated[int, Field(strict=True)] = Field(description="Of the price book's price")


class NewNoticePrices(Body):
    """What a notice costs, from so many seconds on."""

    steps: Annotated[list[NoticePrice], Field(max_length=100)]
    valid_from: datetime | None = Field(None, description="From now on, if left out")


def scale_document(pool: str, scale: Scale | None) -> dict[str, Any]:
    steps = () if scale is None else scale.steps
    return {
        "pool": pool,
        "steps": [
            {"notice_seconds": step.notice // timedelta(seconds=1), "percent": step.percent}
            for step in steps
        ],
    }


def price_document(price: Price) -> dict[str, Any]:
    hourly = price.sku.startswith("lease:")
    units = 3600 if hourly else 1_000_000
    return {
        "sku": price.sku,
        "usd": usd(price.rate.charge(units)),
        "per": "hour" if hourly else "million_tokens",
        "unit": "GPU-second" if hourly else "token",
        "valid_from": price.happened_at,
        "valid_until": price.valid_until,
        "tenant_id": price.tenant_id,
    }
