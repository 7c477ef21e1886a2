"""What tenants used and what it cost them, and the tags by which they tell it apart."""

from datetime import date, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field

from sublet.app.documents import Body, Text, Usd, usd
from sublet.app.http import AnyCaller, Forbidden, OneTenant, Ours
from sublet.app.mail import secret_of
from sublet.app.services import Services
from sublet.core.db import Tx
from sublet.core.errors import Invalid
from sublet.core.money import Money, parse_amount
from sublet.invoices import budgets, service
from sublet.invoices.budgets import Budget
from sublet.invoices.explorer import By, Filter, foresee, list_usage
from sublet.invoices.invoice import month_of, zone
from sublet.leases.webhook import check_url
from sublet.metering import tags
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Caller, Tenant, TenantId

router = APIRouter(prefix="/v1", tags=["usage"])
_LONGEST = timedelta(days=800)
Model = Annotated[str | None, Query(max_length=200)]
Pool = Annotated[str | None, Query(max_length=200)]
Key = Annotated[str | None, Query(max_length=200, description="The name of an API key.")]
Lease = Annotated[UUID | None, Query()]
Tag = Annotated[str | None, Query(max_length=200, examples=["team=research"])]


class Tags(Body):
    tags: Annotated[dict[str, str], Field(examples=[{"team": "research"}])]


class NewBudget(Body):
    amount_usd: Usd
    key: Annotated[Text, Field(max_length=200)] | None = None
    tag: Annotated[Text, Field(max_length=200, examples=["team=research"])] | None = None
    percents: Annotated[tuple[int, ...], Field(min_length=1, max_length=10)] = (50, 80, 100)
    email: Annotated[Text, Field(max_length=254, pattern=r"^([^@\s]+@[^@\s]+)?$")] = ""
    webhook: Annotated[Text, Field(max_length=2_000)] = ""


