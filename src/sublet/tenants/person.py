"""People who sign in to the console: what each of them may do.

A person is of the operator's, or of one tenant's; never of both. What a role may do is in the
one table below; a page or an action names what it needs, and nothing else decides.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NewType
from uuid import UUID

from sublet.core.errors import Invalid
from sublet.tenants.tenant import TenantId

PersonId = NewType("PersonId", UUID)

# How long somebody stays signed in: with nothing done, and at most.
IDLE: Final = timedelta(hours=12)
LONGEST: Final = timedelta(days=7)
INVITED: Final = timedelta(days=7)
# Failed sign-ins within so long after which no more are tried: for one account, from one address.
FAILURES_WITHIN: Final = timedelta(minutes=15)
MOST_FAILURES: Final = {"email": 10, "address": 50}
PASSWORD_LENGTH: Final = (10, 200)
_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,190}")


class PersonRole(StrEnum):
    OWNER = "owner"  # all that can be done, and who else may
    OPERATOR = "operator"  # fleet, leases, models, prices
    FINANCE = "finance"  # sees all of it; wallets, invoices, assets
    READ_ONLY = "read_only"  # sees all of it
    TENANT_ADMIN = "tenant_admin"  # all of its tenant's, and who else may
    TENANT_MEMBER = "tenant_member"  # uses models and leases; sees usage


class Right(StrEnum):
    LOOK = "look"  # at what is the operator's
    RUN = "run"  # change fleet, leases, models, prices
    MONEY = "money"  # change wallets, invoices, assets
    PEOPLE = "people"  # invite and disable people
    USE = "use"  # spend a tenant's money on models and leases
    MANAGE = "manage"  # a tenant's keys, budgets, limits, bills


RIGHTS: Final[Mapping[PersonRole, frozenset[Right]]] = {
    PersonRole.OWNER: frozenset({Right.LOOK, Right.RUN, Right.MONEY, Right.PEOPLE}),
    PersonRole.OPERATOR: frozenset({Right.LOOK, Right.RUN}),
    PersonRole.FINANCE: frozenset({Right.LOOK, Right.MONEY}),
    PersonRole.READ_ONLY: frozenset({Right.LOOK}),
    PersonRole.TENANT_ADMIN: frozenset({Right.USE, Right.MANAGE, Right.PEOPLE}),
    PersonRole.TENANT_MEMBER: frozenset({Right.USE}),
}
OF_TENANTS: Final = frozenset({PersonRole.TENANT_ADMIN, PersonRole.TENANT_MEMBER})


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    id: PersonId
    email: str
    name: str
    role: PersonRole
    tenant_id: TenantId | None  # None exactly for the operator's own
    has_password: bool
    asks_code: bool  # a one-time code, after the password
    has_oidc: bool
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody signed in, in one browser."""

    digest: bytes
    person: Person
    confirmed: bool  # False: the one-time code is still to come
    acts_for: TenantId | None  # whom somebody of the operator's acts for
    made_at: datetime
    expires_at: datetime

    @property
    def tenant_id(self) -> TenantId | None:
        """Whose things this session sees; None: the operator's."""
        return self.person.tenant_id or self.acts_for

    @property
    def rights(self) -> frozenset[Right]:
        """What may be done now. Who acts for a tenant is its admin as far as they may change things."""
        own = RIGHTS[self.person.role]
        if self.acts_for is None:
            return own
        return frozenset({Right.USE, Right.MANAGE}) if Right.RUN in own else frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    id: UUID
    role: PersonRole
    tenant_id: TenantId | None
    email: str | None
    made_at: datetime
    expires_at: datetime


def new_token() -> str:
    """Return 256 random bits: of a session, or an invitation."""
    return secrets.token_urlsafe(32)


def digest_of(token: str) -> bytes:
    """Return what is kept of a token; nobody can try all 256-bit numbers, so it need not be slow."""
    return hashlib.sha256(b"sublet console " + token.encode("utf-8", "replace")).digest()


def checked_email(text: str) -> str:
    """Raises Invalid: it is no address."""
    email = text.strip().lower()
    if not _EMAIL.fullmatch(email):
        raise Invalid(f"{text.strip()[:80]!r} is no e-mail address")
    return email


def checked_password(text: str) -> str:
    """Raises Invalid: too short, or too long."""
    shortest, longest = PASSWORD_LENGTH
    if not shortest <= len(text) <= longest:
        raise Invalid(f"a password has {shortest} to {longest} characters, this one {len(text)}")
    return text


def check_role(role: PersonRole, tenant_id: UUID | None) -> None:
    """Raises Invalid: a tenant's role without a tenant, or another with one."""
    if (role in OF_TENANTS) != (tenant_id is not None):
        raise Invalid(
            f"the role {role} is a tenant's: say which"
            if role in OF_TENANTS
            else f"the role {role} is the operator's: it has no tenant"
        )
