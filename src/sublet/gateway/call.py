"""One request of a client, and its answer, in HTTP/1.1's terms."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol
from urllib.parse import unquote

from sublet.gateway.failures import Headers

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
_AHEAD_BYTES: Final = 1024 * 1024  # of a body that nobody reads yet: then its client waits
_SWALLOWED_BYTES: Final = 64 * 1024 * 1024  # of a body that is too large, before hanging up


class Line(Protocol):
    """What a call asks of its connection."""

    secure: bool
    clogged: bool  # the client does not read what is written

    @property
    def stopping(self) -> bool: ...

    def write(self, data: bytes) -> None: ...

    def status_line(self, status: int) -> bytes: ...

    async def drained(self) -> None: ...

    def body_begins(self, *, anew: bool = False) -> None:
        """Somebody waits for a body from now on; `anew`: for the next part of one."""

    def hold_back(self) -> None:
        """Read nothing more from the client until `go_on`."""

    def go_on(self) -> None: ...

    def answered(self, call: "Call") -> None: ...

    def abandon(self, call: "Call") -> None: ...


class HungUp(Exception):
    """The client is gone: nobody is left to answer."""


class BodyTooLarge(Exception):
    """It has more than it may have. The connection is to be closed."""


class BodyTooSlow(Exception):
    """It did not come in time. The connection is to be closed."""


class Stopping(Exception):
    """The server stops, and the body was still on its way."""


class Call:
    """One request on a connection, and its answer."""

    __slots__ = (
        "_buffered", "_connection", "_expects", "_keeps", "_most", "_old", "_parts", "_reads",
        "_size", "_streams", "_waiter", "_whole", "begun", "done", "gone", "headers", "method", "on_gone", "path", "query",
        "target",
    )  # fmt: skip

    def __init__(
        self, connection: Line, method: str, target: bytes, headers: Headers, *,
        keeps: bool, old: bool,
    ) -> None:  # fmt: skip
        self.method = method
        self.target = target  # as it came, with its query
        self.headers = headers  # names in lower case
        self.path, self.query = _split(target)
        self.begun = False  # has the answer's head been sent?
        self.done = False  # … and all of it?
        self.gone = False  # has the client left?
        self.on_gone: Callable[[], None] | None = None
        self._connection = connection
        self._keeps = keeps
        self._old = old  # HTTP/1.0
        self._expects = False  # "100 Continue", before it sends its body
        self._streams = False
        self._parts: list[bytes] = []
        self._size = 0
        self._buffered = 0
        self._most = MAX_BODY_BYTES
        self._reads = False  # does somebody take it as it comes?
        self._whole = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def secure(self) -> bool:
        """Did it come over TLS?"""
        return self._connection.secure

    @property
    def clogged(self) -> bool:
        """Does the client read too slowly?"""
        return self._connection.clogged

    def header(self, name: bytes) -> str | None:
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return None

    # ── its body ─────────────────────────────────────────────────────────────────────────

    async def read(self, *, most: int = MAX_BODY_BYTES) -> bytes:
        """Return the body, of at most so many bytes.

        Raises:
            BodyTooLarge, BodyTooSlow, Stopping: the answer must be the connection's last.
            HungUp: the client left in the middle.
        """
        self._most, self._reads = most, True
        if not self._whole:
            await self._read_on()
        if self._size > most:
            raise BodyTooLarge
        parts = self._parts
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def stream(self, *, most: int) -> AsyncIterator[bytes]:
        """Yield the body as it comes; its client waits while nobody takes what came.

        Raises: as `read`.
        """
        self._most = most
        if not self._whole:
            self._ask_to_send()
        while True:
            if self._size > most:
                raise BodyTooLarge
            if self._parts:
                data = b"".join(self._parts)
                self._parts.clear()
                self._buffered = 0
                self._connection.go_on()
                yield data
            elif self._whole:
                return
            else:
                await self._wait(anew=True)

    def _ask_to_send(self) -> None:
        """Let a client go on that asked first whether it may send its body."""
        if self.header(b"expect") is not None:
            if _announces_more(self.header(b"content-length"), self._most):
                raise BodyTooLarge  # … so it has not sent it
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _wait(self, *, anew: bool) -> None:
        if self.gone:
            raise HungUp
        if self._connection.stopping:
            raise Stopping
        self._waiter = asyncio.get_running_loop().create_future()
        self._connection.body_begins(anew=anew)
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def _read_on(self) -> None:
        self._ask_to_send()
        self._connection.go_on()
        # Read on before refusing what is too large: a client that is cut off while it still
        # writes loses our answer with the connection.
        while not self._whole and self._size <= max(_SWALLOWED_BYTES, self._most):
            await self._wait(anew=False)

    def feed(self, part: bytes) -> None:
        self._size += len(part)
        if self.done:
            return
        if self._size <= self._most:
            self._parts.append(part)
        else:
            self._parts.clear()
        self._buffered += len(part)
        if not self._reads:
            if self._buffered > _AHEAD_BYTES:
                self._connection.hold_back()
            self.wake()
        elif self._size > _SWALLOWED_BYTES:
            self.wake()

    def complete(self) -> None:
        self._whole = True
        self.wake()

    def wake(self, error: Exception | None = None) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    @property
    def whole(self) -> bool:
        return self._whole

    @property
    def waits(self) -> bool:
        """Does somebody wait for its body?"""
        return self._waiter is not None

    @property
    def excessive(self) -> bool:
        return self._size > max(_SWALLOWED_BYTES, self._most)

    def lose(self) -> None:
        """The client left."""
        self.gone = True
        self.wake()
        if self.on_gone is not None and not self.done:
            self.on_gone()

    def abandon(self) -> None:
        """Nobody answers it any more: if it was not answered whole, the client must see that."""
        self._connection.abandon(self)

    # ── its answer ───────────────────────────────────────────────────────────────────────

    def close_after(self) -> None:
        """Let this answer be the connection's last."""
        self._keeps = False

    @property
    def keeps(self) -> bool:
        return self._keeps

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer. One that nobody is left to read is dropped."""
        self.begun = True
        sized = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
        head = self._head(status, sized + headers)
        self._send(head if self.method == "HEAD" else head + body)
        await self._end()

    async def begin(self, status: int, headers: Headers) -> None:
        """Send the head of an answer that comes in parts."""
        self.begun = True
        self._streams = not self._old
        if self._streams:
            headers = [*headers, (b"transfer-encoding", b"chunked")]
        else:
            self._keeps = False  # the connection's end is the answer's
        self._send(self._head(status, headers))

    async def write(self, data: bytes) -> None:
        """Send a part; waits while the client reads too slowly."""
        if not data:
            return
        self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._streams else data)
        if self._connection.clogged:
            await self._connection.drained()

    async def end(self, data: bytes) -> None:
        """Send the last part."""
        if self._streams:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self._send(data)
        await self._end()

    def _send(self, data: bytes) -> None:
        if not self.gone:
            self._connection.write(data)

    async def _end(self) -> None:
        self.done = True
        if not self._whole:
            self._connection.go_on()  # what still comes is swallowed
        if self._connection.clogged:
            await self._connection.drained()
        self._connection.answered(self)

    def _head(self, status: int, headers: Headers) -> bytes:
        connection = self._connection
        if connection.stopping:
            self._keeps = False
        parts = [connection.status_line(status)]
        parts += [b"%b: %b\r\n" % pair for pair in headers]
        if not self._keeps:
            parts.append(b"connection: close\r\n")
        elif self._old:
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)


def _split(target: bytes) -> tuple[str, bytes]:
    """Return a request's path, decoded, and its query, as it came."""
    if target.startswith((b"http://", b"https://")):  # as proxies are asked
        rest = target.partition(b"://")[2]
        target = rest[rest.find(b"/") :] if b"/" in rest else b"/"
    path, _, query = target.partition(b"?")
    if b"%" in path:
        return unquote(path.decode("latin-1")), query
    return path.decode("latin-1"), query


def _announces_more(length: str | None, most: int) -> bool:
    declared = length or ""
    return declared.isdecimal() and (len(declared) > 18 or int(declared) > most)
