"""Limits of keys and tenants: how often, how much at once, and for how much money.

A limit is one number of one kind, of one key or of all keys of a tenant together. The operator
and the tenant may each set one, and both hold. Budgets are of a day, a month (both in UTC) or
for ever, and count what is used from when they are set.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Self
from uuid import UUID

from sublet.core.errors import Invalid
from sublet.tenants.tenant import KeyId, Role, TenantId

EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)


class LimitKind(StrEnum):
    REQUESTS = "requests_per_minute"
    TOKENS = "tokens_per_minute"
    STREAMS = "streams"  # answers on their way at the same time, streamed or not
    DAY = "day"
    MONTH = "month"
    LIFETIME = "lifetime"

    @property
    def is_budget(self) -> bool:
        return self in {LimitKind.DAY, LimitKind.MONTH, LimitKind.LIFETIME}

    def began(self, now: datetime) -> datetime:
        """Return when the period of a budget began that `now` is in."""
        if self is LimitKind.LIFETIME:
            return EVER
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight.replace(day=1) if self is LimitKind.MONTH else midnight

    def returns(self, now: datetime) -> datetime | None:
        """Return when all of a budget is there again; None: never."""
        if self is LimitKind.LIFETIME:
            return None
        began = self.began(now)
        if self is LimitKind.DAY:
            return began + timedelta(days=1)
        return (began + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    id: UUID
    tenant_id: TenantId
    api_key_id: KeyId | None  # None: of the tenant
    kind: LimitKind
    set_by: Role
    amount: int  # requests, tokens, streams; of a budget nanos
    set_at: datetime

    @property
    def subject(self) -> UUID:
        """Whose it is: a key's or a tenant's id."""
        return self.tenant_id if self.api_key_id is None else self.api_key_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All of one subject; of two of a kind the tighter one, but of budgets both."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    streams: int | None = None
    budgets: tuple[Limit, ...] = ()

    @classmethod
    def of(cls, limits: Iterable[Limit]) -> Self:
        least: dict[LimitKind, int] = {}
        budgets = []
        for limit in limits:
            if limit.kind.is_budget:
                budgets.append(limit)
            else:
                least[limit.kind] = min(limit.amount, least.get(limit.kind, limit.amount))
        return cls(
            requests_per_minute=least.get(LimitKind.REQUESTS),
            tokens_per_minute=least.get(LimitKind.TOKENS),
            streams=least.get(LimitKind.STREAMS),
            budgets=tuple(budgets),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitBook:
    """Every limit there is, by subject, as of one version."""

    version: int = -1
    of: Mapping[UUID, Limits] = field(default_factory=dict)

    @classmethod
    def read(cls, version: int, limits: Iterable[Limit]) -> Self:
        by_subject: dict[UUID, list[Limit]] = {}
        for limit in limits:
            by_subject.setdefault(limit.subject, []).append(limit)
        return cls(
            version=version, of={subject: Limits.of(all_) for subject, all_ in by_subject.items()}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a budget stands in its present period."""

    limit: Limit
    spent_nanos: int
    held_nanos: int  # by what runs now

    @property
    def left_nanos(self) -> int:
        return max(0, self.limit.amount - self.spent_nanos - self.held_nanos)


def checked_amount(kind: LimitKind, amount: int) -> int:
    """Raises Invalid: no such limit can be."""
    if not 0 <= amount < 10**18:
        raise Invalid(f"{kind} must lie in 0…{10**18 - 1}")
    if amount == 0 and kind in {LimitKind.REQUESTS, LimitKind.TOKENS}:
        raise Invalid(f"{kind} must be at least 1; revoke a key that shall do nothing")
    return amount
