"""Budgets: what a tenant means to spend in a month, and whom to tell at which shares of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sublet.core.db import Tx, one
from sublet.core.errors import Invalid, NotFound
from sublet.core.ids import derived_id
from sublet.core.money import Money
from sublet.invoices import outgoing
from sublet.invoices.explorer import Filter, spent
from sublet.invoices.invoice import month_of, zone
from sublet.invoices.outgoing import Channel, Outgoing
from sublet.invoices.store import QUERIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    tenant_id: UUID
    name: str
    amount: Money  # a month
    key: str | None = None  # only of this API key
    tag: tuple[str, str] | None = None  # only of what has this tag
    percents: tuple[int, ...] = (50, 80, 100)
    email: str = ""
    webhook: str = ""

    def __post_init__(self) -> None:
        """Raises Invalid: it can tell nobody, or at no share."""
        if not self.email and not self.webhook:
            raise Invalid("email, webhook: say whom to tell")
        if not self.percents or not all(1 <= percent <= 1_000 for percent in self.percents):
            raise Invalid("percents: 1 to 1000, one at least")

    @property
    def id(self) -> UUID:
        return derived_id("budget", self.tenant_id, self.name)

    @property
    def only(self) -> Filter:
        return Filter(key=self.key, tag=self.tag)

    def reached(self, nanos: int) -> list[int]:
        """Return the shares that so much has reached, the least first."""
        return [p for p in sorted(self.percents) if nanos * 100 >= self.amount.nanos * p]


def put(tx: Tx, budget: Budget) -> None:
    name, value = budget.tag or (None, None)
    row = {
        "id": budget.id, "tenant_id": budget.tenant_id, "name": budget.name,
        "amount_nanos": budget.amount.nanos, "key": budget.key, "tag_name": name,
        "tag_value": value, "percents": list(budget.percents), "email": budget.email,
        "webhook": budget.webhook,
    }  # fmt: skip
    tx.execute(QUERIES["put_budget"], row)


def remove(tx: Tx, tenant_id: UUID, name: str) -> None:
    """Raises NotFound: there is no such budget."""
    if one(tx, QUERIES["delete_budget"], {"tenant_id": tenant_id, "name": name}) is None:
        raise NotFound(f"there is no budget {name[:60]!r}")


def list_budgets(tx: Tx, tenant_id: UUID | None) -> list[Budget]:
    return [
        Budget(
            tenant_id=row["tenant_id"], name=row["name"], amount=Money(int(row["amount_nanos"])),
            key=row["key"],
            tag=None if row["tag_name"] is None else (row["tag_name"], row["tag_value"]),
            percents=tuple(row["percents"]), email=row["email"], webhook=row["webhook"],
        )
        for row in tx.execute(QUERIES["list_budgets"], {"tenant_id": tenant_id})
    ]  # fmt: skip


def spent_of(tx: Tx, budget: Budget, *, zone_name: str, now: datetime) -> Money:
    """Return what was charged of it this month."""
    first, after = month_of(now.astimezone(zone(zone_name)).date())
    return spent(tx, budget.tenant_id, first, after, zone_name=zone_name, only=budget.only)


def alert(tx: Tx, budget: Budget, *, zone_name: str, now: datetime) -> Sequence[int]:
    """Tell whom it may concern of the highest share that is newly reached; return all that are."""
    month, _ = month_of(now.astimezone(zone(zone_name)).date())
    known = {
        row["percent"]
        for row in tx.execute(QUERIES["list_alerts"], {"id": budget.id, "month": month})
    }
    if set(budget.percents) <= known:
        return []
    so_far = spent_of(tx, budget, zone_name=zone_name, now=now)
    new = []
    for percent in budget.reached(so_far.nanos):
        row = {
            "id": budget.id, "month": month, "percent": percent, "spent_nanos": so_far.nanos,
            "now": now,
        }  # fmt: skip
        if percent not in known and one(tx, QUERIES["insert_alert"], row) is not None:
            new.append(percent)
    if new:
        for message in _messages(budget, f"{month:%Y-%m}", new[-1], so_far):
            outgoing.add(tx, message, now=now)
    return new


def _messages(budget: Budget, month: str, percent: int, so_far: Money) -> list[Outgoing]:
    subject = f"{percent} % of the budget {budget.name} are spent"
    text = f"Of {budget.amount} for {month}, {so_far} were charged so far.\n"
    said: dict[str, Any] = {
        "event": "budget.reached", "budget": budget.name, "month": month, "percent": percent,
        "amount_usd": str(budget.amount).removesuffix(" USD"),
        "spent_usd": str(so_far).removesuffix(" USD"),
    }  # fmt: skip
    pairs = (
        (Channel.EMAIL, budget.email, text),
        (Channel.WEBHOOK, budget.webhook, json.dumps(said)),
    )
    return [
        Outgoing(
            id=derived_id(budget.id, month, percent, channel), tenant_id=budget.tenant_id,
            channel=channel, target=target, subject=subject, body=body,
        )
        for channel, target, body in pairs if target
    ]  # fmt: skip
