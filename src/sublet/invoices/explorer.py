"""What a tenant used and what it cost, by day, model, key, lease, tag; and what its month comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx
from sublet.core.money import Money
from sublet.invoices.invoice import midnight, month_of, zone
from sublet.invoices.store import QUERIES

_DAYS: Final = 28  # of the past from which a month is foreseen


class By(StrEnum):
    DAY = "day"
    PRODUCT = "product"
    MODEL = "model"
    POOL = "pool"
    KEY = "key"
    LEASE = "lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which charges are meant; None: all."""

    model: str | None = None
    pool: str | None = None
    key: str | None = None  # its name
    lease: UUID | None = None
    tag: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a month comes to, if it goes on as the last four weeks did."""

    month: date
    spent: Money
    days_left: float
    a_day: Money  # the mean of the days seen
    days_seen: int
    total: Money


def list_usage(
    tx: Tx, tenant_id: UUID, start: date, end: date, *, zone_name: str, by: Sequence[By],
    by_tag: str | None = None, only: Filter = Filter(), limit: int = 1_000, offset: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return charges of `[start, end)` added up by what is asked for; days are the tenant's."""
    tag = only.tag or (None, None)
    row: dict[str, Any] = {f"by_{one}": one in by for one in By}
    row |= {
        "tenant_id": tenant_id, "start": midnight(start, zone_name), "end": midnight(end, zone_name),
        "zone": zone_name, "by_tag": by_tag, "model": only.model, "pool": only.pool,
        "key": only.key, "lease": only.lease, "tag_name": tag[0], "tag_value": tag[1],
        "limit": limit, "offset": offset,
    }  # fmt: skip
    return tx.execute(QUERIES["list_usage"], row).fetchall()


def spent(
    tx: Tx, tenant_id: UUID, start: date, end: date, *, zone_name: str, only: Filter = Filter()
) -> Money:
    rows = list_usage(tx, tenant_id, start, end, zone_name=zone_name, by=[], only=only)
    return Money(sum(int(row["amount_nanos"]) for row in rows))


def foresee(
    tx: Tx, tenant_id: UUID, *, zone_name: str, now: datetime, only: Filter = Filter()
) -> Forecast:
    """Say what the month comes to: what is charged, and for what is left the mean of days past.

    Of the last 28 whole days those count that begin with the first on which something was charged.
    """
    here = now.astimezone(zone(zone_name))
    first, after = month_of(here.date())
    since = here.date() - timedelta(days=_DAYS)
    days = list_usage(
        tx, tenant_id, since, here.date(), zone_name=zone_name, by=[By.DAY], only=only
    )
    seen = (here.date() - date.fromisoformat(days[0]["day"])).days if days else 0
    mean = sum(int(day["amount_nanos"]) for day in days) // seen if seen else 0
    so_far = spent(tx, tenant_id, first, after, zone_name=zone_name, only=only)
    left = (midnight(after, zone_name) - now) / timedelta(days=1)
    return Forecast(
        month=first, spent=so_far, days_left=left, a_day=Money(mean), days_seen=seen,
        total=Money(so_far.nanos + round(mean * left)),
    )  # fmt: skip
