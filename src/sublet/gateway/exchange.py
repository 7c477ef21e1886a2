"""One HTTP request and its answer, over bare ASGI."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from sublet.core.ids import new_id
from sublet.gateway.dialect import Dialect
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.openai import CHAT

Message = MutableMapping[str, Any]  # ASGI's own type
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
_SWALLOWED_BYTES: Final = 64 * 1024 * 1024  # of a body that is too large, before hanging up
_SILENCE_SECONDS: Final = 15.0
_BODY_SECONDS: Final = 60.0


class HungUp(Exception):
    """The client is gone: nobody is left to answer."""


class Exchange:
    def __init__(
        self, scope: Message, receive: Receive, send: Send, dialect: Dialect = CHAT
    ) -> None:
        self.dialect = dialect
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.id = new_id()
        self.begun = False  # has the answer's head been sent?
        self.limits: Callable[[], Headers] = list  # what the caller's limits say, once known
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body_read = False

    @property
    def request_id(self) -> str:
        """What clients, replicas and charges call this request."""
        return f"req_{self.id.hex}"

    def header(self, name: bytes) -> str | None:
        for key, value in self._scope["headers"]:
            if key == name:
                return bytes(value).decode("latin-1")
        return None

    async def read_body(self, stopping: asyncio.Future[None]) -> bytes:
        """Return the body.

        Raises:
            Failure: too large, compressed, or it did not come; the connection then closes.
            HungUp: the client left in the middle.
        """
        if self.header(b"content-encoding") not in (None, "identity"):
            raise Failure(
                Kind.ENCODED, "send the body uncompressed", headers=[(b"connection", b"close")]
            )
        declared = self.header(b"content-length") or ""
        if self.header(b"expect") is not None and _too_large(declared):
            raise _too_large_failure()  # it asked first, so it has not sent the body
        size, parts = 0, []
        until = asyncio.get_running_loop().time() + _BODY_SECONDS
        while True:
            message = await self._next(until, stopping)
            if message["type"] == "http.disconnect":
                raise HungUp
            part = message.get("body", b"")
            size += len(part)
            if size <= MAX_BODY_BYTES:
                parts.append(part)
            if not message.get("more_body", False):
                break
            # Read on before refusing: a client that is cut off while it still writes loses
            # our answer with the connection.
            if size > _SWALLOWED_BYTES:
                break
        if size > MAX_BODY_BYTES:
            raise _too_large_failure()
        self._body_read = True
        return b"".join(parts)

    async def _next(self, until: float, stopping: asyncio.Future[None]) -> Message:
        receiving = asyncio.ensure_future(self._receive())
        either: set[asyncio.Future[Any]] = {receiving, stopping}
        left = min(_SILENCE_SECONDS, until - asyncio.get_running_loop().time())
        await asyncio.wait(either, timeout=max(0, left), return_when=asyncio.FIRST_COMPLETED)
        if receiving.done():
            return receiving.result()
        receiving.cancel()
        close: Headers = [(b"connection", b"close")]
        if stopping.done():
            raise Failure(Kind.STOPPING, "this gateway is stopping; retry", headers=close)
        raise Failure(Kind.TOO_SLOW, "the request's body did not arrive in time", headers=close)

    async def hang_up(self) -> None:
        """Return when the client has gone. Only once the body was read."""
        assert self._body_read
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def respond(
        self, status: int, body: bytes, *, headers: Headers | None = None, kind: bytes | None = None
    ) -> None:
        """Send a whole answer."""
        await self._start(
            status,
            [
                (b"content-type", kind or b"application/json"),
                (b"content-length", b"%d" % len(body)),
                *(headers or []),
            ],
        )
        await self._send({"type": "http.response.body", "body": body})

    async def refuse(self, failure: Failure) -> None:
        """Answer with an error; within a begun stream, as its last event."""
        if self.begun:
            await self.end(self.dialect.break_off(failure, self.request_id))
        else:
            status, body, headers = self.dialect.refuse(failure, self.request_id)
            await self.respond(status, body, headers=failure.headers + headers)

    async def begin(self, headers: Headers) -> None:
        """Send the head of a stream of events."""
        await self._start(
            200,
            [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
                *headers,
            ],
        )

    async def write(self, data: bytes) -> None:
        """Send a part of a stream; waits while the client reads too slowly."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data})

    async def _start(self, status: int, headers: Headers) -> None:
        self.begun = True
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (self.dialect.request_id, self.request_id.encode()),
                    *headers,
                    *self.limits(),
                ],
            }
        )


def _too_large(declared: str) -> bool:
    return declared.isdecimal() and (len(declared) > 18 or int(declared) > MAX_BODY_BYTES)


def _too_large_failure() -> Failure:
    return Failure(
        Kind.TOO_LARGE,
        f"the request's body is larger than {MAX_BODY_BYTES} bytes",
        headers=[(b"connection", b"close")],
    )
