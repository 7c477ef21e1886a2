"""Every call to the gateway: who calls, what they want, and every error's answer."""

import asyncio
import logging
import re
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from sublet.core.db import Tx
from sublet.core.errors import NotFound, Refused, Unauthorized, Unavailable
from sublet.gateway import (
    anthropic,
    bedrock,
    converse,
    embeddings,
    foundation,
    invoke,
    openai,
    responses,
    responses_body,
    signature,
    things,
)
from sublet.gateway.ask import Ask, Keep
from sublet.gateway.background import Quiet, begun, ended
from sublet.gateway.bedrock import Operation, Verb
from sublet.gateway.call import Call, HungUp
from sublet.gateway.dialect import Dialect, KeptReply
from sublet.gateway.exchange import Exchange, stopping
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.flow import Serving
from sublet.gateway.grant import Grant
from sublet.gateway.limits import Subject
from sublet.gateway.service import Service
from sublet.gateway.signature import Rejected
from sublet.gateway.signers import Signers
from sublet.gateway.table import Table
from sublet.gateway.things import Thing, Things
from sublet.models import catalogue
from sublet.tenants.tenant import Caller, KeyId, Tenant

log: Final = logging.getLogger(__name__)

# Each also under a prefix of its own, for clients that want one.
_GENERATE: Final[Mapping[str, Dialect]] = MappingProxyType(
    {
        prefix + path: dialect
        for prefix, path, dialect in (
            ("", "/v1/chat/completions", openai.CHAT),
            ("", "/v1/completions", openai.COMPLETION),
            ("", "/v1/responses", responses.RESPONSES),
            ("", "/v1/embeddings", embeddings.EMBEDDINGS),
            ("", "/v1/messages", anthropic.MESSAGES),
            ("/openai", "/v1/chat/completions", openai.CHAT),
            ("/openai", "/v1/completions", openai.COMPLETION),
            ("/openai", "/v1/responses", responses.RESPONSES),
            ("/openai", "/v1/embeddings", embeddings.EMBEDDINGS),
            ("/anthropic", "/v1/messages", anthropic.MESSAGES),
        )
    }
)
# Counting a prompt: how its body is read, and the answer written.
_Counting = tuple[Dialect, Callable[[bytes], Ask], Callable[[int], bytes]]
_MESSAGES: Final[_Counting] = anthropic.MESSAGES, anthropic.parse_prompt, anthropic.counted
_RESPONSES: Final[_Counting] = responses.RESPONSES, responses_body.parse_prompt, responses.counted
_COUNT: Final[Mapping[str, _Counting]] = MappingProxyType(
    {
        "/v1/messages/count_tokens": _MESSAGES,
        "/anthropic/v1/messages/count_tokens": _MESSAGES,
        "/v1/responses/input_tokens": _RESPONSES,
        "/openai/v1/responses/input_tokens": _RESPONSES,
    }
)
# Of an answer of before, by its id; perhaps with a verb behind it.
_BEFORE: Final = re.compile(r"^(?:/openai)?/v1/responses/([^/]+)(/cancel|/input_items)?$")
_MODELS: Final = ("/v1/models", "/openai/v1/models", "/anthropic/v1/models")
_HEALTH: Final = "/healthz"
_METRICS: Final = "/metrics"
_LONGEST_KEY: Final = 512
_ROUTE: Final = re.compile(r"^/model/.*/([^/]*)\Z", re.DOTALL)
_REFUSAL_SECONDS: Final = 5.0
_CANCEL_SECONDS: Final = 5.0  # for a gateway to hear of it, and its engine to stop


