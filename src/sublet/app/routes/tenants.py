"""Tenants, their keys and wallets."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response

from sublet.app import bootstrap
from sublet.app.documents import (
    NewCredit,
    NewKey,
    NewTenant,
    TenantChange,
    key_document,
    tenant_document,
    usd,
    wallet_document,
)
from sublet.app.http import AnyCaller, OneTenant, Operator, Ours
from sublet.app.idempotency import Once, OneCall
from sublet.app.services import Services
from sublet.core.db import Tx
from sublet.core.errors import Invalid
from sublet.core.ids import new_id
from sublet.core.money import Money, parse_amount
from sublet.ledger import store as ledger
from sublet.metering import store as metering
from sublet.tenants import store
from sublet.tenants.tenant import KeyId, Tenant, TenantId

router = APIRouter(prefix="/v1")


@router.get("/me", tags=["keys"])
def show_me(found: AnyCaller) -> dict[str, Any]:
    """Say whom the key speaks for."""
    return {
        "role": found.role,
        "key_id": found.key_id,
        "tenant": None if found.tenant is None else tenant_document(found.tenant),
    }


@router.post("/tenants", status_code=201, tags=["tenants"])
def create_tenant(ours: Ours, _: Operator, once: OneCall, body: NewTenant) -> dict[str, Any]:
    def create(tx: Tx) -> dict[str, Any]:
        tenant = store.create_tenant(
            tx, body.name, now=ours.clock.now(), network_allowed=body.network_allowed
        )
        bootstrap.open_accounts(tx, tenant)
        return tenant_document(tenant)

    return once.run(body, create)


@router.get("/tenants", tags=["tenants"])
def list_tenants(ours: Ours, _: Operator) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        return {"items": [tenant_document(tenant) for tenant in store.list_tenants(tx)]}


@router.get("/tenants/{tenant_id}", tags=["tenants"])
def show_tenant(ours: Ours, _: Operator, tenant_id: UUID) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        return tenant_document(store.get_tenant(tx, TenantId(tenant_id)))


@router.patch("/tenants/{tenant_id}", tags=["tenants"])
def change_tenant(ours: Ours, _: Operator, tenant_id: UUID, body: TenantChange) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        store.get_tenant(tx, TenantId(tenant_id))
        store.allow_network(tx, TenantId(tenant_id), allowed=body.network_allowed)
        return tenant_document(store.get_tenant(tx, TenantId(tenant_id)))


@router.post("/tenants/{tenant_id}/credits", tags=["wallets"])
def credit_wallet(
    ours: Ours, _: Operator, once: OneCall, tenant_id: UUID, body: NewCredit
) -> dict[str, Any]:
    """Top up a wallet with money that arrived.

    To be safe to repeat, send the payment's `id`, or an `Idempotency-Key`.
    """
    amount = parse_amount(body.amount_usd)

    def credit(tx: Tx) -> dict[str, Any]:
        tenant = store.get_tenant(tx, TenantId(tenant_id))
        bootstrap.top_up(tx, tenant, amount, payment=body.id or new_id(), now=ours.clock.now())
        return wallet_document(tenant, ledger.get_account(tx, tenant.wallet))

    return once.run(body, credit)


@router.get("/tenants/{tenant_id}/wallet", tags=["wallets"])
def show_wallet_of(ours: Ours, _: Operator, tenant_id: UUID) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        tenant = store.get_tenant(tx, TenantId(tenant_id))
        return wallet_document(tenant, ledger.get_account(tx, tenant.wallet))


@router.get("/wallet", tags=["wallets"])
def show_wallet(ours: Ours, tenant: OneTenant) -> dict[str, Any]:
    """Show your balance, what requests and leases in progress hold of it, and what is left."""
    with ours.db.transaction() as tx:
        return wallet_document(tenant, ledger.get_account(tx, tenant.wallet))


@router.get("/statement", tags=["wallets"])
def show_statement(
    ours: Ours,
    tenant: OneTenant,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=1, le=1 << 62)] = None,
) -> dict[str, Any]:
    """List every movement of your wallet, newest first; they add up to its balance.

    `before` is the `sequence` of the last one you saw.
    """
    return _statement(ours, tenant, limit, before)


@router.get("/tenants/{tenant_id}/statement", tags=["wallets"])
def show_statement_of(
    ours: Ours,
    _: Operator,
    tenant_id: UUID,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=1, le=1 << 62)] = None,
) -> dict[str, Any]:
    """List every movement of a tenant's wallet, newest first; they add up to its balance."""
    with ours.db.transaction() as tx:
        tenant = store.get_tenant(tx, TenantId(tenant_id))
    return _statement(ours, tenant, limit, before)


