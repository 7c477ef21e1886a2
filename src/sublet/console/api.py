"""The API, asked from within this process for somebody who signed in.

A page does what the API can do and nothing else: it asks the same routes, which check the same
rights, find the same money and store the same answers as for any client. Nothing goes over a
socket, and no key is needed: whom it is asked for stands beside the request, where no header
can put it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote, urlencode

from pydantic_core import to_json
from starlette.types import ASGIApp, Message

from sublet.core.errors import SubletError
from sublet.tenants.tenant import Caller

CALLER: Final = "sublet.caller"  # in the scope of a request of our own


class ApiError(SubletError):
    """The API said no; its words are for whoever asked."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        error = body.get("error", {})
        super().__init__(str(error.get("message", f"the API answered {status}")))
        self.status = status
        self.kind = str(error.get("code", "unknown"))
        self.hits: list[dict[str, Any]] = error.get("hits", [])


class Api:
    """The API as one caller sees it."""

    def __init__(self, app: ASGIApp, caller: Caller) -> None:
        self._app = app
        self._caller = caller

    async def get(self, path: str, /, **query: Any) -> Any:
        """Return the JSON at `path`; parameters that are None are left out.

        Raises:
            ApiError: it was refused.
        """
        return json.loads(await self._ask("GET", path, query=query))

    async def read(self, path: str, /, **query: Any) -> bytes:
        """Return the bytes at `path`. Raises ApiError: it was refused."""
        return await self._ask("GET", path, query=query)

    async def post(self, path: str, body: object = None, *, once: str | None = None) -> Any:
        """Send `body`; `once` names the call, so that sending it again has no second effect."""
        return _parsed(await self._ask("POST", path, body={} if body is None else body, once=once))

    async def patch(self, path: str, body: object) -> Any:
        return _parsed(await self._ask("PATCH", path, body=body))

    async def put(self, path: str, body: object) -> Any:
        return _parsed(await self._ask("PUT", path, body=body))

    async def delete(self, path: str, /, **query: Any) -> Any:
        return _parsed(await self._ask("DELETE", path, query=query))

    async def _ask(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None,
        body: object = None, once: str | None = None,
    ) -> bytes:  # fmt: skip
        scope = self._scope(method, path, query or {}, body, once)
        status, answer = 500, bytearray()

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                answer.extend(message.get("body", b""))

        await self._app(scope, _receiver(body), send)
        if status >= 400:
            raise ApiError(status, _error_of(bytes(answer)))
        return bytes(answer)

    async def stream(self, path: str, /, **query: Any) -> AsyncIterator[bytes]:
        """Yield what is at `path` as it comes.

        Raises:
            ApiError: it was refused.
        """
        scope = self._scope("GET", path, query, None, None)
        came: asyncio.Queue[Message | None] = asyncio.Queue(8)

        async def serve() -> None:
            try:
                await self._app(scope, _receiver(None), came.put)
            finally:
                await came.put(None)

        serving = asyncio.create_task(serve())
        try:
            status, refused = 200, b""
            while (message := await came.get()) is not None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                elif status >= 400:
                    refused += message.get("body", b"")
                else:
                    yield message.get("body", b"")
            if status >= 400:
                raise ApiError(status, _error_of(refused))
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    def _scope(
        self, method: str, path: str, query: Mapping[str, Any], body: object, once: str | None
    ) -> dict[str, Any]:
        asked = {name: value for name, value in query.items() if value is not None}
        headers = [(b"content-type", b"application/json")] if body is not None else []
        if once is not None:
            headers.append((b"idempotency-key", once.encode()))
        return {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": quote(path).encode(), "root_path": "",
            "query_string": urlencode(asked, doseq=True).encode(), "headers": headers,
            "client": None, "server": ("console", 80), "state": {}, CALLER: self._caller,
        }  # fmt: skip


def _receiver(body: object) -> Callable[[], Awaitable[Message]]:
    """Return what hands the app its request's body, and never says that the client left."""
    sent = b"" if body is None else to_json(body)
    told = False

    async def receive() -> Message:
        nonlocal told
        if not told:
            told = True
            return {"type": "http.request", "body": sent, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def _parsed(answer: bytes) -> Any:
    return json.loads(answer) if answer else None


def _error_of(answer: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(answer)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
