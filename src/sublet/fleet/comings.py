"""Capacity that is to come, in Postgres: what is known of each last is its newest row."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sublet.core.db import Tx, one
from sublet.core.errors import NotFound
from sublet.fleet.coming import Capacity, Coming, counted
from sublet.fleet.store import QUERIES


def put(tx: Tx, coming: Coming, *, now: datetime) -> None:
    """Record what is known of it from now on.

    Raises:
        Invalid: it cannot be declared as it is.
    """
    coming.check(now=now)
    tx.execute(
        QUERIES["insert_coming"],
        {
            "id": coming.id, "pool": coming.pool, "name": coming.name, "gpus": coming.gpus,
            "ready_at": coming.ready_at, "now": now,
        },
    )  # fmt: skip


def find(tx: Tx, id_: UUID) -> Coming | None:
    row = one(tx, QUERIES["get_coming"], {"id": id_})
    return None if row is None else _coming(row)


def get(tx: Tx, id_: UUID) -> Coming:
    """Raises NotFound: nothing of this id was declared."""
    if (found := find(tx, id_)) is None:
        raise NotFound(f"no coming capacity {id_} was declared")
    return found


def list_all(tx: Tx) -> list[Coming]:
    """Return what is expected still, or late, by when."""
    return [_coming(row) for row in tx.execute(QUERIES["list_coming"]).fetchall()]


def capacity_of(tx: Tx, pool: str, gpus: int, *, now: datetime) -> Capacity:
    """Return what a pool that has `gpus` now will have."""
    return counted(gpus, (one for one in list_all(tx) if one.pool == pool), now=now)


def _coming(row: Mapping[str, Any]) -> Coming:
    return Coming(
        id=row["id"], pool=row["pool"], name=row["name"], gpus=row["gpus"], ready_at=row["ready_at"]
    )