@router.post("/tenants/{tenant_id}/keys", status_code=201, tags=["keys"])
def create_key_of(
    ours: Ours, _: Operator, once: OneCall, tenant_id: UUID, body: NewKey
) -> dict[str, Any]:
    """Make a key for a tenant. The answer is the only place where it is ever shown."""
    return _create_key(ours, once, TenantId(tenant_id), body)


@router.get("/tenants/{tenant_id}/keys", tags=["keys"])
def list_keys_of(ours: Ours, _: Operator, tenant_id: UUID) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        store.get_tenant(tx, TenantId(tenant_id))
        return {"items": [key_document(key) for key in store.list_keys(tx, TenantId(tenant_id))]}


@router.post("/keys", status_code=201, tags=["keys"])
def create_key(ours: Ours, found: AnyCaller, once: OneCall, body: NewKey) -> dict[str, Any]:
    """Make a key of your own. The answer is the only place where it is ever shown."""
    return _create_key(ours, once, None if found.tenant is None else found.tenant.id, body)


@router.get("/keys", tags=["keys"])
def list_keys(ours: Ours, found: AnyCaller) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        keys = store.list_keys(tx, None if found.tenant is None else found.tenant.id)
    return {"items": [key_document(key) for key in keys]}


@router.delete("/keys/{key_id}", status_code=204, tags=["keys"])
def revoke_key(ours: Ours, found: AnyCaller, key_id: UUID) -> Response:
    """Refuse a key from now on."""
    with ours.db.transaction() as tx:
        store.revoke_key(
            tx,
            KeyId(key_id),
            tenant_id=None if found.tenant is None else found.tenant.id,
            now=ours.clock.now(),
        )
    return Response(status_code=204)


@router.get("/charges", tags=["wallets"])
def list_charges(
    ours: Ours,
    tenant: OneTenant,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None,
    request_id: Annotated[str | None, Query(max_length=200, pattern=r"^[\x20-\x7e]*$")] = None,
    lease_id: UUID | None = None,
) -> dict[str, Any]:
    """List what you were charged, newest first, each line with the use and the price behind it.

    `limit` counts whole charges, each of which has a line a SKU; to page on, give the last
    one's `record` as `before`.
    """
    with ours.db.transaction() as tx:
        rows = metering.list_charges(
            tx,
            tenant.id,
            limit=limit,
            before=before,
            request_id=request_id,
            lease_id=lease_id,
        )
    for row in rows:
        row["amount_usd"] = usd(Money(int(row.pop("amount_nanos"))))
        del row["nanos"], row["per"]
    return {"items": rows}


def instant(given: datetime | None, name: str) -> datetime | None:
    """Raises Invalid: a time without its zone means another instant everywhere."""
    if given is None:
        return None
    if given.tzinfo is None:
        raise Invalid(f"{name} must say its time zone, such as 2026-01-31T12:00:00Z")
    try:
        return given.astimezone(UTC)
    except OverflowError:
        raise Invalid(f"{name} is out of range") from None


def _statement(ours: Services, tenant: Tenant, limit: int, before: int | None) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        rows = ledger.list_movements(tx, tenant.wallet, limit=limit, before=before)
    for row in rows:
        row["amount_usd"] = usd(Money(int(row.pop("amount_nanos"))))
    return {"items": rows}


def _create_key(
    ours: Services, once: Once, tenant_id: TenantId | None, body: NewKey
) -> dict[str, Any]:
    expires_at = instant(body.expires_at, "expires_at")

    def create(tx: Tx) -> dict[str, Any]:
        made, secret = store.create_key(
            tx, tenant_id, body.name, now=ours.clock.now(), expires_at=expires_at
        )
        return key_document(made) | {"key": secret}

    def create_access(tx: Tx) -> dict[str, Any]:
        made, secret = store.create_access_key(
            tx, tenant_id, body.name, vault=ours.vault, now=ours.clock.now(), expires_at=expires_at
        )
        return key_document(made) | {"secret_access_key": secret}

    if body.sigv4:
        return once.run(body, create_access, shown_once="secret_access_key")
    return once.run(body, create, shown_once="key")
