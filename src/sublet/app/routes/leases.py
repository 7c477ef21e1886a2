"""Leases: ask for one, watch it, give it back."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from sublet.app.documents import (
    NewLease,
    NewQuote,
    NewWorkload,
    lease_document,
    quote_document,
)
from sublet.app.http import AnyCaller, OneTenant, Ours
from sublet.app.idempotency import Once, OneCall
from sublet.app.routes.tenants import instant
from sublet.app.services import Services
from sublet.app.webhooks import secret_of
from sublet.core.db import Tx
from sublet.core.errors import Invalid, NotFound, Refused
from sublet.core.money import Money
from sublet.engine import images
from sublet.engine.port import Phase
from sublet.fleet import store as fleet
from sublet.leases import (
    advancing,
    booking,
    quoting,
    reservations,
    service,
    store,
    webhooks,
)
from sublet.leases.admission import Asked
from sublet.leases.lease import EndReason, Lease, LeaseId, State
from sublet.leases.quoting import Ask
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.market import quotes
from sublet.market import store as market
from sublet.market.price import Tier
from sublet.metering import store as metering
from sublet.tenants.tenant import Caller, Tenant

router = APIRouter(prefix="/v1")

_PROCESSES: Final = 256
_LOG_PIECE: Final = 1 << 16
_FOLLOW_SECONDS: Final = 0.1


@router.post("/leases", status_code=201, tags=["leases"])
def create_lease(ours: Ours, tenant: OneTenant, once: OneCall, body: NewLease) -> dict[str, Any]:
    """Lease GPUs and run a command on them.

    Its GPUs and its first minute's money are set aside before this answers. Send an `id` of
    yours and sending it again gives you the same lease, as it then is; an `Idempotency-Key`
    gives you the same answer.
    """
    if (said := once.replay(body)) is not None:
        return said
    check_commands(ours)
    sent = body
    if body.reservation is not None:
        body = _as_drawn(ours, tenant, body, body.reservation)
    body = body if body.quote is None else _as_quoted(ours, tenant, body, body.quote)
    pool = body.pool or only_pool(ours)
    request = Request(
        id=None if body.id is None else LeaseId(body.id),
        pool=pool,
        gpus=body.gpus,
        tier=body.tier,
        max_duration=timedelta(seconds=body.max_seconds),
        quote=body.quote,
        spec=spec_of(ours, pool, body.gpus, body, body.command),
        reservation=body.reservation,
        notice=None if body.notice_seconds is None else timedelta(seconds=body.notice_seconds),
        resumable=body.resumable,
        webhook=body.webhook,
    )
    if body.id is not None:
        _check_id_is_free(ours, LeaseId(body.id))

    if request.reservation is None:
        asked = Asked(tenant=tenant, request=request)
        document = ours.admissions.sell(once, sent, asked, show=_documents)
    else:
        document = _drawn(ours, tenant, once, sent, request)
    ours.wake()
    return document


def _drawn(
    ours: Services, tenant: Tenant, once: Once, sent: NewLease, request: Request
) -> dict[str, Any]:
    """Lease what is reserved; where somebody must leave first, note that its tenant waits."""
    jobs = ours.engine.internal_jobs()
    assert request.reservation is not None

    def draw(tx: Tx) -> dict[str, Any]:
        return _document(tx, booking.draw(tx, tenant, request, jobs=jobs, now=ours.clock.now()))

    try:
        return once.run(sent, draw)
    except booking.NotFree as error:
        with ours.db.transaction() as tx:
            booking.wait_for(tx, request.reservation, now=ours.clock.now())
        raise Refused(str(error)) from None


def _as_drawn(ours: Services, tenant: Tenant, body: NewLease, reservation_id: UUID) -> NewLease:
    """Return the lease of a reservation: its pool, its notice, and all of its time if not said.

    Raises:
        NotFound: there is no such reservation.
        Invalid: the call says again what the reservation says.
    """
    again = body.model_fields_set & {"pool", "tier", "quote", "notice_seconds"}
    if again - ({"tier"} if body.tier is Tier.RESERVED else set()):
        raise Invalid(f"{min(again)}: the reservation says it already; leave it out")
    with ours.db.transaction() as tx:
        found = reservations.get_reservation(tx, reservation_id, tenant_id=tenant.id)
    said = "max_seconds" in body.model_fields_set
    longest = body.max_seconds if said else int(service.LONGEST.total_seconds())
    return body.model_copy(
        update={"pool": found.pool, "tier": Tier.RESERVED, "max_seconds": longest}
    )


def check_commands(ours: Services) -> None:
    """Raises Refused: no tenant's command may run here."""
    if ours.refuses_commands is not None:
        raise Refused(
            f"leases cannot run here: {ours.refuses_commands}; install bubblewrap, or let the"
            " operator accept the risk with --unsafe-no-sandbox"
        )