@router.get("/usage")
def show_usage(
    ours: Ours,
    found: AnyCaller,
    start: Annotated[date | None, Query(alias="from")] = None,
    end: Annotated[date | None, Query(alias="to")] = None,
    by: Annotated[list[str] | None, Query(max_length=7, examples=[["day", "tag:team"]])] = None,
    model: Model = None,
    pool: Pool = None,
    key: Key = None,
    lease: Lease = None,
    tag: Tag = None,
    tenant_id: UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> dict[str, Any]:
    """Show what you used and what it cost, this month if you do not say which days.

    By any of day, product, model, pool, key, lease and one `tag:NAME`. Days are yours, by the time
    zone of your invoices.
    """
    asked, by_tag = _by(by or ["day"])
    only = _only(model, pool, key, lease, tag)
    with ours.db.transaction() as tx:
        tenant = tenants.get_tenant(tx, _whose(found, tenant_id))
        zone_name = service.profile_of(tx, tenant).time_zone
        first, after = month_of(ours.clock.now().astimezone(zone(zone_name)).date())
        start, end = start or first, end or after
        if not timedelta(0) < end - start <= _LONGEST:
            raise Invalid(f"from, to: a period is 1 to {_LONGEST.days} days, not {start} to {end}")
        rows = list_usage(
            tx, tenant.id, start, end, zone_name=zone_name, by=asked, by_tag=by_tag, only=only,
            limit=limit + 1, offset=offset,
        )  # fmt: skip
    names = [*map(str, asked), *(["tag"] if by_tag else [])]
    return {
        "from": start.isoformat(),
        "to": end.isoformat(),
        "time_zone": zone_name,
        "items": [
            {name: row[name] for name in names}
            | {
                "amount_usd": usd(Money(int(row["amount_nanos"]))),
                "gpu_hours": round(float(row["gpu_seconds"]) / 3600, 6),
                "input_tokens": int(row["input_tokens"]),
                "output_tokens": int(row["output_tokens"]),
                "charges": row["charges"],
            }
            for row in rows[:limit]
        ],
        "next_offset": offset + limit if len(rows) > limit else None,
    }


@router.get("/usage/forecast")
def show_forecast(
    ours: Ours,
    found: AnyCaller,
    model: Model = None,
    pool: Pool = None,
    key: Key = None,
    lease: Lease = None,
    tag: Tag = None,
    tenant_id: UUID | None = None,
) -> dict[str, Any]:
    """Show what this month comes to, if it goes on as the last four weeks did."""
    only = _only(model, pool, key, lease, tag)
    with ours.db.transaction() as tx:
        tenant = tenants.get_tenant(tx, _whose(found, tenant_id))
        zone_name = service.profile_of(tx, tenant).time_zone
        seen = foresee(tx, tenant.id, zone_name=zone_name, now=ours.clock.now(), only=only)
    return {
        "month": f"{seen.month:%Y-%m}",
        "spent_usd": usd(seen.spent),
        "a_day_usd": usd(seen.a_day),
        "days_seen": seen.days_seen,
        "days_left": round(seen.days_left, 3),
        "forecast_usd": usd(seen.total),
    }


@router.put("/tags/{subject}")
def put_tags(ours: Ours, found: AnyCaller, subject: UUID, body: Tags) -> dict[str, Any]:
    """Tag an API key, a lease or a reservation of yours: what is charged for it from now on."""
    with ours.db.transaction() as tx:
        owner = None if found.tenant is None else found.tenant.id
        tags.put(tx, subject, body.tags, tenant_id=owner, now=ours.clock.now())
    return {"id": subject, "tags": body.tags}


@router.get("/tags/{subject}")
def show_tags(ours: Ours, found: AnyCaller, subject: UUID) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        owner = None if found.tenant is None else found.tenant.id
        return {"id": subject, "tags": tags.get(tx, subject, tenant_id=owner)}


@router.put("/budgets/{name}")
def put_budget(ours: Ours, tenant: OneTenant, name: str, body: NewBudget) -> dict[str, Any]:
    """Say what you mean to spend in a month, and whom to tell at which shares of it."""
    pair = _only(None, None, None, None, body.tag).tag
    if body.webhook:
        check_url(body.webhook)
    budget = Budget(
        tenant_id=tenant.id, name=name, amount=parse_amount(body.amount_usd), key=body.key,
        tag=pair, percents=body.percents, email=body.email, webhook=body.webhook,
    )  # fmt: skip
    with ours.db.transaction() as tx:
        budgets.put(tx, budget)
        return _budget(ours, tx, tenant, budget)


@router.get("/budgets")
def list_budgets(ours: Ours, tenant: OneTenant) -> dict[str, Any]:
    """List your budgets, and what was charged of each this month."""
    with ours.db.transaction() as tx:
        found = budgets.list_budgets(tx, tenant.id)
        items = [_budget(ours, tx, tenant, budget) for budget in found]
    return {"items": items, "webhook_secret": secret_of(ours.signing_key, tenant.id)}


@router.delete("/budgets/{name}", status_code=204)
def remove_budget(ours: Ours, tenant: OneTenant, name: str) -> None:
    with ours.db.transaction() as tx:
        budgets.remove(tx, tenant.id, name)


def _budget(ours: Services, tx: Tx, tenant: Tenant, budget: Budget) -> dict[str, Any]:
    zone_name = service.profile_of(tx, tenant).time_zone
    so_far = budgets.spent_of(tx, budget, zone_name=zone_name, now=ours.clock.now())
    return {
        "name": budget.name,
        "amount_usd": usd(budget.amount),
        "spent_usd": usd(so_far),
        "key": budget.key,
        "tag": None if budget.tag is None else "=".join(budget.tag),
        "percents": budget.percents,
        "email": budget.email,
        "webhook": budget.webhook,
    }


def _whose(found: Caller, tenant_id: UUID | None) -> TenantId:
    if found.tenant is None:
        if tenant_id is None:
            raise Invalid("tenant_id: say whose, with the operator's key")
        return TenantId(tenant_id)
    if tenant_id not in {None, found.tenant.id}:
        raise Forbidden("a tenant sees its own usage: leave tenant_id out")
    return found.tenant.id


def _by(names: list[str]) -> tuple[list[By], str | None]:
    asked, by_tag = [], None
    for name in names:
        if name.startswith("tag:") and by_tag is None:
            by_tag = name.removeprefix("tag:")
        elif name in set(By):
            asked.append(By(name))
        else:
            raise Invalid(f"by: {name[:40]!r} is none of {', '.join(By)}, or one tag:NAME")
    return asked, by_tag


def _only(
    model: str | None, pool: str | None, key: str | None, lease: UUID | None, tag: str | None
) -> Filter:
    pair = None
    if tag is not None:
        name, given, value = tag.partition("=")
        if not given:
            raise Invalid(f"tag: {tag[:40]!r} is no NAME=VALUE such as team=research")
        pair = name, value
    return Filter(model=model, pool=pool, key=key, lease=lease, tag=pair)
