"""Tunnels: a tenant's connection, joined to one that the lease's node dialled.

A request in whose body bytes go up while the answer's body brings bytes down, on both sides. The
node's end waits here for somebody to connect; the tenant's needs its key. Bytes are passed on as
fast as the slower side takes them, and nothing is kept but what is on its way.
"""

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sublet.app.http import STATUSES, answer, envelope
from sublet.app.services import Services
from sublet.core.errors import NotFound, Refused, SubletError, Unauthorized, Unavailable
from sublet.leases import service, store
from sublet.leases.lease import LeaseId, State
from sublet.tenants import store as tenants

log = logging.getLogger(__name__)

MOST_BYTES: Final = 16 << 30  # of one connection, each way
_WAIT_SECONDS: Final = 10.0
_IDLE_LEGS: Final = 4  # of one lease: an end that dials without pause holds no more
_UUID: Final = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_PATH: Final = re.compile(rf"/v1/(?:tunnels/([^/]{{1,100}})|leases/({_UUID})/connect)")
_HEADERS: Final = [
    (b"content-type", b"application/octet-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(eq=False, slots=True)
class _Leg:
    """One side of a connection."""

    receive: Receive
    send: Send
    first: asyncio.Task[Message] | None = None  # what it says while it waits
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def say(self, message: Message) -> None:
        await self.send(message)

    async def begin(self) -> None:
        await self.send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        # So that the head goes out now, and not with the first bytes.
        await self.send({"type": "http.response.body", "body": b"", "more_body": True})

    async def hear(self) -> bytes | None:
        """Return what comes; None at the end."""
        first, self.first = self.first, None
        message = await (self.receive() if first is None else first)
        if message["type"] != "http.request":
            return None
        body: bytes = message.get("body", b"")
        return body if body or message.get("more_body", False) else None


@dataclass(eq=False, slots=True)
class _Door:
    """Where both sides of one lease's connections meet, there as long as anybody is at it."""

    legs: deque[_Leg] = field(default_factory=deque)  # of the node, and free
    came: asyncio.Event = field(default_factory=asyncio.Event)
    users: int = 0


class Tunnels:
    """Serves the two addresses of tunnels, and hands everything else on."""

    def __init__(self, app: ASGIApp, *, api: FastAPI) -> None:
        self._app = app
        self._api = api
        self._doors: dict[UUID, _Door] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            if found[1] is not None:
                await self._wait(found[1], _Leg(receive=receive, send=send))
            else:
                key = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
                await self._connect(UUID(found[2]), key, _Leg(receive=receive, send=send))
        except SubletError as error:
            body = envelope(error.code, str(error), retryable=error.retryable)
            await answer(send, STATUSES[type(error)], body)

    @property
    def _ours(self) -> Services:
        ours = self._api.state.services
        assert isinstance(ours, Services)
        return ours

    @contextlib.contextmanager
    def _at_door(self, lease_id: UUID) -> Iterator[_Door]:
        door = self._doors.setdefault(lease_id, _Door())
        door.users += 1
        try:
            yield door
        finally:
            door.users -= 1
            if not door.users:
                del self._doors[lease_id]

    # ---- the node's end

    async def _wait(self, token: str, leg: _Leg) -> None:
        """Keep a node's end until somebody connects, and as long as it is joined.

        Raises:
            NotFound: the address was not made by us, or its lease has ended.
            Refused: it dials without pause.
        """
        lease_id = self._ours.lease_of_tunnel(token)
        await run_in_threadpool(self._check_live, lease_id)
        with self._at_door(lease_id) as door:
            if len(door.legs) >= _IDLE_LEGS:
                raise Refused("enough connections wait already")
            leg.first = asyncio.ensure_future(leg.receive())
            door.legs.append(leg)
            door.came.set()
            try:
                over = asyncio.ensure_future(leg.over.wait())
                await asyncio.wait({over, leg.first}, return_when=asyncio.FIRST_COMPLETED)
                if leg in door.legs:
                    over.cancel()  # it hung up before anybody came
                else:
                    await over
            finally:
                with contextlib.suppress(ValueError):
                    door.legs.remove(leg)

    def _check_live(self, lease_id: UUID) -> None:
        with self._ours.db.transaction() as tx:
            lease = store.get(tx, LeaseId(lease_id))
        if lease.state is State.ENDED:
            raise NotFound(f"lease {lease_id} has ended")

    # ---- the tenant's end

    async def _connect(self, lease_id: UUID, key: str, leg: _Leg) -> None:
        await run_in_threadpool(self._check_caller, lease_id, key)
        node = await self._next(lease_id)
        log.info("tunnel.opened", extra={"lease": lease_id})
        try:
            await node.begin()
            await leg.begin()
            ways = {
                asyncio.ensure_future(_copy(leg, node)),
                asyncio.ensure_future(_copy(node, leg)),
            }
            _, other = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in other:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (leg, node):
                with contextlib.suppress(Exception):  # it may have hung up
                    await end.say({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            node.over.set()
            log.info("tunnel.closed", extra={"lease": lease_id})

    def _check_caller(self, lease_id: UUID, key: str) -> None:
        scheme, _, secret = key.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Unauthorized(
                "send your API key in the header `Authorization: Bearer sk-sublet-…`"
            )
        ours = self._ours
        with ours.db.transaction() as tx:
            caller = tenants.find_caller(tx, secret.strip(), now=ours.clock.now())
            owner = None if caller.tenant is None else caller.tenant.id
            lease = service.check_owner(tx, LeaseId(lease_id), owner)
            interactive = store.get_spec(tx, lease.id).interactive
        if not interactive:
            raise Refused(f"lease {lease_id} is not interactive: ask for it when it is leased")
        if lease.state is State.ENDED:
            raise Refused(f"lease {lease_id} has ended")

    async def _next(self, lease_id: UUID) -> _Leg:
        """Raises Unavailable: its node has not dialled in yet."""
        with self._at_door(lease_id) as door:
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    while True:
                        while door.legs:
                            leg = door.legs.popleft()
                            if leg.first is not None and not leg.first.done():
                                return leg
                        door.came.clear()
                        await door.came.wait()
            except TimeoutError:
                raise Unavailable(
                    f"lease {lease_id} has no connection free: it may still be starting"
                ) from None


async def _copy(source: _Leg, sink: _Leg) -> None:
    left = MOST_BYTES
    while left > 0 and (data := await source.hear()) is not None:
        left -= len(data)
        if data:
            await sink.say({"type": "http.response.body", "body": data, "more_body": True})
