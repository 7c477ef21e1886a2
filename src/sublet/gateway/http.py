"""HTTP/1.1 for clients: each request taken apart by httptools, and answered in as few writes as can be.

A general server hands its application a stream of messages, asks for them by a task of its own,
and writes an answer's head and body apart. Here a request's body has usually come with its head,
a client's leaving is a callback, and times are looked at once a second for all connections
instead of by timers for each. See docs/decisions/0016.

    Server ──1:n── Connection ──1:n, one after the other── Call
"""

import asyncio
import contextlib
import http
import logging
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from socket import socket
from typing import Final, cast
from urllib.parse import unquote

import httptools

from sublet.gateway.failures import Headers

log: Final = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
_SWALLOWED_BYTES: Final = 64 * 1024 * 1024  # of a body that is too large, before hanging up
_MAX_HEAD_BYTES: Final = 64 * 1024
_SILENCE_SECONDS: Final = 15.0  # within a head or a body
_BODY_SECONDS: Final = 60.0
_IDLE_SECONDS: Final = 75.0  # between two requests
_LINGER_SECONDS: Final = 2.0  # for a client that still sends when it has its answer
_HANDSHAKE_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 1.0
_BACKLOG: Final = 2048
_REASON: Final = {status.value: status.phrase.encode() for status in http.HTTPStatus}
_BARE: Final = (
    b"HTTP/1.1 %d %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%b"
)


class HungUp(Exception):
    """The client is gone: nobody is left to answer."""


class BodyTooLarge(Exception):
    """It has more than `MAX_BODY_BYTES`. The connection is to be closed."""


class BodyTooSlow(Exception):
    """It did not come in time. The connection is to be closed."""


class Stopping(Exception):
    """The server stops, and the body was still on its way."""


