"""The newest plan of each pool, in Postgres."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg.types.json import Json

from sublet.core.db import Tx, load_queries

QUERIES: Final = load_queries("sublet.planner")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPlan:
    made_at: datetime
    plan: Mapping[str, Any]  # as `service.document` wrote it


def put_plans(tx: Tx, plans: Mapping[str, Mapping[str, Any]], *, now: datetime) -> None:
    """Keep the newest plan of each pool; one that was made later stands."""
    rows = [
        {"pool": pool, "made_at": now, "plan": Json(plan)} for pool, plan in sorted(plans.items())
    ]
    with tx.cursor() as cursor:
        cursor.executemany(QUERIES["put_plan"], rows)


def get_plan(tx: Tx, pool: str) -> StoredPlan | None:
    """Return the newest plan of a pool; None before the first."""
    return get_plans(tx, [pool]).get(pool)


def get_plans(tx: Tx, pools: Collection[str]) -> dict[str, StoredPlan]:
    """Return the newest plan of each of these pools that has one."""
    rows = tx.execute(QUERIES["get_plans"], {"pools": list(pools)})
    return {row["pool"]: StoredPlan(made_at=row["made_at"], plan=row["plan"]) for row in rows}


def list_plans(tx: Tx) -> dict[str, StoredPlan]:
    rows = tx.execute(QUERIES["list_plans"]).fetchall()
    return {row["pool"]: StoredPlan(made_at=row["made_at"], plan=row["plan"]) for row in rows}