def spec_of(
    ours: Services, pool: str, gpus: int, body: NewWorkload, command: Sequence[str]
) -> Spec:
    """Return what a lease of `gpus` GPUs runs.

    Raises:
        Invalid: a file is no base64, or more memory was asked for than its GPUs come with.
        Refused: it wants an image that cannot be run here.
    """
    if body.image is not None:
        _check_image(ours, body.image)
    return Spec(
        command=command,
        environment=body.environment,
        files={path: _decode(path, text) for path, text in body.files.items()},
        network=body.network,
        interactive=body.interactive,
        image=body.image,
        memory_bytes=_memory(ours, pool, gpus, body.memory_bytes),
        processes=body.processes or _PROCESSES,
    )


def _check_image(ours: Services, name: str) -> None:
    """Raises Refused: no lease can run on it here."""
    why = images.refusal(ours.images, sandbox=ours.confines)
    if why is not None:
        raise Refused(f"image: {why}")
    assert ours.images is not None
    ours.images.find(name)


def _as_quoted(ours: Services, tenant: Tenant, body: NewLease, quote_id: UUID) -> NewLease:
    """Return the lease that was quoted.

    Raises:
        NotFound: there is no such quote.
        Invalid: the call says again what the quote says.
    """
    again = body.model_fields_set & {"pool", "gpus", "tier", "max_seconds", "notice_seconds"}
    if again:
        raise Invalid(f"{min(again)}: the quote says it already; leave it out")
    with ours.db.transaction() as tx:
        quoted = quotes.lock(tx, quote_id, tenant_id=tenant.id)
    return body.model_copy(
        update={
            "pool": quoted.pool,
            "gpus": quoted.gpus,
            "tier": quoted.tier,
            "max_seconds": int(quoted.max_duration.total_seconds()),
            "notice_seconds": int(quoted.notice.total_seconds()),
        }
    )


@router.post("/quotes", status_code=201, tags=["leases"])
def create_quote(ours: Ours, tenant: OneTenant, once: OneCall, body: NewQuote) -> dict[str, Any]:
    """Ask what a lease costs, and have that price held for a while.

    Lease with it, once, before `expires_at`. A quote holds the price and no GPUs.
    """
    if (said := once.replay(body)) is not None:
        return said
    jobs = ours.engine.internal_jobs()
    start, end = instant(body.starts_at, "starts_at"), instant(body.ends_at, "ends_at")
    if (start is None) != (end is None):
        raise Invalid("starts_at and ends_at: say both, or neither")
    duration = timedelta(seconds=body.max_seconds)
    if start is not None and end is not None:
        if "max_seconds" in body.model_fields_set:
            raise Invalid("max_seconds: a window says how long it is; leave it out")
        duration = end - start
    ask = Ask(
        pool=body.pool or only_pool(ours),
        gpus=body.gpus,
        tier=body.tier,
        max_duration=duration,
        starts_at=start,
        notice=None if body.notice_seconds is None else timedelta(seconds=body.notice_seconds),
    )
    lifetime = timedelta(seconds=body.lifetime_seconds)

    def make(tx: Tx) -> dict[str, Any]:
        now = ours.clock.now()
        made = quoting.quote(tx, tenant, ask, jobs=jobs, lifetime=lifetime, now=now)
        return quote_document(made, now=now)

    return once.run(body, make)


