"""The API's edge: errors to statuses, bodies that are too large or never end, callers."""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Annotated, Any, Final

import psycopg
from fastapi import Depends, FastAPI, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sublet.app.services import Services
from sublet.console.api import CALLER
from sublet.core.errors import (
    Conflict,
    Invalid,
    Misconfigured,
    NotFound,
    Refused,
    SubletError,
    Unauthorized,
    Unavailable,
    Unconfirmed,
    Unpaid,
)
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Caller, Role, Tenant

log = logging.getLogger(__name__)

STATUSES: Final[Mapping[type[SubletError], int]] = {
    Invalid: 422,
    Unauthorized: 401,
    NotFound: 404,
    Conflict: 409,
    Unpaid: 402,
    Refused: 409,
    Unconfirmed: 409,
    Unavailable: 503,
    Misconfigured: 500,
}
MAX_BODY_BYTES: Final = 8 << 20
BODY_SECONDS: Final = 15.0
_MOST_READ_BYTES: Final = 64 << 20

_bearer = HTTPBearer(auto_error=False, description="An API key: `sk-sublet-…`")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


class Forbidden(SubletError):
    """The operator's rooms are no secret, so a tenant at their door is told so."""

    code = "forbidden"


def services(request: Request) -> Services:
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


def caller(request: Request, credentials: Credentials) -> Caller:
    """Raises Unauthorized: no key, or none that is valid."""
    known = request.scope.get(CALLER)
    if known is not None:  # the console asks for somebody who signed in; no header sets this
        assert isinstance(known, Caller)
        return known
    if credentials is None:
        raise Unauthorized("send your API key in the header `Authorization: Bearer sk-sublet-…`")
    ours = services(request)
    with ours.db.transaction() as tx:
        return tenants.find_caller(tx, credentials.credentials, now=ours.clock.now())


def operator(found: Annotated[Caller, Depends(caller)]) -> Caller:
    """Raises Forbidden: a tenant's key."""
    if found.role is not Role.OPERATOR:
        raise Forbidden("this needs the operator's key")
    return found


def tenant(found: Annotated[Caller, Depends(caller)]) -> Tenant:
    """Raises Forbidden: the operator's key, which owns no wallet."""
    if found.tenant is None:
        raise Forbidden("this needs a tenant's key: the operator has no wallet and no leases")
    return found.tenant


Ours = Annotated[Services, Depends(services)]
AnyCaller = Annotated[Caller, Depends(caller)]
Operator = Annotated[Caller, Depends(operator)]
OneTenant = Annotated[Tenant, Depends(tenant)]


def envelope(code: str, message: str, *, retryable: bool = False) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "retryable": retryable}}


def install_errors(app: FastAPI) -> None:
    """Answer every error with one shape and the status of its kind."""

    def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, SubletError)
        status = 403 if isinstance(error, Forbidden) else STATUSES[type(error)]
        headers = {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if isinstance(error, Unavailable):
            headers["Retry-After"] = "1"
        body = envelope(error.code, str(error), retryable=error.retryable)
        if isinstance(error, Unconfirmed):
            body["error"]["hits"] = jsonable_encoder(error.hits)
        return JSONResponse(body, status, headers)

    def malformed(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        return JSONResponse(envelope("invalid", message), 422)

    def plain(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        body = envelope(_CODES.get(error.status_code, "invalid"), str(error.detail))
        return JSONResponse(body, error.status_code, error.headers)

    def unstorable(_: Request, error: Exception) -> Response:
        log.warning("api.unstorable", extra={"detail": str(error)})
        return JSONResponse(
            envelope("invalid", "a value is out of range or has characters that cannot be kept"),
            422,
        )

    def unknown(request: Request, error: Exception) -> Response:
        log.error("api.failed", extra={"path": request.url.path}, exc_info=error)
        return JSONResponse(
            envelope("internal", "Sublet failed; its log says why. Nothing was half done."), 500
        )

    app.add_exception_handler(SubletError, known)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(psycopg.DataError, unstorable)
    app.add_exception_handler(Exception, unknown)


_CODES: Final = {404: "not_found", 405: "method_not_allowed"}


class BodyGuard:
    """Reads a request's body before the app sees it: at most so large, within so long.

    A client that stops half way would otherwise hold a connection for ever, and one that
    never stops would fill the memory.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._read(receive)
        except TimeoutError:
            await answer(send, 408, envelope("invalid", "the body did not arrive in time"))
            return
        if body is None:
            return  # the client is gone
        if len(body) > MAX_BODY_BYTES:
            message = f"the body is larger than {MAX_BODY_BYTES >> 20} MiB"
            await answer(send, 413, envelope("invalid", message))
            return
        handed = False

        async def replay() -> Message:
            nonlocal handed
            if not handed:
                handed = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body, or its beginning where it is too large; None: the client left.

        What is too large is read on for a while and thrown away: a client that still sends
        when the connection is closed under it never sees the answer.
        """
        body = bytearray()
        seen = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            seen += len(piece)
            if len(body) <= MAX_BODY_BYTES:
                body += piece
            if not message.get("more_body", False) or seen > _MOST_READ_BYTES:
                return bytes(body)


async def answer(send: Send, status: int, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
