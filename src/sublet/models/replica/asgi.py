"""The little of HTTP that the agent needs, over bare ASGI."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec

from sublet.core.errors import Invalid

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gone(Exception):
    """The client hung up before its request was complete."""


class Request:
    def __init__(self, scope: Message, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = unquote(scope["path"])
        self._headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        self._query = parse_qs(scope["query_string"].decode("latin-1"))
        self._receive = receive

    def header(self, name: str) -> str | None:
        return self._headers.get(name.encode())

    def query(self, name: str) -> str | None:
        values = self._query.get(name)
        return values[-1] if values else None

    async def body(self, *, limit_bytes: int) -> bytes:
        """Return the whole body.

        Raises:
            Gone: the client hung up half way.
            Invalid: it is longer than `limit_bytes`.
        """
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit_bytes:
                raise Invalid(f"the body is longer than {limit_bytes} bytes")
            if not message.get("more_body", False):
                return b"".join(parts)

    async def hung_up(self) -> None:
        """Return when the client hangs up; only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Response:
    """One answer: whole, or begun and then streamed."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = asyncio.Lock()
        self.began = False
        self.headers: dict[str, str] = {}

    async def whole(self, status: int, value: Any, *, kind: str = "application/json") -> None:
        body = value if isinstance(value, bytes) else msgspec.json.encode(value)
        await self._start(status, {"content-type": kind, "content-length": str(len(body))})
        await self._send({"type": "http.response.body", "body": body})

    async def stream(self, part: bytes, *, last: bool = False) -> None:
        """Send a part of an event stream, after its head if it is the first."""
        if not self.began:
            await self._start(
                200, {"content-type": "text/event-stream", "cache-control": "no-cache"}
            )
        await self._send({"type": "http.response.body", "body": part, "more_body": not last})

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        assert not self.began
        self.began = True
        pairs = [(k.encode(), v.encode("latin-1")) for k, v in (self.headers | headers).items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})