@router.get("/quotes", tags=["leases"])
def list_quotes(
    ours: Ours, tenant: OneTenant, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> dict[str, Any]:
    """List your quotes, newest first, and what became of them."""
    now = ours.clock.now()
    with ours.db.transaction() as tx:
        return {
            "items": [
                quote_document(quote, now=now)
                for quote in quotes.list_of(tx, tenant.id, limit=limit)
            ]
        }


@router.get("/leases", tags=["leases"])
def list_leases(
    ours: Ours,
    found: AnyCaller,
    live: bool = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: datetime | None = None,
) -> dict[str, Any]:
    """List your leases, newest first; the operator sees everybody's."""
    with ours.db.transaction() as tx:
        leases = store.list_of(
            tx, _owner(found), limit=limit, before=instant(before, "before"), live=live
        )
        return {"items": _documents(tx, leases)}


@router.get("/leases/{lease_id}", tags=["leases"])
def show_lease(ours: Ours, found: AnyCaller, lease_id: UUID) -> dict[str, Any]:
    """Show a lease and every move it made."""
    with ours.db.transaction() as tx:
        lease = service.check_owner(tx, LeaseId(lease_id), _owner(found))
        return _document(tx, lease) | {"events": store.list_events(tx, lease.id)}


@router.delete("/leases/{lease_id}", status_code=202, tags=["leases"])
def end_lease(ours: Ours, found: AnyCaller, lease_id: UUID) -> dict[str, Any]:
    """Give a lease back. It is told at once and billed no further; a paused one stays away."""
    with ours.db.transaction() as tx:
        lease = service.check_owner(tx, LeaseId(lease_id), _owner(found))
        store.ask_release(tx, lease.id, EndReason.RELEASED)
        store.end_pause(tx, lease.id)
        document = _document(tx, store.get(tx, lease.id))
    ours.wake()
    return document


@router.put("/leases/{lease_id}/checkpoint", tags=["leases"])
def note_checkpoint(ours: Ours, found: AnyCaller, lease_id: UUID) -> dict[str, Any]:
    """Say that the work of a lease is safe until now: of two that could give way, it loses less."""
    with ours.db.transaction() as tx:
        service.check_owner(tx, LeaseId(lease_id), _owner(found))
        if not store.note_checkpoint(tx, LeaseId(lease_id), ours.clock.now()):
            raise Refused(f"lease {lease_id} does not run, so has nothing to save")
        return _document(tx, store.get(tx, LeaseId(lease_id)))


@router.get("/leases/{lease_id}/webhook", tags=["leases"])
def show_webhook(ours: Ours, found: AnyCaller, lease_id: UUID) -> dict[str, Any]:
    """Show where a lease's notice goes, what became of it, and the secret that signs it."""
    with ours.db.transaction() as tx:
        lease = service.check_owner(tx, LeaseId(lease_id), _owner(found))
        webhook = webhooks.find(tx, lease.id)
    if webhook is None:
        raise NotFound(f"lease {lease_id} has no webhook")
    return {**webhook, "secret": secret_of(ours.signing_key, lease.id)}


@router.get("/leases/{lease_id}/notice", tags=["leases"])
def show_notice(ours: Ours, found: AnyCaller, lease_id: UUID) -> dict[str, Any]:
    """Say whether the lease was told to go, why, and when it is killed."""
    with ours.db.transaction() as tx:
        return _notice(service.check_owner(tx, LeaseId(lease_id), _owner(found)))


@router.get("/notices/{token}", tags=["leases"])
def read_notice(ours: Ours, token: str) -> dict[str, Any]:
    """Read a lease's notice from inside its workload, without a key: SUBLET_NOTICE_URL."""
    lease_id = ours.lease_of_notice(token)
    with ours.db.transaction() as tx:
        return _notice(store.get(tx, LeaseId(lease_id)))


@router.get("/leases/{lease_id}/logs", tags=["leases"], response_class=Response)
def read_logs(
    ours: Ours,
    found: AnyCaller,
    lease_id: UUID,
    offset: Annotated[int, Query(ge=0, le=1 << 50)] = 0,
    follow: bool = False,
) -> Response:
    """Read what the workload printed, from `offset` bytes on; `follow` until the lease ends."""
    with ours.db.transaction() as tx:
        service.check_owner(tx, LeaseId(lease_id), _owner(found))

    def over() -> bool:
        with ours.db.transaction() as tx:
            ended = store.get(tx, LeaseId(lease_id)).state is State.ENDED
        return ended or ours.engine.observe(lease_id).phase in {Phase.EXITED, Phase.LOST}

    return stream_log(ours, lease_id, offset=offset, over=over if follow else None)


def stream_log(
    ours: Services, workload: UUID, *, offset: int, over: Callable[[], bool] | None
) -> StreamingResponse:
    """Stream a workload's log; `over` says when nothing more will come, None: stop at its end."""

    async def pieces() -> AsyncIterator[bytes]:
        at = offset
        last = over is None
        while True:
            piece = await run_in_threadpool(ours.engine.logs, workload, offset=at, limit=_LOG_PIECE)
            if piece:
                at += len(piece)
                yield piece
            elif last:
                return
            else:
                # Once it is over, read once more: the last lines may have come in between.
                assert over is not None
                last = await run_in_threadpool(over)
                if not last:
                    await asyncio.sleep(_FOLLOW_SECONDS)

    return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8")


def only_pool(ours: Services) -> str:
    """Raises Invalid: there are several pools, so one must be named."""
    with ours.db.transaction() as tx:
        pools = [pool.name for pool in fleet.list_pools(tx)]
    if len(pools) != 1:
        raise Invalid(f"say which pool: {', '.join(pools) or 'there is none yet'}")
    return pools[0]


def _owner(found: Caller) -> UUID | None:
    return None if found.tenant is None else found.tenant.id


def _document(tx: Tx, lease: Lease) -> dict[str, Any]:
    return _documents(tx, [lease])[0]


def _documents(tx: Tx, leases: Sequence[Lease]) -> list[dict[str, Any]]:
    ids = {lease.price_id for lease in leases} | {lease.list_price_id for lease in leases}
    prices = {id_: market.get_price(tx, id_) for id_ in ids if id_ is not None}
    return [
        lease_document(
            lease,
            prices[lease.price_id],
            prices[lease.list_price_id or lease.price_id],
            # Nothing is charged of a lease that never ran.
            charged=Money(0)
            if lease.running_at is None
            else metering.charged_for_lease(tx, lease.id),
        )
        for lease in leases
    ]


def _notice(lease: Lease) -> dict[str, Any]:
    if lease.stops_at is None or lease.end_reason is None:
        return {"noticed": False}
    notice = advancing.notice_of(lease)
    return {
        "noticed": True,
        "reason": notice.reason,
        "message": notice.message,
        "noticed_at": notice.noticed_at,
        "stops_at": notice.stops_at,
    }


def _decode(path: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(f"files.{path[:80]}: the content must be base64") from None


def _check_id_is_free(ours: Services, lease_id: LeaseId) -> None:
    """Raises Invalid: the engine runs something of this id that is no lease."""
    if ours.engine.observe(lease_id).phase is Phase.ABSENT:
        return
    with ours.db.transaction() as tx:
        try:
            store.get(tx, lease_id)
        except NotFound:
            raise Invalid(f"id {lease_id} was already used for something else") from None


def _memory(ours: Services, pool: str, gpus: int, asked: int | None) -> int | None:
    """Return the memory a lease gets: what its GPUs' share of the pool is, or less if asked.

    Raises:
        Invalid: more than its share was asked for.
    """
    nodes = [node for node in ours.engine.nodes() if node.gpu_model == pool]
    slots = sum(node.gpus for node in nodes)
    memory = sum(node.memory_bytes for node in nodes)
    if not slots or not memory:
        return asked
    share = memory * min(gpus, slots) // slots
    if asked is not None and asked > share:
        raise Invalid(
            f"memory_bytes: {gpus} of {slots} GPUs come with {share} bytes of memory,"
            f" {asked} were asked for"
        )
    return asked or share
