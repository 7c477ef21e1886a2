"""HTTP/1.1 to replicas and suppliers: one request at a time on a connection, and no more than is needed.

A general client does for every request what a gateway needs for none of them: cookies,
redirects, proxies, compression, and an object for each header and each chunk. This one writes
the bytes it is given and hands on the body as it comes, parsed by httptools, the C parser
under uvicorn. See docs/decisions/0010.
"""

import asyncio
import re
import ssl
from collections import deque
from typing import Final, cast

import httptools

_CONNECT_SECONDS: Final = 2.0
_IDLE_SECONDS: Final = 2.0  # less than any server keeps a connection
_LINGER_SECONDS: Final = 0.2
_MOST_BUFFERED: Final = 1 << 18  # bytes of a body that nobody reads yet
_MOST_IDLE: Final = 256  # connections to one server
_RETRY_AFTER: Final = re.compile(
    rb"\r\nretry-after:[ \t]*([0-9]{1,5})[ \t]*(?:\r\n|\Z)", re.IGNORECASE
)


class Lost(Exception):
    """The connection could not be made, broke, or was silent for too long.

    Args:
        unheard: it broke before a byte of the answer: the server may not even have been asked.
        unsent: there was no connection, so it has not been.
    """

    def __init__(self, what: str, *, unheard: bool = False, unsent: bool = False) -> None:
        super().__init__(what)
        self.unheard = unheard
        self.unsent = unsent


