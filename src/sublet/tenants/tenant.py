"""Who may do what: tenants, their API keys, and the two roles.

A key is `sk-sublet-` and 256 random bits. It is shown once; we keep its SHA-256. A slow
hash would add nothing: there is no dictionary of 256-bit numbers to try.
"""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a valid key speaks for. `tenant` is None exactly for the operator."""

    key_id: KeyId
    role: Role
    tenant: Tenant | None
    expires_at: datetime | None


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


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def hint(key: str) -> str:
    return key[: len(PREFIX) + 4] + "…"
