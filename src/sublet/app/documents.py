"""The API's documents: what comes in, held strictly; what goes out, with money as strings."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sublet.core.money import Money
from sublet.fleet.pool import Policy, parse_quiet
from sublet.leases.lease import Lease
from sublet.leases.resale import Resale
from sublet.leases.reservation import Reservation
from sublet.ledger.transfer import Account
from sublet.market.price import Price, Tier
from sublet.market.quote import Quote
from sublet.market.store import usd_per_hour
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
    sigv4: bool = Field(
        False,
        description="Make an access key, with which AWS's clients sign their requests (Signature"
        " Version 4), instead of a key that is shown",
    )


class NewWorkload(Body):
    """What a lease runs."""

    environment: Annotated[dict[Text, Text], Field(max_length=1000)] = {}
    files: Annotated[dict[Text, Text], Field(max_length=1000)] = Field(
        {}, description="Relative path to content in base64"
    )
    memory_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 50, strict=True)] | None = None
    processes: Annotated[int, Field(ge=1, le=4096, strict=True)] | None = None
    network: bool = False
    image: Annotated[Text, Field(max_length=128)] | None = Field(
        None, description="Run it on this image of the operator's, and not on the node's own system"
    )
    interactive: bool = Field(
        False, description="Let you connect to what listens on the socket $SUBLET_SOCKET"
    )


Argument = Annotated[Text, Field(max_length=131_072)]


class NewReservation(NewWorkload):
    id: UUID | None = Field(None, description="Yours, so that sending it twice books once")
    quote: UUID | None = Field(
        None, description="Book what was quoted, at its price; leave out what the quote says"
    )
    pool: Name | None = Field(None, description="Needed only where there is more than one")
    gpus: Count = 1
    starts_at: datetime | None = Field(None, description="A whole second, with its time zone")
    ends_at: datetime | None = None
    notice_seconds: Annotated[int, Field(ge=0, le=86_400, strict=True)] | None = None
    command: Annotated[list[Argument], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="Started by itself when the window starts"
    )


class NewResale(Body):
    id: UUID | None = Field(None, description="Yours, so that sending it twice offers once")
    gpus: Count
    limit_usd_per_gpu_hour: Usd | None = Field(
        None, description="Sold for no less; left out, they are paused: let go for any price"
    )


class NewLease(NewWorkload):
    id: UUID | None = Field(None, description="Yours, so that sending it twice starts one lease")
    reservation: UUID | None = Field(None, description="Lease from this window of yours")
    quote: UUID | None = Field(
        None, description="Lease what was quoted, at its price; leave out what the quote says"
    )
    pool: Name | None = Field(None, description="Needed only where there is more than one")
    gpus: Count = 1
    tier: Tier = Tier.INTERRUPTIBLE
    max_seconds: Annotated[int, Field(ge=1, le=2_592_000, strict=True)] = 3600
    command: Annotated[list[Argument], Field(min_length=1, max_length=1000)]
    notice_seconds: Annotated[int, Field(ge=0, le=86_400, strict=True)] | None = Field(
        None,
        description="Between being told to go and being killed; the pool's longest, if left out",
    )
    webhook: Annotated[Text, Field(max_length=2000)] | None = Field(
        None, description="An https address of yours that is told of the notice, signed"
    )
    resumable: bool = Field(
        False, description="Reclaimed, it comes back by itself with the time that is left"
    )


class NewQuote(Body):
    pool: Name | None = Field(None, description="Needed only where there is more than one")
    gpus: Count = 1
    tier: Tier = Tier.INTERRUPTIBLE
    max_seconds: Annotated[int, Field(ge=1, le=2_592_000, strict=True)] = 3600
    notice_seconds: Annotated[int, Field(ge=0, le=86_400, strict=True)] | None = None
    starts_at: datetime | None = Field(None, description="Of a reserved window")
    ends_at: datetime | None = None
    lifetime_seconds: Annotated[int, Field(ge=1, le=3600, strict=True)] = Field(
        600, description="For how long its price is held"
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
    confirm: bool = Field(
        False, description="Change it also where promises stand that it would not allow"
    )
    notice_seconds: Annotated[int, Field(ge=0, le=86_400, strict=True)] | None = None
    lendable: bool | None = None
    lending_limit: Annotated[int, Field(ge=0, le=10_000_000, strict=True)] | None = Field(
        None, description="null lifts the limit; leave it out to keep it"
    )
    reserve: Annotated[int, Field(ge=0, le=10_000_000, strict=True)] | None = None
    firm_seconds: Annotated[int, Field(ge=60, le=86_400, strict=True)] | None = None
    firm_confidence: Annotated[float, Field(ge=0.5, le=0.9999, strict=True)] | None = Field(
        None, description="null: as the instance is set; leave it out to keep it"
    )
    credit_percent: Annotated[int, Field(ge=0, le=1000, strict=True)] | None = None
    floor_usd_per_gpu_hour: Usd | None = Field(
        None, description="null takes the floor away; leave it out to keep it"
    )
    quiet_hours: Annotated[Text, Field(max_length=20, examples=["22:00-06:30"])] | None = Field(
        None, description="UTC; null: none; leave it out to keep them"
    )
    exclusive: bool | None = Field(
        None, description="Sell whole nodes, which a tenant's lease shares with nobody"
    )


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
        "access_key_id": key.access_key_id,
    }


def wallet_document(tenant: Tenant, account: Account) -> dict[str, Any]:
    return {
        "tenant_id": tenant.id,
        "balance_usd": usd(account.balance),
        "held_usd": usd(account.held),
        "available_usd": usd(account.available),
    }


def quote_document(quote: Quote, *, now: datetime) -> dict[str, Any]:
    return {
        "id": quote.id,
        "state": quote.state(now),
        "pool": quote.pool,
        "gpus": quote.gpus,
        "tier": quote.tier,
        "notice_seconds": int(quote.notice.total_seconds()),
        "max_seconds": int(quote.max_duration.total_seconds()),
        "starts_at": quote.starts_at,
        "usd_per_gpu_hour": usd(quote.price.rate.charge(3600)),
        "list_usd_per_gpu_hour": usd(quote.list_price.rate.charge(3600)),
        "most_usd": usd(quote.most),
        "made_at": quote.made_at,
        "expires_at": quote.expires_at,
        "accepted_at": quote.accepted_at,
        "sold": quote.sold,
    }


def reservation_document(
    sold: Reservation, price: Price, listed: Price, *, in_use: int, now: datetime
) -> dict[str, Any]:
    return {
        "id": sold.id,
        "tenant_id": sold.tenant_id,
        "state": sold.state(now),
        "pool": sold.pool,
        "gpus": sold.gpus,
        "gpus_in_use": in_use,
        "gpus_taken_back": sold.lost_gpus,
        "starts_at": sold.starts_at,
        "ends_at": sold.ends_at,
        "starts_by_itself": sold.has_workload,
        "notice_seconds": int(sold.notice.total_seconds()),
        "usd_per_gpu_hour": usd(price.rate.charge(3600)),
        "list_usd_per_gpu_hour": usd(listed.rate.charge(3600)),
        "cost_usd": usd(sold.cost(price.rate)),
        "booked_at": sold.booked_at,
    }


def resale_document(resale: Resale) -> dict[str, Any]:
    return {
        "id": resale.id,
        "reservation_id": resale.reservation_id,
        "state": "on_sale" if resale.ended_at is None else "taken_back",
        "gpus": resale.gpus,
        "limit_usd_per_gpu_hour": None if resale.limit is None else usd(resale.limit.charge(3600)),
        "share_percent": resale.share_percent,
        "listed_at": resale.listed_at,
        "ended_at": resale.ended_at,
    }


def credit_document(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["transfer_id"],
        "tenant_id": row["tenant_id"],
        "lease_id": row["lease_id"],
        "reservation_id": row["reservation_id"],
        "gpus": row["gpus"],
        "broken_at": row["happened_at"],
        "promised_until": row["promised_until"],
        "percent": row["percent"],
        "amount_usd": usd(Money(int(row["amount_nanos"]))),
        "evidence": row["evidence"],
        "recorded_at": row["recorded_at"],
    }


def lease_document(lease: Lease, price: Price, listed: Price, *, charged: Money) -> dict[str, Any]:
    return {
        "id": lease.id,
        "tenant_id": lease.tenant_id,
        "pool": lease.pool,
        "gpus": lease.gpus,
        "exclusive": lease.exclusive,
        "tier": lease.tier,
        "state": lease.state,
        "since": lease.since,
        "end_reason": lease.end_reason or lease.release_asked,
        "paused": lease.paused,
        "reservation": lease.reservation_id,
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
        "noticed_at": lease.noticed_at,
        "checkpoint_at": lease.checkpoint_at,
        "notice_given_seconds": _given(lease),
        "firm_until": lease.firm_until,
        "usd_per_gpu_hour": usd(price.rate.charge(3600)),
        "list_usd_per_gpu_hour": usd(listed.rate.charge(3600)),
        "charged_usd": usd(charged),
    }


def _given(lease: Lease) -> int | None:
    """Return how long before its last instant it was told to go; None while it was not."""
    if lease.noticed_at is None or lease.stops_at is None:
        return None
    return int((lease.stops_at - lease.noticed_at).total_seconds())


def policy_document(policy: Policy) -> dict[str, Any]:
    return {
        "notice_seconds": policy.notice_seconds,
        "lendable": policy.lendable,
        "lending_limit": policy.lending_limit,
        "reserve": policy.reserve,
        "firm_seconds": policy.firm_seconds,
        "firm_confidence": policy.firm_confidence,
        "credit_percent": policy.credit_percent,
        "floor_usd_per_gpu_hour": None if policy.floor is None else usd(policy.floor.charge(3600)),
        "quiet_hours": None if policy.quiet is None else str(policy.quiet),
        "exclusive": policy.exclusive,
    }


def changed_policy(policy: Policy, body: PoolChange) -> Policy:
    """Return `policy` with what a client sent; what it left out stays.

    Raises:
        Invalid: a value cannot be read.
    """
    given = body.model_fields_set - {"confirm"}
    kept = {"notice_seconds", "lendable", "reserve", "firm_seconds", "credit_percent", "exclusive"}
    changes: dict[str, Any] = {
        name: getattr(body, name)
        for name in kept | {"lending_limit", "firm_confidence"}
        if name in given and not (name in kept and getattr(body, name) is None)
    }
    if "floor_usd_per_gpu_hour" in given:
        said = body.floor_usd_per_gpu_hour
        changes["floor"] = None if said is None else usd_per_hour(said)
    if "quiet_hours" in given:
        changes["quiet"] = None if body.quiet_hours is None else parse_quiet(body.quiet_hours)
    return replace(policy, **changes)
