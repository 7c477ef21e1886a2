"""Resales in Postgres: put GPUs of a window on sale, let leases take them, take them back."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sublet.core.db import Tx, one
from sublet.core.errors import Invalid, NotFound, Refused
from sublet.core.money import Rate
from sublet.fleet import store as fleet
from sublet.leases import reservations, store
from sublet.leases.lease import Lease, LeaseId
from sublet.leases.resale import Free, Resale, check, take
from sublet.leases.reservation import Reservation
from sublet.leases.store import QUERIES

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A lease that runs, or ran, on GPUs that were put back on sale."""

    resale: Resale
    window: Reservation
    lease: Lease
    gpus: int
    paid: bool


def put_on_sale(tx: Tx, resale: Resale, *, tenant_id: UUID, now: datetime) -> Resale:
    """Put GPUs of a window back on sale; asking twice under one id does it once.

    Raises:
        NotFound: the tenant has no such reservation.
        Invalid, Refused: as `resale.check`; or the id was used for something else.
    """
    window = reservations.get_reservation(tx, resale.reservation_id, tenant_id=tenant_id)
    fleet.lock_pool(tx, window.pool)  # nobody sells or draws meanwhile
    window = reservations.lock(tx, window.id, tenant_id=tenant_id)
    row = one(tx, QUERIES["get_resale"], {"id": resale.id})
    if row is not None:
        before = _resale(row)
        if (before.reservation_id, before.gpus, before.limit) != (
            resale.reservation_id, resale.gpus, resale.limit,
        ):  # fmt: skip
            raise Invalid(f"id {resale.id} was already used for something else")
        return before
    drawn, listed = reservations.drawn_gpus(tx, window.id), listed_gpus(tx, window.id)
    check(resale, window, drawn=drawn, listed=listed, now=now)
    given = {
        "id": resale.id, "reservation_id": window.id, "gpus": resale.gpus,
        "limit_nanos": None if resale.limit is None else resale.limit.charge(3600).nanos,
        "share_percent": resale.share_percent, "listed_at": now,
    }  # fmt: skip
    tx.execute(QUERIES["insert_resale"], given)
    log.info("resale.listed", extra={"resale": resale.id, "reservation": window.id})
    return resale


def take_back(tx: Tx, id_: UUID, *, tenant_id: UUID, now: datetime) -> Resale:
    """End a resale now. Whoever uses its GPUs is told to go, and gives them back after its notice.

    Raises:
        NotFound: the tenant has no such resale.
    """
    found = get_resale(tx, id_, tenant_id=tenant_id)
    tx.execute(QUERIES["end_resale"], {"id": id_, "ended_at": max(now, found.listed_at)})
    log.info("resale.taken_back", extra={"resale": id_})
    return get_resale(tx, id_, tenant_id=tenant_id)


def get_resale(tx: Tx, id_: UUID, *, tenant_id: UUID) -> Resale:
    """Raises NotFound: there is no such resale, or it is another tenant's."""
    row = one(tx, QUERIES["get_resale"], {"id": id_})
    if row is None or row["tenant_id"] != tenant_id:
        raise NotFound(f"there is no resale {id_}")
    return _resale(row)


def list_of(tx: Tx, tenant_id: UUID | None) -> list[Resale]:
    """Return a tenant's resales, or everybody's (None), newest first."""
    rows = tx.execute(QUERIES["list_resales"], {"tenant_id": tenant_id}).fetchall()
    return [_resale(row) for row in rows]


def listed_gpus(tx: Tx, reservation_id: UUID) -> int:
    """Return how many GPUs of a window are on sale."""
    row = one(tx, QUERIES["sum_listed_gpus"], {"id": reservation_id})
    assert row is not None
    return int(row["gpus"])


def taken_for(tx: Tx, pool: str, *, gpus: int, rate: Rate, now: datetime) -> Sequence[Free]:
    """Return whose GPUs a lease takes that needs `gpus` more than the operator has to lend.

    Raises:
        Refused: so many are not on sale at this price.
    """
    if gpus <= 0:
        return ()
    rows = tx.execute(QUERIES["list_free_resales"], {"pool": pool, "now": now}).fetchall()
    free = [Free(resale=_resale(row), gpus=int(row["free"])) for row in rows]
    taken = take(free, gpus=gpus, rate=rate)
    if taken is None:
        raise Refused(
            f"{gpus} of these GPUs of {pool} belong to reserved windows, and their tenants sell them"
            f" for more than {rate.charge(3600)} a GPU-hour"
        )
    return taken


def use(tx: Tx, lease: Lease, taken: Sequence[Free]) -> None:
    """Note on whose GPUs a lease runs."""
    for one_ in taken:
        row = {"resale_id": one_.resale.id, "lease_id": lease.id, "gpus": one_.gpus}
        tx.execute(QUERIES["insert_resale_use"], row)


def list_uses(tx: Tx, *, unpaid: bool) -> list[Use]:
    """Return who used what was on sale: all, or those whose seller has no share yet."""
    rows = tx.execute(QUERIES["list_resale_uses"], {"unpaid": unpaid}).fetchall()
    return [
        Use(
            resale=_resale(row),
            window=reservations.get_reservation(tx, row["reservation_id"]),
            lease=store.get(tx, LeaseId(row["lease_id"])),
            gpus=row["used_gpus"],
            paid=row["paid"],
        )
        for row in rows
    ]


def set_paid(tx: Tx, found: Use) -> None:
    row = {"resale_id": found.resale.id, "lease_id": found.lease.id}
    tx.execute(QUERIES["set_resale_paid"], row)


def _resale(row: Mapping[str, Any]) -> Resale:
    limit = row["limit_nanos"]
    return Resale(
        id=row["id"],
        reservation_id=row["reservation_id"],
        gpus=row["gpus"],
        limit=None if limit is None else Rate(nanos=int(limit), per=3600),
        share_percent=row["share_percent"],
        listed_at=row["listed_at"],
        ended_at=row["ended_at"],
    )
