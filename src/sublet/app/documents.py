"""The API's documents: what comes in, held strictly; what goes out, with money as strings."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sublet.core.money import Money
from sublet.leases.lease import Lease
from sublet.ledger.transfer import Account
from sublet.market.price import Price, Tier
from sublet.market.service import Floor
from sublet.tenants.tenant import ApiKey, Tenant


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain NUL")
    return text


Text = Annotated[str, AfterValidator(_storable)]
Name = Annotated[Text, Field(min_length=1, max_length=100)]
Usd = Annotated[Text, Field(max_length=40, examples=["10.00"], description="USD, as a string")]
Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class Body(BaseModel):
    """What a client sends: unknown fields are refused, and nothing is guessed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class NewTenant(Body):
    name: Name
    network_allowed: bool = False


class TenantChange(Body):
    network_allowed: bool


class NewCredit(Body):
    amount_usd: Usd
    id: UUID | None = Field(None, description="Yours, so that sending it twice credits once")


class NewKey(Body):
    name: Name
    expires_at: datetime | None = None


class NewLease(Body):
    id: UUID | None = Field(None, description="Yours, so that sending it twice starts one lease")
    pool: Name | None = Field(None, description="Needed only where there is more than one")
    gpus: Count = 1
    tier: Tier = Tier.INTERRUPTIBLE
    max_seconds: Annotated[int, Field(ge=1, le=2_592_000, strict=True)] = 3600
    command: Annotated[
        list[Annotated[Text, Field(max_length=131_072)]], Field(min_length=1, max_length=1000)
    ]
    environment: Annotated[dict[Text, Text], Field(max_length=1000)] = {}
    files: Annotated[dict[Text, Text], Field(max_length=1000)] = Field(
        {}, description="Relative path to content in base64"
    )
    memory_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 50, strict=True)] | None = None
    processes: Annotated[int, Field(ge=1, le=4096, strict=True)] | None = None
    network: bool = False
    resumable: bool = Field(
        False, description="Reclaimed, it comes back by itself with the time that is left"
    )


class NewInternalJob(Body):
    id: UUID | None = None
    name: Name = "internal"
    pool: Name | None = None
    gpus: Count = 1
    command: Annotated[
        list[Annotated[Text, Field(max_length=131_072)]], Field(min_length=1, max_length=1000)
    ]
    environment: Annotated[dict[Text, Text], Field(max_length=1000)] = {}


class PoolChange(Body):
    notice_seconds: Annotated[int, Field(ge=0, le=86_400, strict=True)] | None = None
    lendable: bool | None = None
    lending_limit: Annotated[int, Field(ge=0, le=10_000_000, strict=True)] | None = Field(
        None, description="null lifts the limit; leave it out to keep it"
    )


class NewPrice(Body):
    usd: Usd
    per: Literal["hour", "million_tokens"]
    exception: Name | None = Field(default=None, description="Why it may be below its floor")


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


class DeploymentChange(Body):
    wanted: bool


def usd(money: Money) -> str:
    """Write an amount exactly, without its currency."""
    return str(money).partition(" ")[0]


def tenant_document(tenant: Tenant) -> dict[str, Any]:
    return {
        "id": tenant.id,
        "name": tenant.name,
        "kind": tenant.kind,
        "network_allowed": tenant.network_allowed,
        "created_at": tenant.created_at,
    }


def key_document(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant_id": key.tenant_id,
        "role": key.role,
        "name": key.name,
        "hint": key.hint,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def wallet_document(tenant: Tenant, account: Account) -> dict[str, Any]:
    return {
        "tenant_id": tenant.id,
        "balance_usd": usd(account.balance),
        "held_usd": usd(account.held),
        "available_usd": usd(account.available),
    }


def lease_document(lease: Lease, price: Price, *, charged: Money) -> dict[str, Any]:
    return {
        "id": lease.id,
        "tenant_id": lease.tenant_id,
        "pool": lease.pool,
        "gpus": lease.gpus,
        "tier": lease.tier,
        "state": lease.state,
        "since": lease.since,
        "end_reason": lease.end_reason or lease.release_asked,
        "paused": lease.paused,
        "resumes": lease.resumes,
        "requested_at": lease.requested_at,
        "running_at": lease.running_at,
        "stopped_at": lease.stopped_at,
        "ends_at": lease.ends_at,
        "stops_at": lease.stops_at,
        "paid_until": lease.paid_until,
        "exit_code": lease.exit_code,
        "detail": lease.detail,
        "notice_seconds": int(lease.notice.total_seconds()),
        "usd_per_gpu_hour": usd(price.rate.charge(3600)),
        "charged_usd": usd(charged),
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
    }
