"""One call and its answer, in the words of its dialect."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from sublet.core.ids import new_id
from sublet.gateway.call import MAX_BODY_BYTES, BodyTooLarge, BodyTooSlow, Call, Stopping
from sublet.gateway.dialect import Dialect
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.tracing import Trace  # noqa: TC001 - annotations are looked at elsewhere

_CLOSE: Final[Headers] = [(b"connection", b"close")]


class Exchange:
    def __init__(self, call: Call, dialect: Dialect) -> None:
        self.dialect = dialect
        self.method = call.method
        self.path = call.path
        self.id = new_id()
        # What clients, replicas and charges call this request.
        self.request_id: Final = f"req_{self.id.hex}"
        self.limits: Callable[[], Headers] = list  # what the caller's limits say, once known
        self._call = call
        self.trace: Trace | None = None

    @property
    def created(self) -> int:
        """When it came, in seconds since 1970: its id begins with its milliseconds."""
        return (self.id.int >> 80) // 1000

    @property
    def begun(self) -> bool:
        """Has the answer's head been sent?"""
        return self._call.begun

    @property
    def clogged(self) -> bool:
        """Does the client read too slowly?"""
        return self._call.clogged

    @property
    def target(self) -> bytes:
        """The path and the query as they came."""
        return self._call.target

    @property
    def query(self) -> bytes:
        """What is behind the path, as it came."""
        return self._call.query

    @property
    def headers(self) -> Headers:
        """All of them, names in lower case."""
        return self._call.headers

    def header(self, name: bytes) -> str | None:
        return self._call.header(name)

    @property
    def secure(self) -> bool:
        """Did it come over TLS?"""
        return self._call.secure

    async def read_body(self, *, most: int = MAX_BODY_BYTES) -> bytes:
        """Return the body, of at most so many bytes.

        Raises:
            Failure: too large, compressed, or it did not come; the connection then closes.
            HungUp: the client left in the middle.
        """
        with self._reading(most):
            return await self._call.read(most=most)

    async def stream_body(self, *, most: int) -> AsyncIterator[bytes]:
        """Yield the body as it comes; raises as `read_body`."""
        with self._reading(most):
            async for part in self._call.stream(most=most):
                yield part

    @contextmanager
    def _reading(self, most: int) -> Iterator[None]:
        if self.header(b"content-encoding") not in (None, "identity"):
            raise Failure(Kind.ENCODED, "send the body uncompressed", headers=_CLOSE)
        try:
            yield
        except BodyTooLarge:
            raise Failure(
                Kind.TOO_LARGE,
                f"the request's body is larger than {most} bytes",
                headers=_CLOSE,
            ) from None
        except BodyTooSlow:
            words = "the request's body did not arrive in time"
            raise Failure(Kind.TOO_SLOW, words, headers=_CLOSE) from None
        except Stopping:
            raise stopping() from None

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Call `tell` when the client hangs up before it has the whole answer."""
        self._call.on_gone = tell
        if self._call.gone:
            tell()

    async def respond(
        self, status: int, body: bytes, *, headers: Headers | None = None, kind: bytes | None = None
    ) -> None:
        """Send a whole answer."""
        head = self._headers([(b"content-type", kind or b"application/json")], headers or [])
        await self._call.respond(status, head, body)

    async def refuse(self, failure: Failure) -> None:
        """Answer with an error; within a begun stream, as its last event."""
        if self.begun:
            await self.end(self.dialect.break_off(failure, self.request_id))
            return
        status, body, headers = self.dialect.refuse(failure, self.request_id)
        headers = failure.headers + headers
        if _CLOSE[0] in headers:
            headers.remove(_CLOSE[0])
            self._call.close_after()
        await self.respond(status, body, headers=headers)

    async def begin(self, headers: Headers, *, kind: bytes | None = None) -> None:
        """Send the head of a stream: of events, if it is of no other kind."""
        first = [
            (b"content-type", kind or self.dialect.stream_kind),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._call.begin(200, self._headers(first, headers))

    async def write(self, data: bytes) -> None:
        """Send a part of a stream; waits while the client reads too slowly."""
        await self._call.write(data)

    async def end(self, data: bytes) -> None:
        await self._call.end(data)

    def _headers(self, first: Headers, then: Headers) -> Headers:
        named = (self.dialect.request_id, self.request_id.encode())
        return [*first, named, *then, *self.limits()]


def stopping() -> Failure:
    return Failure(Kind.STOPPING, "this gateway is stopping; retry", headers=_CLOSE)
