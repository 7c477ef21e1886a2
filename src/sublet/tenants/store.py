"""Tenants and keys in Postgres."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Invalid, NotFound, Refused, Unauthorized
from sublet.core.ids import new_id
from sublet.core.names import checked_name
from sublet.core.vault import Vault
from sublet.tenants.tenant import (
    ApiKey,
    Caller,
    KeyId,
    Role,
    Signer,
    Tenant,
    TenantId,
    TenantKind,
    digest,
    hint,
    new_access_key,
    new_key,
)

QUERIES: Final = load_queries("sublet.tenants")


def create_tenant(
    tx: Tx, name: str, *, now: datetime, kind: TenantKind = TenantKind.CUSTOMER,
    network_allowed: bool = False,
) -> Tenant:  # fmt: skip
    """Add a tenant.

    Raises:
        Invalid: the name cannot be one.
        Refused: there is a tenant of this name.
    """
    tenant = Tenant(
        id=TenantId(new_id()),
        name=checked_name(name, what="name"),
        kind=kind,
        network_allowed=network_allowed,
        created_at=now,
    )
    row = {
        "id": tenant.id, "name": tenant.name, "kind": tenant.kind,
        "network_allowed": network_allowed, "created_at": now,
    }  # fmt: skip
    if one(tx, QUERIES["insert_tenant"], row) is None:
        raise Refused(f"there is already a tenant named {tenant.name!r}; choose another name")
    return tenant


def get_tenant(tx: Tx, tenant_id: TenantId) -> Tenant:
    """Raises NotFound: there is no such tenant."""
    row = one(tx, QUERIES["get_tenant"], {"id": tenant_id})
    if row is None:
        raise NotFound(f"there is no tenant {tenant_id}")
    return _tenant(row)


def find_tenant(tx: Tx, name: str) -> Tenant | None:
    row = one(tx, QUERIES["get_tenant_named"], {"name": name})
    return None if row is None else _tenant(row)


def list_tenants(tx: Tx) -> list[Tenant]:
    return [_tenant(row) for row in tx.execute(QUERIES["list_tenants"]).fetchall()]


def allow_network(tx: Tx, tenant_id: TenantId, *, allowed: bool) -> None:
    tx.execute(QUERIES["set_network_allowed"], {"id": tenant_id, "network_allowed": allowed})


def create_key(
    tx: Tx,
    tenant_id: TenantId | None,
    name: str,
    *,
    now: datetime,
    expires_at: datetime | None = None,
    key: str | None = None,
    access_key_id: str | None = None,
) -> tuple[ApiKey, str]:
    """Add a key and return it with its secret, which nobody can read again.

    Args:
        tx: the caller's transaction.
        tenant_id: whose it is; None makes an operator's key.
        name: what it is for.
        now: the present instant.
        expires_at: from then on it is refused; None: never.
        key: the secret, when the caller keeps it across restarts; adding it twice is harmless.
        access_key_id: by which it is named, of one that only signs; see `create_access_key`.

    Raises:
        Invalid: the name cannot be one, or it would already have expired.
        NotFound: there is no such tenant.
    """
    if tenant_id is not None:
        get_tenant(tx, tenant_id)
    if expires_at is not None and expires_at <= now:
        raise Invalid("expires_at must lie in the future")
    secret = key or new_key()
    made = ApiKey(
        id=KeyId(new_id()),
        tenant_id=tenant_id,
        role=Role.OPERATOR if tenant_id is None else Role.TENANT,
        name=checked_name(name, what="name"),
        hint=hint(secret) if access_key_id is None else access_key_id[:8] + "…",
        created_at=now,
        expires_at=expires_at,
        revoked_at=None,
        access_key_id=access_key_id,
    )
    row = {
        "id": made.id, "tenant_id": tenant_id, "role": made.role, "name": made.name,
        "digest": digest(secret), "hint": made.hint, "created_at": now, "expires_at": expires_at,
    }  # fmt: skip
    tx.execute(QUERIES["insert_key"], row)
    return made, secret


def create_access_key(
    tx: Tx,
    tenant_id: TenantId | None,
    name: str,
    *,
    vault: Vault,
    now: datetime,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Add a key that signs; return it with its secret. As `create_key`, but kept sealed.

    Raises:
        Refused: for the operator, who has nothing to call with it.
        Misconfigured: the vault's key cannot be used.
        Invalid, NotFound: as `create_key`.
    """
    if tenant_id is None:
        raise Refused("an access key is for calling models, which an operator's key cannot do")
    access_key_id, secret = new_access_key()
    # The API key behind it has a digest like every other, of a key that nobody ever has.
    made, _ = create_key(
        tx, tenant_id, name, now=now, expires_at=expires_at, access_key_id=access_key_id
    )
    row = {
        "key_id": made.id,
        "access_key_id": access_key_id,
        "sealed_secret": vault.seal(secret, bound_to=access_key_id),
    }
    tx.execute(QUERIES["insert_access_key"], row)
    return made, secret


