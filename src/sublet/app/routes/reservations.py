"""Reserved windows: book one, look at it, lease from it; and credits for what was broken."""

from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query

from sublet.app.documents import (
    NewResale,
    NewReservation,
    credit_document,
    resale_document,
    reservation_document,
)
from sublet.app.http import AnyCaller, OneTenant, Ours
from sublet.app.idempotency import OneCall
from sublet.app.routes.leases import check_commands, only_pool, spec_of
from sublet.app.routes.tenants import instant
from sublet.core.db import Tx
from sublet.core.errors import Invalid
from sublet.core.ids import new_id
from sublet.leases import booking, resales, reservations
from sublet.leases.booking import Booking
from sublet.leases.resale import PAUSED_PERCENT, SOLD_PERCENT, Resale
from sublet.leases.reservation import Reservation
from sublet.market import quotes
from sublet.market import store as market
from sublet.market.price import Tier
from sublet.metering import credits as credit_store

router = APIRouter(prefix="/v1")


@router.post("/reservations", status_code=201, tags=["leases"])
def create_reservation(
    ours: Ours, tenant: OneTenant, once: OneCall, body: NewReservation
) -> dict[str, Any]:
    """Reserve GPUs from one instant to another.

    All of its price is held now, and charged an hour at a time, used or not. With a `command` it
    starts by itself, to the second; else lease from it while it lasts (`reservation` of a lease).
    """
    if (said := once.replay(body)) is not None:
        return said
    start, end = instant(body.starts_at, "starts_at"), instant(body.ends_at, "ends_at")
    pool, gpus, notice = body.pool or only_pool(ours), body.gpus, body.notice_seconds
    if body.quote is not None:
        again = body.model_fields_set & {"pool", "gpus", "starts_at", "ends_at", "notice_seconds"}
        if again:
            raise Invalid(f"{min(again)}: the quote says it already; leave it out")
        with ours.db.transaction() as tx:
            quoted = quotes.lock(tx, body.quote, tenant_id=tenant.id)
        if quoted.tier is not Tier.RESERVED or quoted.starts_at is None:
            raise Invalid(f"quote {quoted.id} is for a lease: accept it with POST /v1/leases")
        pool, gpus, start = quoted.pool, quoted.gpus, quoted.starts_at
        end = quoted.starts_at + quoted.max_duration
        notice = int(quoted.notice.total_seconds())
    if start is None or end is None:
        raise Invalid("starts_at and ends_at: say from when until when")
    spec = None
    if body.command is not None:
        check_commands(ours)
        spec = spec_of(ours, pool, gpus, body, body.command)
    wanted = Booking(
        id=body.id,
        pool=pool,
        gpus=gpus,
        starts_at=start,
        ends_at=end,
        notice=None if notice is None else timedelta(seconds=notice),
        spec=spec,
        quote=body.quote,
    )

    def book(tx: Tx) -> dict[str, Any]:
        return _document(ours, tx, booking.book(tx, tenant, wanted, now=ours.clock.now()))

    document = once.run(body, book)
    ours.wake()
    return document


@router.get("/reservations", tags=["leases"])
def list_reservations(
    ours: Ours, found: AnyCaller, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> dict[str, Any]:
    """List your reservations, newest first; the operator sees everybody's."""
    tenant_id = None if found.tenant is None else found.tenant.id
    with ours.db.transaction() as tx:
        sold = reservations.list_of(tx, tenant_id, limit=limit)
        return {"items": [_document(ours, tx, one) for one in sold]}


@router.get("/reservations/{reservation_id}", tags=["leases"])
def show_reservation(ours: Ours, found: AnyCaller, reservation_id: UUID) -> dict[str, Any]:
    """Show a reservation, and how much of it is in use."""
    tenant_id = None if found.tenant is None else found.tenant.id
    with ours.db.transaction() as tx:
        sold = reservations.get_reservation(tx, reservation_id, tenant_id=tenant_id)
        return _document(ours, tx, sold)


@router.post("/reservations/{reservation_id}/resales", status_code=201, tags=["leases"])
def create_resale(
    ours: Ours, tenant: OneTenant, once: OneCall, reservation_id: UUID, body: NewResale
) -> dict[str, Any]:
    """Put GPUs of a window of yours that runs back on sale, at a limit price or paused for any.

    They are lent interruptibly. Of what is paid for them, `share_percent` is yours.
    """
    if (said := once.replay(body)) is not None:
        return said
    limit = body.limit_usd_per_gpu_hour
    now = ours.clock.now()
    resale = Resale(
        id=body.id or new_id(),
        reservation_id=reservation_id,
        gpus=body.gpus,
        limit=None if limit is None else market.usd_per_hour(limit),
        share_percent=PAUSED_PERCENT if limit is None else SOLD_PERCENT,
        listed_at=now,
    )

    def put(tx: Tx) -> dict[str, Any]:
        listed = resales.put_on_sale(tx, resale, tenant_id=tenant.id, now=now)
        return resale_document(listed)

    return once.run(body, put)


@router.get("/resales", tags=["leases"])
def list_resales(ours: Ours, found: AnyCaller) -> dict[str, Any]:
    """List what you put back on sale, newest first; the operator sees everybody's."""
    tenant_id = None if found.tenant is None else found.tenant.id
    with ours.db.transaction() as tx:
        return {"items": [resale_document(one) for one in resales.list_of(tx, tenant_id)]}


@router.delete("/resales/{resale_id}", status_code=202, tags=["leases"])
def end_resale(ours: Ours, tenant: OneTenant, resale_id: UUID) -> dict[str, Any]:
    """Take GPUs back that were on sale: whoever uses them is told to go, and has its notice."""
    with ours.db.transaction() as tx:
        document = resale_document(
            resales.take_back(tx, resale_id, tenant_id=tenant.id, now=ours.clock.now())
        )
    ours.wake()
    return document


@router.get("/credits", tags=["money"])
def list_credits(
    ours: Ours, found: AnyCaller, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> dict[str, Any]:
    """List what was credited for promises that were broken, newest first, each with its evidence."""
    tenant_id = None if found.tenant is None else found.tenant.id
    with ours.db.transaction() as tx:
        rows = credit_store.list_credits(tx, tenant_id, limit=limit)
    return {"items": [credit_document(row) for row in rows]}


def _document(ours: Ours, tx: Tx, sold: Reservation) -> dict[str, Any]:
    return reservation_document(
        sold,
        market.get_price(tx, sold.price_id),
        market.get_price(tx, sold.list_price_id),
        in_use=reservations.drawn_gpus(tx, sold.id),
        now=ours.clock.now(),
    )
