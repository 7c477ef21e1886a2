"""Capacity that is to come: the operator declares it, and contracts are signed against it."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field

from sublet.app.documents import Body, Count, Name
from sublet.app.http import Operator, Ours
from sublet.app.idempotency import OneCall
from sublet.app.routes.leases import only_pool
from sublet.app.routes.tenants import instant
from sublet.core.db import Tx
from sublet.core.errors import Invalid
from sublet.core.ids import new_id
from sublet.fleet import comings
from sublet.fleet import store as fleet
from sublet.fleet.coming import MOST, Coming
from sublet.leases import expected

router = APIRouter(prefix="/v1")


class NewComing(Body):
    id: UUID | None = Field(None, description="Yours, so that sending it twice declares once")
    pool: Name | None = Field(None, description="Needed only where there is more than one")
    new_pool: bool = Field(False, description="Make the pool if nothing of it is there yet")
    name: Name = Field(description="What is coming: a hall, an order, a site")
    gpus: Count
    ready_at: datetime


class ComingChange(Body):
    gpus: Annotated[int, Field(ge=0, le=MOST, strict=True)] | None = Field(
        None, description="0: it is there, or will not come"
    )
    ready_at: datetime | None = None
    confirm: bool = Field(
        False, description="Do it also where contracts stand on it that it would leave without GPUs"
    )


@router.post("/coming-capacity", status_code=201, tags=["fleet"])
def declare_coming(ours: Ours, _: Operator, once: OneCall, body: NewComing) -> dict[str, Any]:
    """Declare GPUs of a pool that are expected from a date on.

    Contracts may be signed against them for steps that start then or later; nothing else is sold
    of them before the cluster shows them. Past its date, what is not there is late and counts no more.
    """
    if (said := once.replay(body)) is not None:
        return said
    ready_at = instant(body.ready_at, "ready_at")
    assert ready_at is not None
    if body.new_pool and body.pool is None:
        raise Invalid("pool: name the pool that is to be made")
    name = body.pool or only_pool(ours)

    def declare(tx: Tx) -> dict[str, Any]:
        now = ours.clock.now()
        if body.new_pool:
            notice = ours.config.notice_seconds
            fleet.expect_pool(tx, name, notice_seconds=notice, now=now)
        wanted = Coming(
            id=body.id or new_id(), pool=name, name=body.name, gpus=body.gpus, ready_at=ready_at
        )
        return _document(expected.declare(tx, wanted, now=now), ours.clock.now())

    return once.run(body, declare)


@router.get("/coming-capacity", tags=["fleet"])
def list_coming(ours: Ours, _: Operator) -> dict[str, Any]:
    """List what is expected or late, by its date."""
    with ours.db.transaction() as tx:
        found = comings.list_all(tx)
    return {"items": [_document(one, ours.clock.now()) for one in found]}


@router.patch("/coming-capacity/{coming_id}", tags=["fleet"])
def change_coming(ours: Ours, _: Operator, coming_id: UUID, body: ComingChange) -> dict[str, Any]:
    """Say what is known of it now: more or fewer GPUs, another date, none: it is there or is off.

    Where contracts stand on it, nothing is changed and the answer is 409 `unconfirmed`, with all of
    them in `error.hits`; send it again with `confirm` to have it.
    """
    ready_at = instant(body.ready_at, "ready_at")
    with ours.db.transaction() as tx:
        changed = expected.change(
            tx, coming_id, gpus=body.gpus, ready_at=ready_at, confirmed=body.confirm,
            now=ours.clock.now(),
        )  # fmt: skip
    return _document(changed, ours.clock.now())


def _document(found: Coming, now: datetime) -> dict[str, Any]:
    late = found.gpus > 0 and found.ready_at <= now
    return {
        "id": found.id,
        "pool": found.pool,
        "name": found.name,
        "gpus": found.gpus,
        "ready_at": found.ready_at,
        "state": "over" if not found.gpus else "late" if late else "expected",
    }
