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

import httptools

from sublet.gateway.call import BodyTooSlow, Call
from sublet.gateway.failures import Headers  # noqa: TC001

log: Final = logging.getLogger(__name__)

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

    def body_begins(self, *, anew: bool = False) -> None:
        if self._body_at is None or anew:
            self._body_at = self._heard_at = self._loop.time()

    def hold_back(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def go_on(self) -> None:
        if not self._queue and self._transport is not None:
            self._transport.resume_reading()

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