class Gateway:
    def __init__(self, service: Service, signers: Signers) -> None:
        self._service = service
        self._signers = signers
        self._stopping = False

    def stop(self) -> None:
        """Take nothing new; what runs goes on."""
        self._stopping = True

    async def answer(self, call: Call) -> None:
        exchange = Exchange(call, _dialect_of(call))
        failure: Failure | None = None
        try:
            failure = await self._answer(exchange)
            if failure is not None:
                self._service.metrics.refused(failure.kind)
                async with asyncio.timeout(_REFUSAL_SECONDS):
                    await exchange.refuse(failure)
        except (HungUp, TimeoutError):
            return  # nobody listens, or reads: the connection is closed
        finally:
            if exchange.trace is not None:
                exchange.trace.end(failure)

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
        elif path in _GENERATE:
            await self._generate(exchange)
        elif path == _METRICS:
            await self._show_metrics(exchange)
        elif path in _COUNT:
            await self._count(exchange, *_COUNT[path][1:])
        elif operation := bedrock.find(path):
            await self._operate(exchange, operation)
        elif foundation.has(path):
            table = await self._look(exchange)
            body = foundation.answer(path, exchange.query, table)
            await exchange.respond(200, body)
        elif before := _BEFORE.match(path):
            await self._look_back(exchange, before[1], before[2])
        elif thing := things.find(path):
            await self._keep(exchange, thing)
        elif method == "DELETE":
            await self._delete_model(exchange, _model_of(path) or "")
        else:
            table = await self._look(exchange)
            words = anthropic if exchange.dialect is anthropic.MESSAGES else openai
            name = _model_of(path)
            body = words.models(table) if not name else words.model(table.find(name))
            await exchange.respond(200, body)

    async def _health(self, exchange: Exchange) -> None:
        if self._stopping:
            await exchange.respond(503, b'{"status":"stopping"}')
        else:
            await exchange.respond(200, b'{"status":"ok"}')

    async def _show_metrics(self, exchange: Exchange) -> None:
        caller = await self._identify(exchange)
        if caller.tenant is not None:
            raise Unauthorized("metrics are the operator's: send an operator's key")
        self._service.show()
        body = self._service.metrics.text()
        await exchange.respond(200, body, kind=b"text/plain; version=0.0.4; charset=utf-8")

    async def _generate(self, exchange: Exchange) -> None:
        if (tracer := self._service.tracer) is not None:
            path = exchange.path
            exchange.trace = tracer.begin(
                method=exchange.method,
                route=path if path in _GENERATE else _ROUTE.sub(r"/model/{modelId}/\1", path),
                request_id=exchange.request_id,
                traceparent=exchange.header(b"traceparent"),
            )
        caller, tenant, subjects = await self._admit(exchange)
        ask = exchange.dialect.parse(await exchange.read_body())
        if ask.keep is not None:
            ask = await self._go_on(ask, ask.keep, tenant)
            if ask.keep is not None and ask.keep.background:
                await self._serve_in_background(exchange, ask, caller, tenant, subjects)
                return
        await Serving(self._service, exchange, ask, caller, tenant, subjects).run()

    async def _go_on(self, ask: Ask, keep: Keep, tenant: Tenant) -> Ask:
        """Return a request with what was said before it, if it goes on from an answer."""
        kept = self._service.kept
        if keep.store:
            kept.check()
        if keep.previous is None:
            return ask
        record, runs = await kept.get(tenant.id, keep.previous)
        if runs:
            raise Failure(
                Kind.INVALID,
                f"response {keep.previous!r} has not ended yet",
                param="previous_response_id",
            )
        return ask.after(record.messages)

    async def _serve_in_background(
        self,
        exchange: Exchange,
        ask: Ask,
        caller: Caller,
        tenant: Tenant,
        subjects: tuple[Subject, ...],
    ) -> None:
        service = self._service
        offer = service.table.seen_by(tenant.id).find(ask.model)  # so much can be said at once
        quiet = Quiet(exchange.dialect, exchange.id, created=exchange.created)
        grant = Grant.nothing(offer.tariff_for(ask))
        reply = exchange.dialect.reply(ask, grant, exchange.id.hex, exchange.created)
        assert isinstance(reply, KeptReply)
        record = begun(ask, reply.begun("in_progress"))
        await service.kept.add(tenant.id, exchange.id, record, running=True)
        serving = Serving(service, quiet, ask, caller, tenant, subjects)
        service.detach(
            service.background.run(
                quiet, tenant.id, record, serving.run,
                lambda body: ended(record, body, serving.turn),
            )
        )  # fmt: skip
        await exchange.respond(200, reply.begun("queued"))

    async def _look_back(self, exchange: Exchange, name: str, verb: str | None) -> None:
        """Serve what is asked of an answer of before."""
        _, tenant = await self._owner(exchange)
        kept, tenant_id = self._service.kept, tenant.id
        responses.check_query(exchange.query)
        if exchange.method == "DELETE":
            await kept.delete(tenant_id, name)
            await exchange.respond(200, responses.deleted(name))
            return
        record, runs = await kept.get(tenant_id, name)
        if verb == "/input_items":
            await exchange.respond(200, responses.input_items(record.items))
            return
        if verb == "/cancel":
            if not record.background:
                raise Failure(
                    Kind.INVALID, "only answers in the background can be cancelled", param=None
                )
            if runs:
                await kept.ask_cancel(tenant_id, name)
                until = asyncio.get_running_loop().time() + _CANCEL_SECONDS
                while runs and asyncio.get_running_loop().time() < until:
                    await asyncio.sleep(0.1)
                    record, runs = await kept.get(tenant_id, name)
        await exchange.respond(200, bytes(record.response))

    async def _keep(self, exchange: Exchange, thing: Thing) -> None:
        """Serve what is asked of files and of what works on them."""
        caller, tenant = await self._owner(exchange)
        service = self._service
        match thing.kind:
            case Things.FILES:
                await service.files.answer(exchange, tenant.id, thing.rest)
            case Things.BATCHES:
                await service.batches.answer(exchange, caller, tenant, thing.rest)
            case Things.TUNINGS:
                await service.tuning.answer(exchange, caller, tenant, thing.rest)
            case Things.MESSAGE_BATCHES:
                await service.batches.answer_messages(exchange, caller, tenant, thing.rest)

    async def _delete_model(self, exchange: Exchange, name: str) -> None:
        """Delete a model of the caller's own for good."""
        _, tenant = await self._owner(exchange)
        files = self._service.files

        def delete(tx: Tx) -> Failure | None:
            try:
                model = catalogue.owned(tx, name, tenant_id=tenant.id)
                catalogue.delete(tx, model, now=files.now())
            except NotFound:
                return Failure(Kind.NO_SUCH_MODEL, f"The model {name[:100]!r} does not exist here")
            except Refused as error:
                return Failure(Kind.FORBIDDEN, str(error))
            return None

        if (failure := await files.transact(delete)) is not None:
            raise failure
        await exchange.respond(200, openai.deleted(name))

    async def _owner(self, exchange: Exchange) -> tuple[Caller, Tenant]:
        """Return who calls about what is a tenant's own."""
        caller = await self._identify(exchange)
        if caller.tenant is None:
            raise Failure(Kind.FORBIDDEN, "this is its tenant's own: use a key of the tenant")
        self._enter(exchange, caller.key_id, caller.tenant)
        return caller, caller.tenant

    async def _operate(self, exchange: Exchange, operation: Operation) -> None:
        """Serve one of Bedrock's, which name the model in the path."""
        model = bedrock.name_of(operation.model, self._service.table.sells)
        match operation.verb:
            case Verb.COUNT_TOKENS:
                await self._count(
                    exchange, partial(invoke.parse_count, model=model), invoke.counted
                )
                return
            case Verb.CONVERSE | Verb.CONVERSE_STREAM:
                exchange.dialect = converse.dialect(model, stream=operation.streams)
            case Verb.INVOKE | Verb.INVOKE_STREAM:
                tier = exchange.header(invoke.TIER)
                exchange.dialect = invoke.dialect(model, stream=operation.streams, tier=tier)
        invoke.check_headers(exchange.headers)
        await self._generate(exchange)

    async def _count(
        self, exchange: Exchange, read: Callable[[bytes], Ask], write: Callable[[int], bytes]
    ) -> None:
        """Say how many tokens a prompt has. It costs nothing but a place in the limit."""
        caller, tenant, subjects = await self._admit(exchange)
        ask = read(await exchange.read_body())
        serving = Serving(self._service, exchange, ask, caller, tenant, subjects)
        tokens = await serving.count()
        await exchange.respond(200, write(tokens))

    async def _admit(self, exchange: Exchange) -> tuple[Caller, Tenant, tuple[Subject, ...]]:
        if self._stopping:
            raise stopping()
        caller = await self._identify(exchange)
        if caller.tenant is None:
            raise Failure(
                Kind.FORBIDDEN,
                "an operator's key spends nothing: use a key of the tenant that shall pay",
            )
        return caller, caller.tenant, self._enter(exchange, caller.key_id, caller.tenant)

    def _enter(self, exchange: Exchange, key_id: KeyId, tenant: Tenant) -> tuple[Subject, ...]:
        """Count the call against the limits of key and tenant, and return whose they are.

        Raises:
            Failure: there were too many in the last minute.
        """
        loop, service = asyncio.get_running_loop(), self._service
        limiter = service.limiter
        subjects = limiter.find(key_id, tenant.id)
        exchange.limits = lambda: exchange.dialect.limits(
            limiter.standing(subjects, now=loop.time()), service.directory.now()
        )
        limiter.enter(subjects, now=loop.time())
        return subjects

    async def _look(self, exchange: Exchange) -> Table:
        """Let a caller read: it costs a place in the limit, and the operator may, too.

        Returns:
            what it may see.
        """
        caller = await self._identify(exchange)
        if caller.tenant is None:
            return self._service.table
        self._enter(exchange, caller.key_id, caller.tenant)
        return self._service.table.seen_by(caller.tenant.id)

    async def _identify(self, exchange: Exchange) -> Caller:
        """Return who calls.

        Raises:
            Unauthorized: no key, or not one of ours.
            Failure: it is signed, and not as it should be.
        """
        authorization = exchange.header(b"authorization")
        if authorization is not None and authorization.startswith(signature.ALGORITHM):
            return await self._signers.identify(exchange)
        if authorization is not None:
            scheme, _, key = authorization.partition(" ")
            key = key.strip() if scheme.lower() == "bearer" else ""
        else:
            key = exchange.header(b"x-api-key") or exchange.header(b"api-key") or ""
        if not key:
            raise Rejected(
                "MissingAuthenticationTokenException",
                "no API key: send one in the header 'Authorization: Bearer <key>'",
            )
        if len(key) > _LONGEST_KEY:
            raise Unauthorized("this is no API key of ours: it is too long")
        return await self._service.directory.find_caller(key)


