"""The gateway as one bare ASGI app: who calls, what they want, and every error's answer."""

import asyncio
import logging
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sublet.core.errors import Unauthorized, Unavailable
from sublet.gateway import openai
from sublet.gateway.exchange import Exchange, HungUp, Message, Receive, Send
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.flow import Service, Serving
from sublet.gateway.request import Api, parse
from sublet.tenants.tenant import Caller

log: Final = logging.getLogger(__name__)

_GENERATE: Final[Mapping[str, Api]] = MappingProxyType(
    {"/v1/chat/completions": Api.CHAT, "/v1/completions": Api.COMPLETION}
)
_MODELS: Final = "/v1/models"
_HEALTH: Final = "/healthz"
_LONGEST_KEY: Final = 512
_REFUSAL_SECONDS: Final = 5.0


class Gateway:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stop(self) -> None:
        """Take nothing new; what runs goes on."""
        if not self._stopping.done():
            self._stopping.set_result(None)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        try:
            failure = await self._answer(exchange)
            if failure is not None:
                async with asyncio.timeout(_REFUSAL_SECONDS):
                    await exchange.refuse(failure)
        except (HungUp, TimeoutError):
            return  # nobody listens, or reads: the server closes the connection

    async def _answer(self, exchange: Exchange) -> Failure | None:
        """Serve `exchange`, or return what to refuse it with."""
        try:
            await self._route(exchange)
        except Failure as failure:
            return failure
        except Unauthorized as error:
            return Failure(
                Kind.UNAUTHORIZED, str(error), headers=[(b"www-authenticate", b"Bearer")]
            )
        except Unavailable:
            return Failure(Kind.UNAVAILABLE, "the gateway's database does not answer; retry")
        except HungUp:
            raise
        except Exception as error:  # noqa: BLE001 - the last line: everybody gets an answer
            log.error(  # noqa: TRY400 - the message of a stranger's error may hold a prompt
                "gateway.failed",
                extra={
                    "request": exchange.request_id,
                    "error": type(error).__name__,
                    "where": _where(error),
                },
            )
            return Failure(
                Kind.INTERNAL,
                f"the gateway failed on request {exchange.request_id}; its log says why",
            )
        return None

    async def _route(self, exchange: Exchange) -> None:
        path, method = exchange.path, exchange.method
        allowed = _methods(path)
        if not allowed:
            raise Failure(Kind.NO_SUCH_PATH, f"Unknown request URL: {method} {path[:200]}")
        if method == "OPTIONS":
            await exchange.respond(204, b"", headers=[(b"allow", allowed)])
        elif method.encode() not in allowed.split(b", "):
            raise Failure(
                Kind.NO_SUCH_METHOD,
                f"{path} takes {allowed.decode()}, not {method}",
                headers=[(b"allow", allowed)],
            )
        elif path == _HEALTH:
            await self._health(exchange)
        elif (api := _GENERATE.get(path)) is not None:
            await self._generate(exchange, api)
        else:
            await self._identify(exchange)
            if path == _MODELS:
                body = openai.models(self._service.table)
            else:
                body = openai.model(self._service.table.find(path.removeprefix(_MODELS + "/")))
            await exchange.respond(200, body)

    async def _health(self, exchange: Exchange) -> None:
        if self._stopping.done():
            await exchange.respond(503, b'{"status":"stopping"}')
        else:
            await exchange.respond(200, b'{"status":"ok"}')

    async def _generate(self, exchange: Exchange, api: Api) -> None:
        if self._stopping.done():
            raise Failure(
                Kind.STOPPING,
                "this gateway is stopping; retry",
                headers=[(b"connection", b"close")],
            )
        caller = await self._identify(exchange)
        if caller.tenant is None:
            raise Failure(
                Kind.FORBIDDEN,
                "an operator's key spends nothing: use a key of the tenant that shall pay",
            )
        loop, limiter = asyncio.get_running_loop(), self._service.limiter
        exchange.limits = lambda: limiter.headers(caller.key_id, now=loop.time())
        limiter.enter(caller.key_id, now=loop.time())
        ask = parse(api, await exchange.read_body(self._stopping))
        await Serving(self._service, exchange, ask, caller, caller.tenant).run()

    async def _identify(self, exchange: Exchange) -> Caller:
        """Return who calls.

        Raises:
            Unauthorized: no key, or not one of ours.
        """
        authorization = exchange.header(b"authorization")
        if authorization is not None:
            scheme, _, key = authorization.partition(" ")
            key = key.strip() if scheme.lower() == "bearer" else ""
        else:
            key = exchange.header(b"x-api-key") or exchange.header(b"api-key") or ""
        if not key:
            raise Unauthorized("no API key: send one in the header 'Authorization: Bearer <key>'")
        if len(key) > _LONGEST_KEY:
            raise Unauthorized("this is no API key of ours: it is too long")
        return await self._service.directory.find_caller(key)


def _methods(path: str) -> bytes:
    """Return what may be done with a path; nothing when there is no such path."""
    if path in _GENERATE:
        return b"POST, OPTIONS"
    if path in (_HEALTH, _MODELS) or (path.startswith(_MODELS + "/") and path != _MODELS + "/"):
        return b"GET, HEAD, OPTIONS"
    return b""


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