class Answer(asyncio.Protocol):
    """A connection, and the answer on its way over it."""

    def __init__(self, pool: "Wire", address: tuple[str, int]) -> None:
        self.status = 0
        self.fresh = True  # nothing was ever asked on it before
        self._pool = pool
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._buffered = 0
        self._heard = False  # has any byte of it come?
        self._head = b""  # the first bytes of it
        self._begun = False  # has its head come?
        self._whole = False
        self._keeps = False  # may it be asked again?
        self._leaving = False
        self._lost: Lost | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._silence_seconds = 0.0
        self._heard_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.idle_since = 0.0

    # ── reading ──────────────────────────────────────────────────────────────────────────

    def retry_after(self) -> float | None:
        """Return for how many seconds a refusal asks to be left alone, if it says so.

        Looked for in the first bytes, as no other header is of interest: a call for each header of
        each answer would cost more than all else here.
        """
        found = _RETRY_AFTER.search(self._head.partition(b"\r\n\r\n")[0])
        return None if found is None else float(found[1])

    async def read(self) -> bytes:
        """Return what came of the body; b"" at its end.

        Raises:
            Lost: it breaks off here.
        """
        while not self._body:
            if self._whole:
                return b""
            await self._wait()
        body = self._body
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        if self._buffered > _MOST_BUFFERED and self._transport is not None:
            self._transport.resume_reading()
        self._buffered = 0
        return data

    async def read_all(self, *, most: int) -> bytes:
        """Return the rest of the body.

        Raises:
            Lost: it breaks off, or is larger than `most` bytes.
        """
        parts, size = [], 0
        while part := await self.read():
            size += len(part)
            if size > most:
                raise Lost("its answer is too large")
            parts.append(part)
        return b"".join(parts)

    def close(self, *, said_all: bool = False) -> None:
        """Be done with it. What was not read to its end stops the server's work.

        Args:
            said_all: the server's words are at their end, and only HTTP's own may be missing:
                the connection is kept as soon as they are there.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lost is None and self._whole and self._keeps:
            self._pool.keep(self._address, self)
        elif self._lost is None and said_all and not self._whole:
            self._leaving = True
            self._timer = self._loop.call_later(_LINGER_SECONDS, self.drop)
        else:
            self.drop()

    def drop(self) -> None:
        """Close the connection, whatever is on it."""
        if self._transport is not None:
            self._transport.abort()

    # ── writing ──────────────────────────────────────────────────────────────────────────

    async def ask(self, request: bytes, *, silence_seconds: float) -> None:
        """Send a request and wait for the head of its answer.

        Raises:
            Lost: there is none.
        """
        assert self._transport is not None
        self._body.clear()
        self._buffered = 0
        self._heard = self._begun = self._whole = False
        self._silence_seconds = silence_seconds
        self._heard_at = self._loop.time()
        self._timer = self._loop.call_later(silence_seconds, self._look)
        self._transport.write(request)
        while not self._begun:
            await self._wait()

    @property
    def alive(self) -> bool:
        return self._lost is None

    async def _wait(self) -> None:
        if self._lost is not None:
            raise self._lost
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _look(self) -> None:
        """One timer a request, not one a read."""
        left = self._heard_at + self._silence_seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._transport is not None:
            self._lost = Lost("it was silent for too long")
            self._transport.abort()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ── asyncio's and httptools' calls ───────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._heard:
            self._heard, self._head = True, data
        self._heard_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._lost = Lost("it does not speak HTTP")
            assert self._transport is not None
            self._transport.abort()
        if self._buffered > _MOST_BUFFERED and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self._lost is None:
            what = type(error).__name__ if error else "it hung up"
            self._lost = Lost(what, unheard=not self._heard)
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def eof_received(self) -> None:
        """A body without a length ends here; every other one broke off."""

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._begun = self.status >= 200  # 1xx: the answer is still to come
        self._keeps = self._parser.should_keep_alive()  # it forgets, at the message's end

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        self._whole = self._begun
        if self._leaving:
            self._leaving = False
            self.close()


class Headed(Answer):
    """An answer whose headers are of interest: names in lower case."""

    def __init__(self, pool: "Wire", address: tuple[str, int]) -> None:
        super().__init__(pool, address)
        self.headers: dict[bytes, bytes] = {}

    def on_message_begin(self) -> None:
        self.headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value


class Wire:
    """Connections to any number of servers, kept for the next request.

    Args:
        context: of TLS; None: without.
        make: what answers are read by: `Headed` where headers are of interest.
        connect_seconds: how long a connection may take, its handshake included.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext | None = None,
        make: type[Answer] = Answer,
        connect_seconds: float = _CONNECT_SECONDS,
    ) -> None:
        self._context = context
        self._make = make
        self._connect_seconds = connect_seconds
        self._idle: dict[tuple[str, int], deque[Answer]] = {}

    async def send(
        self,
        address: tuple[str, int],
        request: bytes,
        *,
        silence_seconds: float,
        repeatable: bool = True,
    ) -> Answer:
        """Send a request; return its answer once the head is there. `close` it in the end.

        A connection that was kept may be dead without our knowing: one that breaks before a
        byte of the answer is replaced, and the request sent once more, if it is `repeatable`: it
        may have been heard the first time.

        Raises:
            Lost: nobody answers.
        """
        while True:
            answer = self._kept(address) or await self._connect(address)
            fresh, answer.fresh = answer.fresh, False
            try:
                await answer.ask(request, silence_seconds=silence_seconds)
            except Lost as error:
                answer.close()
                if fresh or not error.unheard or not repeatable:
                    raise
            except BaseException:
                answer.close()
                raise
            else:
                return answer

    def keep(self, address: tuple[str, int], answer: Answer) -> None:
        """Keep a connection whose answer was read to its end."""
        idle = self._idle.setdefault(address, deque())
        answer.idle_since = asyncio.get_running_loop().time()
        idle.append(answer)
        if len(idle) > _MOST_IDLE:
            idle.popleft().drop()

    def close(self) -> None:
        for idle in self._idle.values():
            for answer in idle:
                answer.drop()
        self._idle.clear()

    def _kept(self, address: tuple[str, int]) -> Answer | None:
        idle = self._idle.get(address)
        now = asyncio.get_running_loop().time()
        while idle:
            answer = idle.pop()  # the one used last: the others grow old and go
            if answer.alive and now - answer.idle_since < _IDLE_SECONDS:
                return answer
            answer.drop()
        self._idle.pop(address, None)
        return None

    async def _connect(self, address: tuple[str, int]) -> Answer:
        loop = asyncio.get_running_loop()
        host, port = address
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, answer = await loop.create_connection(
                    lambda: self._make(self, address), host, port, ssl=self._context
                )
        except OSError as error:  # a TimeoutError is one
            raise Lost(type(error).__name__, unsent=True) from error
        return answer