def list_keys(tx: Tx, tenant_id: TenantId | None) -> list[ApiKey]:
    rows = tx.execute(QUERIES["list_keys"], {"tenant_id": tenant_id}).fetchall()
    return [
        ApiKey(
            id=row["id"],
            tenant_id=row["tenant_id"],
            role=Role(row["role"]),
            name=row["name"],
            hint=row["hint"],
            created_at=row["created_at"],
            expires_at=row["expires_at"],
            revoked_at=row["revoked_at"],
            access_key_id=row["access_key_id"],
        )
        for row in rows
    ]


def revoke_key(tx: Tx, key_id: KeyId, *, tenant_id: TenantId | None, now: datetime) -> None:
    """Refuse a key from now on. `tenant_id` limits it to one tenant's; None to nobody's.

    Raises:
        NotFound: no such key, or not the tenant's.
    """
    row = {"id": key_id, "tenant_id": tenant_id, "now": now}
    if one(tx, QUERIES["revoke_key"], row) is None:
        raise NotFound(f"there is no key {key_id}")


def find_caller(tx: Tx, key: str, *, now: datetime) -> Caller:
    """Return whom `key` speaks for.

    Raises:
        Unauthorized: unknown, revoked or expired; the message says which of the last two.
    """
    row = one(tx, QUERIES["find_caller"], {"digest": digest(key)})
    if row is None:
        raise Unauthorized("this API key is not known here; check that it was copied whole")
    _check_valid(row, "API key", now=now)
    return Caller(
        key_id=row["key_id"],
        role=Role(row["role"]),
        tenant=None if row["id"] is None else _tenant(row),
        expires_at=row["expires_at"],
    )


def find_signer(tx: Tx, access_key_id: str, *, now: datetime) -> Signer:
    """Return whom an access key speaks for, once its signature is found to be right.

    Raises:
        Unauthorized: as `find_caller`.
    """
    row = one(tx, QUERIES["find_signer"], {"access_key_id": access_key_id})
    if row is None:
        raise Unauthorized("this access key is not known here; check that its id was copied whole")
    _check_valid(row, "access key", now=now)
    return Signer(
        key_id=row["key_id"],
        role=Role(row["role"]),
        tenant=_tenant(row),
        expires_at=row["expires_at"],
        access_key_id=row["access_key_id"],
        sealed_secret=bytes(row["sealed_secret"]),
    )


def _check_valid(row: Mapping[str, Any], what: str, *, now: datetime) -> None:
    if row["revoked_at"] is not None:
        raise Unauthorized(f"this {what} was revoked; use another or make a new one")
    if row["expires_at"] is not None and row["expires_at"] <= now:
        raise Unauthorized(f"this {what} has expired; make a new one")


def list_revoked(tx: Tx, *, since: datetime) -> set[KeyId]:
    """Return the keys that were revoked at that instant or later."""
    return {row["id"] for row in tx.execute(QUERIES["list_revoked"], {"since": since})}


def _tenant(row: Mapping[str, Any]) -> Tenant:
    return Tenant(
        id=row["id"],
        name=row["name"],
        kind=TenantKind(row["kind"]),
        network_allowed=row["network_allowed"],
        created_at=row["created_at"],
    )
