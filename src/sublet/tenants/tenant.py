"""Who may do what: tenants, their API keys, and the two roles.

A key is `sk-sublet-` and 256 random bits. It is shown once; we keep its SHA-256. A slow
hash would add nothing: there is no dictionary of 256-bit numbers to try.

An access key is an API key whose secret is never shown by its client, who signs with it. To
check a signature we need the secret, so it is kept, sealed (`core/vault.py`).
"""

import base64
import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NewType
from uuid import UUID

TenantId = NewType("TenantId", UUID)
KeyId = NewType("KeyId", UUID)

PREFIX: Final = "sk-sublet-"
ACCESS_KEY_PREFIX: Final = "SLAK"  # of an access key's id: 20 characters, as AWS's are


class Role(StrEnum):
    OPERATOR = "operator"  # runs this Sublet: sees and sets everything, spends nothing
    TENANT = "tenant"  # spends its own wallet, sees only its own


class TenantKind(StrEnum):
    CUSTOMER = "customer"
    HOUSE = "house"  # the operator's own: its hosted models' replicas run on its leases


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    id: TenantId
    name: str
    kind: TenantKind
    network_allowed: bool  # may its workloads reach a network?
    created_at: datetime

    @property
    def wallet(self) -> str:
        return wallet_of(self.id)

    @property
    def revenue(self) -> str:
        return revenue_of(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    id: KeyId
    tenant_id: TenantId | None  # None: the operator's own
    role: Role
    name: str
    hint: str  # its first characters, to tell keys apart
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    access_key_id: str | None = None  # of one that signs; None: its secret is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a valid key speaks for. `tenant` is None exactly for the operator."""

    key_id: KeyId
    role: Role
    tenant: Tenant | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer(Caller):
    """Who signs with an access key, and the secret to check it by, sealed."""

    access_key_id: str
    sealed_secret: bytes


def wallet_of(tenant_id: UUID) -> str:
    """Return the code of the account it pays from."""
    return f"tenant:{tenant_id}:wallet"


def revenue_of(tenant_id: UUID) -> str:
    """Return the code of the account that what it pays goes to.

    One for each tenant: a single one would be locked by every payment of everybody.
    """
    return f"tenant:{tenant_id}:revenue"


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def new_access_key() -> tuple[str, str]:
    """Return (id, secret) in the forms of AWS's own, which its tools expect: 20 and 40 characters."""
    letters = base64.b32encode(secrets.token_bytes(10)).decode()
    return ACCESS_KEY_PREFIX + letters, secrets.token_urlsafe(30)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def hint(key: str) -> str:
    return key[: len(PREFIX) + 4] + "…"