def _dialect_of(call: Call) -> Dialect:
    """Return whose words a path is asked in; of one that both have, the headers say it."""
    path = call.path
    if (dialect := _GENERATE.get(path)) is not None:
        return dialect
    if path in _COUNT:
        return _COUNT[path][0]
    if bedrock.find(path) is not None or foundation.has(path):
        return bedrock.RUNTIME
    if path.startswith(("/anthropic/", "/v1/messages/")):
        return anthropic.MESSAGES
    if path.startswith("/openai/"):
        return openai.CHAT
    return openai.CHAT if call.header(b"anthropic-version") is None else anthropic.MESSAGES


def _model_of(path: str) -> str | None:
    """Return the model that a path names, "" for the list of them, None if it is no such path."""
    for list_path in _MODELS:
        if path == list_path:
            return ""
        if path.startswith(list_path + "/") and len(path) > len(list_path) + 1:
            return path[len(list_path) + 1 :]
    return None


def _methods(path: str) -> bytes:
    """Return what may be done with a path; nothing when there is no such path."""
    if path in _GENERATE or path in _COUNT or bedrock.find(path) is not None:
        return b"POST, OPTIONS"
    if before := _BEFORE.match(path):
        return {None: b"GET, DELETE, OPTIONS", "/cancel": b"POST, OPTIONS"}.get(
            before[2], b"GET, OPTIONS"
        )
    if thing := things.find(path):
        return thing.methods
    if _model_of(path):
        return b"GET, HEAD, DELETE, OPTIONS"
    if path in (_HEALTH, _METRICS) or foundation.has(path) or _model_of(path) is not None:
        return b"GET, HEAD, OPTIONS"
    return b""


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
