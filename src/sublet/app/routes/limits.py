"""Limits of tenants and keys: rates, answers at the same time, and budgets."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field

from sublet.app.documents import Body, Text, usd
from sublet.app.http import AnyCaller, Operator, Ours
from sublet.app.services import Services
from sublet.core.errors import Invalid
from sublet.core.money import Money, parse_amount
from sublet.tenants import limits, store
from sublet.tenants.limit import Limit, LimitKind, Standing
from sublet.tenants.tenant import Caller, KeyId, Role, TenantId

router = APIRouter(prefix="/v1", tags=["limits"])


class NewLimit(Body):
    kind: LimitKind
    amount: Annotated[
        Text,
        Field(
            max_length=40, examples=["25.00"],
            description="Of a day, month or lifetime in USD; else a whole number",
        ),
    ]  # fmt: skip
    key_id: UUID | None = Field(None, description="Of one key; else of all keys together")


@router.get("/limits")
def list_limits(ours: Ours, found: AnyCaller) -> dict[str, Any]:
    """List your limits, and what of each budget is spent and held now."""
    return _list(ours, _own(found))


@router.put("/limits")
def set_limit(ours: Ours, found: AnyCaller, body: NewLimit) -> dict[str, Any]:
    """Set a limit of your own. It holds beside the operator's, if there is one."""
    return _set(ours, _own(found), body, Role.TENANT)


@router.delete("/limits", status_code=204)
def remove_limit(
    ours: Ours, found: AnyCaller, kind: Annotated[LimitKind, Query()], key_id: UUID | None = None
) -> Response:
    """Take back a limit of your own, with what a budget has spent."""
    return _remove(ours, _own(found), kind, key_id, Role.TENANT)


@router.get("/tenants/{tenant_id}/limits")
def list_limits_of(ours: Ours, _: Operator, tenant_id: UUID) -> dict[str, Any]:
    """List a tenant's limits, the operator's and its own."""
    return _list(ours, TenantId(tenant_id))


@router.put("/tenants/{tenant_id}/limits")
def set_limit_of(ours: Ours, _: Operator, tenant_id: UUID, body: NewLimit) -> dict[str, Any]:
    """Set a limit that the tenant cannot raise."""
    return _set(ours, TenantId(tenant_id), body, Role.OPERATOR)


@router.delete("/tenants/{tenant_id}/limits", status_code=204)
def remove_limit_of(
    ours: Ours,
    _: Operator,
    tenant_id: UUID,
    kind: Annotated[LimitKind, Query()],
    key_id: UUID | None = None,
) -> Response:
    """Take back a limit that the operator set."""
    return _remove(ours, TenantId(tenant_id), kind, key_id, Role.OPERATOR)


def _own(found: Caller) -> TenantId:
    if found.tenant is None:
        raise Invalid("an operator's key has no limits; name a tenant: /v1/tenants/ID/limits")
    return found.tenant.id


def _list(ours: Services, tenant_id: TenantId) -> dict[str, Any]:
    now = ours.clock.now()
    with ours.db.transaction() as tx:
        store.get_tenant(tx, tenant_id)
        found = limits.list_limits(tx, tenant_id, now=now)
    return {"items": [_document(limit, standing, now) for limit, standing in found]}


def _set(ours: Services, tenant_id: TenantId, body: NewLimit, by: Role) -> dict[str, Any]:
    now = ours.clock.now()
    key = None if body.key_id is None else KeyId(body.key_id)
    with ours.db.transaction() as tx:
        store.get_tenant(tx, tenant_id)
        made = limits.set_limit(
            tx, tenant_id, key, body.kind, _amount(body.kind, body.amount), by=by, now=now
        )
        standings = dict(limits.list_limits(tx, tenant_id, now=now))
    return _document(made, standings[made], now)


def _remove(
    ours: Services, tenant_id: TenantId, kind: LimitKind, key_id: UUID | None, by: Role
) -> Response:
    key = None if key_id is None else KeyId(key_id)
    with ours.db.transaction() as tx:
        limits.remove_limit(tx, tenant_id, key, kind, by=by)
    return Response(status_code=204)


def _amount(kind: LimitKind, given: str) -> int:
    if kind.is_budget:
        return parse_amount(given).nanos
    if not (given.isascii() and given.isdigit() and len(given) <= 18):
        raise Invalid(f"amount of {kind} must be a whole number, not {given[:40]!r}")
    return int(given)


def _document(limit: Limit, standing: Standing, now: datetime) -> dict[str, Any]:
    document: dict[str, Any] = {
        "tenant_id": limit.tenant_id,
        "key_id": limit.api_key_id,
        "kind": limit.kind,
        "set_by": limit.set_by,
        "amount": str(limit.amount),
        "set_at": limit.set_at,
    }
    if limit.kind.is_budget:
        document |= {
            "amount": usd(Money(limit.amount)),
            "spent_usd": usd(Money(standing.spent_nanos)),
            "held_usd": usd(Money(standing.held_nanos)),
            "left_usd": usd(Money(standing.left_nanos)),
            "returns_at": limit.kind.returns(now),
        }
    return document
