"""Reservations in Postgres."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from sublet.core.db import Tx, one
from sublet.core.errors import NotFound
from sublet.leases.lease import Lease, LeaseId
from sublet.leases.reservation import Reservation
from sublet.leases.store import QUERIES, Spec, from_json, get, to_json


def insert(tx: Tx, reservation: Reservation, spec: Spec | None) -> bool:
    """Add a reservation; False when there is one of this id already."""
    row = {
        "id": reservation.id, "tenant_id": reservation.tenant_id, "pool": reservation.pool,
        "gpus": reservation.gpus, "starts_at": reservation.starts_at,
        "ends_at": reservation.ends_at,
        "notice_seconds": int(reservation.notice.total_seconds()),
        "credit_percent": reservation.credit_percent, "price_id": reservation.price_id,
        "list_price_id": reservation.list_price_id,
        "workload": None if spec is None else Jsonb(to_json(spec)),
        "booked_at": reservation.booked_at, "contract_id": reservation.contract_id,
        "block_seconds": reservation.block_length,
    }  # fmt: skip
    return one(tx, QUERIES["insert_reservation"], row) is not None


def get_reservation(tx: Tx, id_: UUID, *, tenant_id: UUID | None = None) -> Reservation:
    """Raises NotFound: there is no such reservation, or it is another tenant's."""
    return _of(one(tx, QUERIES["get_reservation"], {"id": id_}), id_, tenant_id)


def find(tx: Tx, id_: UUID) -> Reservation | None:
    """Return a reservation, whoever's; None: there is none."""
    row = one(tx, QUERIES["get_reservation"], {"id": id_})
    return None if row is None else from_row(row)


def lock(tx: Tx, id_: UUID, *, tenant_id: UUID | None = None) -> Reservation:
    """Raises NotFound: there is no such reservation, or it is another tenant's."""
    return _of(one(tx, QUERIES["lock_reservation"], {"id": id_}), id_, tenant_id)


def get_spec(tx: Tx, id_: UUID) -> Spec | None:
    row = one(tx, QUERIES["get_reservation"], {"id": id_})
    return None if row is None or row["workload"] is None else from_json(row["workload"])


def list_of(tx: Tx, tenant_id: UUID | None, *, limit: int) -> list[Reservation]:
    """Return a tenant's reservations, or everybody's (None), newest first."""
    row = {"tenant_id": tenant_id, "limit": limit}
    return [from_row(found) for found in tx.execute(QUERIES["list_reservations"], row)]


def list_open(tx: Tx, pool: str | None = None) -> list[Reservation]:
    """Return what has not ended, of a pool or of all (None), by its start."""
    rows = tx.execute(QUERIES["list_open_reservations"], {"pool": pool}).fetchall()
    return [from_row(row) for row in rows]


def any_open(tx: Tx) -> bool:
    """Say whether there is any window or contract of which something is still to be done."""
    row = one(tx, QUERIES["any_open"], {})
    assert row is not None
    return bool(row["any"])


def drawn_gpus(tx: Tx, id_: UUID) -> int:
    """Return how many GPUs leases on it hold."""
    row = one(tx, QUERIES["sum_drawn_gpus"], {"id": id_})
    assert row is not None
    return int(row["gpus"])


def set_asked(tx: Tx, id_: UUID, asked_at: datetime | None) -> None:
    """Note since when GPUs of it are wanted and not free; None: they are not, or are free."""
    tx.execute(QUERIES["set_asked"], {"id": id_, "asked_at": asked_at})


def set_started(tx: Tx, id_: UUID) -> None:
    """Note that its workload was started: it is not started again."""
    tx.execute(QUERIES["set_started"], {"id": id_})


def lose(tx: Tx, id_: UUID, gpus: int) -> None:
    """Note that the promise of so many GPUs was broken."""
    tx.execute(QUERIES["lose_gpus"], {"id": id_, "gpus": gpus})


def set_unpaid(tx: Tx, id_: UUID, *, unpaid: bool) -> None:
    tx.execute(QUERIES["set_unpaid"], {"id": id_, "unpaid": unpaid})


def count_blocks(tx: Tx, id_: UUID) -> int:
    """Return how many of its blocks were held so far."""
    row = one(tx, QUERIES["count_reservation_blocks"], {"id": id_})
    assert row is not None
    return int(row["blocks"])


def end(tx: Tx, id_: UUID) -> None:
    tx.execute(QUERIES["end_reservation"], {"id": id_})


def add_block(tx: Tx, id_: UUID, block: int, hold_id: UUID) -> None:
    row = {"reservation_id": id_, "block": block, "hold_id": hold_id}
    tx.execute(QUERIES["insert_reservation_block"], row)


def open_blocks(tx: Tx, id_: UUID) -> list[tuple[int, UUID]]:
    """Return (number, hold) of the blocks that are not settled, in order."""
    rows = tx.execute(QUERIES["list_reservation_blocks"], {"reservation_id": id_}).fetchall()
    return [(row["block"], row["hold_id"]) for row in rows]


def close_block(tx: Tx, id_: UUID, block: int) -> None:
    tx.execute(QUERIES["close_reservation_block"], {"reservation_id": id_, "block": block})


def reclaimed_leases(tx: Tx, id_: UUID) -> list[Lease]:
    """Return the leases on it that gave way."""
    rows = tx.execute(QUERIES["list_reclaimed_of_reservation"], {"id": id_}).fetchall()
    return [get(tx, LeaseId(row["id"])) for row in rows]


def _of(row: Mapping[str, Any] | None, id_: UUID, tenant_id: UUID | None) -> Reservation:
    if row is None or (tenant_id is not None and row["tenant_id"] != tenant_id):
        raise NotFound(f"there is no reservation {id_}")
    return from_row(row)


def from_row(row: Mapping[str, Any]) -> Reservation:
    return Reservation(
        id=row["id"],
        tenant_id=row["tenant_id"],
        pool=row["pool"],
        gpus=row["gpus"],
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        notice=timedelta(seconds=row["notice_seconds"]),
        credit_percent=row["credit_percent"],
        price_id=row["price_id"],
        list_price_id=row["list_price_id"],
        booked_at=row["booked_at"],
        has_workload=row["has_workload"],
        started=row["started"],
        lost_gpus=row["lost_gpus"],
        asked_at=row["asked_at"],
        ended=row["ended"],
        contract_id=row["contract_id"],
        block_length=row["block_seconds"],
        unpaid=row["unpaid"],
    )