class Call:
    """One request on a connection, and its answer."""

    __slots__ = (
        "_connection", "_expects", "_keeps", "_old", "_parts", "_size", "_streams", "_waiter",
        "_whole", "begun", "done", "gone", "headers", "method", "on_gone", "path", "query",
        "target",
    )  # fmt: skip

    def __init__(
        self, connection: "Connection", method: str, target: bytes, headers: Headers, *,
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

    async def read(self) -> bytes:
        """Return the body.

        Raises:
            BodyTooLarge, BodyTooSlow, Stopping: the answer must be the connection's last.
            HungUp: the client left in the middle.
        """
        if not self._whole:
            await self._read_on()
        if self._size > MAX_BODY_BYTES:
            raise BodyTooLarge
        parts = self._parts
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_on(self) -> None:
        if self.header(b"expect") is not None:
            if _announces_too_much(self.header(b"content-length")):
                raise BodyTooLarge  # it asked first, so it has not sent the body
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Read on before refusing what is too large: a client that is cut off while it still
        # writes loses our answer with the connection.
        while not self._whole and self._size <= _SWALLOWED_BYTES:
            if self.gone:
                raise HungUp
            if self._connection.stopping:
                raise Stopping
            self._waiter = asyncio.get_running_loop().create_future()
            self._connection.body_begins()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def feed(self, part: bytes) -> None:
        self._size += len(part)
        if self.done:
            return
        if self._size <= MAX_BODY_BYTES:
            self._parts.append(part)
        else:
            self._parts.clear()
        if self._size > _SWALLOWED_BYTES:
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
        return self._size > _SWALLOWED_BYTES

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


class Connection(asyncio.Protocol):
    """One client's connection. Its requests are answered in their order, one at a time."""

    def __init__(self, server: "Server") -> None:
        self.secure = False
        self.clogged = False  # the client does not read what is written
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: Headers = []
        self._in_head = False
        self._head_bytes = 0
        self._head_at = 0.0
        self._deaf = False  # what still comes is not for us
        self._reads: Call | None = None  # whose body comes just now
        self._call: Call | None = None  # who is being answered
        self._queue: deque[Call] = deque()
        self._drained: asyncio.Future[None] | None = None
        self._heard_at = self._loop.time()
        self._body_at: float | None = None  # since when somebody waits for a body
        self._idle_at = self._heard_at  # since when nothing is asked
        self._leave_at: float | None = None  # it has its last answer, and still sends

    # ── asyncio's calls ──────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.secure = transport.get_extra_info("sslcontext") is not None
        self._server.connections.add(self)
        if self._server.stopping:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._server.leave(self)
        self._transport = None
        self.resume_writing()
        calls = [call for call in (self._call, *self._queue) if call is not None]
        self._queue.clear()
        for call in calls:
            call.lose()

    def eof_received(self) -> None:
        """A client that sends no more is taken for one that left."""

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        if self._deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # We stay with what we speak: it is answered, and then the connection ends.
            self._end_after_last()
        except httptools.HttpParserError:
            self._break_off(400, b"This is no HTTP/1.1 request.")
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._break_off(431, b"The request's head is larger than 64 KiB.")
        elif self._reads is not None and self._reads.done and self._reads.excessive:
            self._close()

    def pause_writing(self) -> None:
        self.clogged = True

    def resume_writing(self) -> None:
        self.clogged = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # ── httptools' calls ─────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = []
        self._in_head = True
        self._head_bytes = 0
        self._head_at = self._heard_at

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self._parser
        call = self._reads = Call(
            self,
            parser.get_method().decode(),
            self._target,
            self._headers,
            keeps=parser.should_keep_alive(),
            old=parser.get_http_version() == "1.0",
        )
        if self._call is None:
            self._call = call
            self._server.start(call)
        else:  # it did not wait for the answer before
            self._queue.append(call)
            if self._transport is not None:
                self._transport.pause_reading()

    def on_body(self, body: bytes) -> None:
        if self._reads is not None:
            self._reads.feed(body)

    def on_message_complete(self) -> None:
        call, self._reads = self._reads, None
        if call is not None:
            call.complete()
            if call is self._call and call.done:  # it had its answer long before
                self._next()

    # ── what calls ask ───────────────────────────────────────────────────────────────────

    @property
    def stopping(self) -> bool:
        return self._server.stopping

    def status_line(self, status: int) -> bytes:
        return self._server.status_line(status)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the client has read what was written, or is gone."""
        while self.clogged and self._transport is not None:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def body_begins(self) -> None:
        if self._body_at is None:
            self._body_at = self._heard_at = self._loop.time()

    def answered(self, call: Call) -> None:
        """Go on to the next, or end."""
        if call is not self._call:
            return
        self._body_at = None
        if not call.keeps or self._server.stopping:
            self._queue.clear()
            if call.whole:
                self._close()
            else:
                self._linger()
        elif call.whole:
            self._next()

    def abandon(self, call: Call) -> None:
        """It was never answered to its end: the client must see that."""
        if call is self._call and not call.done and self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        self._call = None
        self._idle_at = self._loop.time()
        if self._queue:
            self._call = self._queue.popleft()
            self._server.start(self._call)
            if not self._queue and self._transport is not None:
                self._transport.resume_reading()

    # ── the end ──────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """End after what is being answered."""
        if self._call is None:
            self._close()
        else:
            self._call.wake()

    def look(self, now: float) -> None:
        """End what waits for too long."""
        call = self._call
        if self._leave_at is not None:
            if now > self._leave_at:
                self._close()
        elif call is not None and call.waits:
            begun = now if self._body_at is None else self._body_at
            if now - self._heard_at > _SILENCE_SECONDS or now - begun > _BODY_SECONDS:
                call.wake(BodyTooSlow())
        elif call is not None and call.done:  # the rest of a body that nobody wants
            if now - self._heard_at > _SILENCE_SECONDS:
                self._close()
        elif call is None and self._in_head:
            if now - self._head_at > _SILENCE_SECONDS:
                self._break_off(408, b"The request's head did not arrive in time.")
        elif call is None and now - self._idle_at > _IDLE_SECONDS:
            self._close()

    def _break_off(self, status: int, words: bytes) -> None:
        """Answer what cannot be read on, once all before it is answered, and end."""
        call = self._call
        if call is not None and call.whole and not call.done:
            self._end_after_last()
            return
        if call is not None and not call.whole:  # its own body is what cannot be read
            self._call = None
            begun = call.begun
            call.lose()
            if begun:
                self._close()
                return
        self.write(_BARE % (status, _REASON[status], len(words), words))
        self._linger()

    def _end_after_last(self) -> None:
        self._deaf = True
        last = self._queue[-1] if self._queue else self._call
        if last is not None:
            last.close_after()

    def _linger(self) -> None:
        """Let a client that still sends read its answer: cut off it would lose it."""
        self._deaf = True
        self._leave_at = self._loop.time() + _LINGER_SECONDS
        if self._transport is not None:
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Server:
    """Every connection of some listeners, and who answers their calls."""

    def __init__(self, answer: Callable[[Call], Coroutine[object, object, None]]) -> None:
        self.connections: set[Connection] = set()
        self.stopping = False
        self._answer = answer
        self._listeners: list[asyncio.Server] = []
        self._running: set[asyncio.Task[None]] = set()
        self._lines: dict[int, bytes] = {}  # the answers' first lines of this second
        self._watch: asyncio.Task[None] | None = None
        self._ended_all = asyncio.Event()

    async def listen(self, listener: socket, context: ssl.SSLContext | None) -> None:
        """Take connections of a bound socket."""
        loop = asyncio.get_running_loop()
        self._listeners.append(
            await loop.create_server(
                lambda: Connection(self),
                sock=listener,
                backlog=_BACKLOG,
                ssl=context,
                ssl_handshake_timeout=None if context is None else _HANDSHAKE_SECONDS,
            )
        )
        if self._watch is None:
            self._watch = loop.create_task(self._look())

    async def stop(self, *, within_seconds: float) -> None:
        """Take no new connection or request, and end those that are there after their answers."""
        self.stopping = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.stop()
        self._look_at_end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._ended_all.wait()
        if self._watch is not None:
            self._watch.cancel()

    def leave(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._look_at_end()

    def _look_at_end(self) -> None:
        if self.stopping and not self.connections and not self._running:
            self._ended_all.set()

    def start(self, call: Call) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(call))
        self._running.add(task)
        task.add_done_callback(lambda done: self._ended(call, done))

    def _ended(self, call: Call, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._look_at_end()
        call.abandon()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("gateway.failed", exc_info=error)

    def status_line(self, status: int) -> bytes:
        """Return an answer's first line, and the date behind it."""
        line = self._lines.get(status)
        if line is None:
            date = formatdate(usegmt=True).encode()
            line = b"HTTP/1.1 %d %b\r\ndate: %b\r\n" % (status, _REASON.get(status, b""), date)
            self._lines[status] = line
        return line

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._lines.clear()
            now = loop.time()
            for connection in list(self.connections):
                connection.look(now)


def _split(target: bytes) -> tuple[str, bytes]:
    """Return a request's path, decoded, and its query, as it came."""
    if target.startswith((b"http://", b"https://")):  # as proxies are asked
        rest = target.partition(b"://")[2]
        target = rest[rest.find(b"/") :] if b"/" in rest else b"/"
    path, _, query = target.partition(b"?")
    if b"%" in path:
        return unquote(path.decode("latin-1")), query
    return path.decode("latin-1"), query


def _announces_too_much(length: str | None) -> bool:
    declared = length or ""
    return declared.isdecimal() and (len(declared) > 18 or int(declared) > MAX_BODY_BYTES)
