"""What tenants ask of batches: to make one, to look at it, to cancel it, and for its results."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Raw, Struct

from sublet.core.db import Tx
from sublet.core.ids import new_id
from sublet.gateway import files as file_words
from sublet.gateway.batches import lines, store
from sublet.gateway.batches.store import Batch, Dialect, New, State
from sublet.gateway.batches.words import (
    ANTHROPIC,
    MESSAGES,
    NAMES,
    OPENAI,
    WORDS,
    anthropic_document,
    openai_document,
)
from sublet.gateway.exchange import Exchange
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.files import Files
from sublet.gateway.pages import Query
from sublet.gateway.reading import decode
from sublet.models import stored
from sublet.models.stored import Purpose, StoredFile, Writer
from sublet.tenants.tenant import Caller, Tenant

_encode: Final = msgspec.json.Encoder().encode
_WINDOW: Final = timedelta(hours=24)
_MARGIN: Final = timedelta(days=2)  # that an input file outlives its batch by
_KEPT_DAYS: Final = 30  # that results are kept
_MOST_OPEN: Final = 100  # of one tenant
_MOST_FILE_BYTES: Final = 200 << 20
_MOST_INLINE_BYTES: Final = 32 << 20  # of a body with requests in it, which is held whole
_ENDPOINTS: Final = tuple(endpoint for endpoint in WORDS if endpoint != MESSAGES)


class _Expiry(Struct, forbid_unknown_fields=True):
    anchor: Literal["created_at"]
    seconds: int


class _Create(Struct, forbid_unknown_fields=True):
    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: (
        Annotated[
            dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
            Meta(max_length=16),
        ]
        | None
    ) = None
    output_expires_after: _Expiry | None = None


class _Request(Struct, forbid_unknown_fields=True):
    custom_id: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    params: Raw


class _Requests(Struct, forbid_unknown_fields=True):
    requests: Annotated[list[_Request], Meta(min_length=1, max_length=lines.MOST)]


class _Params(Struct):
    model: str


_CREATE: Final = msgspec.json.Decoder(_Create)
_REQUESTS: Final = msgspec.json.Decoder(_Requests)
_PARAMS: Final = msgspec.json.Decoder(_Params)


class Batches:
    def __init__(self, files: Files) -> None:
        self._files = files
        files.readers.append(_reader)

    # ── OpenAI's ─────────────────────────────────────────────────────────────────────────

    async def answer(
        self, exchange: Exchange, caller: Caller, tenant: Tenant, rest: Sequence[str]
    ) -> None:
        """Serve one call; `rest` is what is behind `/v1/batches` in its path."""
        match exchange.method, rest:
            case "POST", []:
                batch = await self._create(exchange, caller, tenant)
            case "POST", [name, "cancel"]:
                batch = await self._cancel(tenant.id, name, Dialect.OPENAI)
            case _, []:
                await exchange.respond(200, await self._list(exchange, tenant.id))
                return
            case _, [name]:
                Query.read(exchange.query)
                batch = await self._get(tenant.id, name, Dialect.OPENAI)
            case _:
                raise AssertionError(rest)
        await exchange.respond(200, _encode(openai_document(batch)))

    async def _create(self, exchange: Exchange, caller: Caller, tenant: Tenant) -> Batch:
        asked = decode(_CREATE, await exchange.read_body(), only_empty=frozenset())
        if asked.endpoint not in _ENDPOINTS:
            raise Failure(
                Kind.INVALID,
                f"endpoint must be one of: {', '.join(_ENDPOINTS)}, not {asked.endpoint[:100]!r}",
                param="endpoint",
            )
        file = await self._input(tenant.id, asked.input_file_id)
        kept = timedelta(days=_KEPT_DAYS)
        if (expiry := asked.output_expires_after) is not None:
            kept = file_words.expiry(expiry.seconds, at="output_expires_after.seconds")
        return await self._add(
            caller, tenant, Dialect.OPENAI, asked.endpoint, file, kept=kept, metadata=asked.metadata
        )

    async def _input(self, tenant_id: UUID, name: str) -> StoredFile:
        param = "input_file_id"
        try:
            file = await self._files.get(tenant_id, name)
        except Failure as failure:
            raise Failure(Kind.INVALID, failure.message, param=param) from None
        if file.purpose is not Purpose.BATCH:
            raise Failure(
                Kind.INVALID,
                f"file {name!r} has the purpose {file.purpose!r}: a batch reads those with 'batch'",
                param=param,
            )
        if file.size > _MOST_FILE_BYTES:
            raise Failure(
                Kind.INVALID,
                f"file {name!r} has {file.size} bytes, and a batch reads {_MOST_FILE_BYTES}",
                param=param,
            )
        return file

    async def _list(self, exchange: Exchange, tenant_id: UUID) -> bytes:
        query = Query.read(exchange.query, "after", "limit")
        limit = query.limit(default=20, most=100)
        after = query.given.get("after")
        edge = None
        if after is not None:
            edge = (await self._get(tenant_id, after, Dialect.OPENAI)).id
        found = await self._files.transact(
            lambda tx: store.list_batches(tx, tenant_id, Dialect.OPENAI, limit=limit + 1, edge=edge)
        )
        shown = [openai_document(batch) for batch in found[:limit]]
        return _encode(
            {
                "object": "list",
                "data": shown,
                "first_id": shown[0]["id"] if shown else None,
                "last_id": shown[-1]["id"] if shown else None,
                "has_more": len(found) > limit,
            }
        )

    # ── Anthropic's ──────────────────────────────────────────────────────────────────────

    async def answer_messages(
        self, exchange: Exchange, caller: Caller, tenant: Tenant, rest: Sequence[str]
    ) -> None:
        """Serve one call; `rest` is what is behind `/v1/messages/batches` in its path."""
        match exchange.method, rest:
            case "POST", []:
                batch = await self._create_messages(exchange, caller, tenant)
            case "POST", [name, "cancel"]:
                batch = await self._cancel(tenant.id, name, Dialect.ANTHROPIC)
            case "DELETE", [name]:
                await self._delete(tenant.id, name)
                said = {"id": name, "type": "message_batch_deleted"}
                await exchange.respond(200, _encode(said))
                return
            case _, []:
                await exchange.respond(200, await self._list_messages(exchange, tenant.id))
                return
            case _, [name]:
                Query.read(exchange.query)
                batch = await self._get(tenant.id, name, Dialect.ANTHROPIC)
            case _, [name, "results"]:
                await self._send_results(exchange, tenant.id, name)
                return
            case _:
                raise AssertionError(rest)
        await exchange.respond(200, _encode(self._shown(exchange, batch)))

    def _shown(self, exchange: Exchange, batch: Batch) -> dict[str, object]:
        scheme = "https" if exchange.secure else "http"
        prefix = "/anthropic" if exchange.path.startswith("/anthropic/") else ""
        host = exchange.header(b"host") or ""
        path = f"{prefix}{MESSAGES}/batches/{ANTHROPIC.of(batch.id)}/results"
        return anthropic_document(batch, results_url=f"{scheme}://{host}{path}")

    async def _create_messages(self, exchange: Exchange, caller: Caller, tenant: Tenant) -> Batch:
        body = await exchange.read_body(most=_MOST_INLINE_BYTES)
        asked = decode(_REQUESTS, body, only_empty=frozenset())
        seen: set[str] = set()
        for number, request in enumerate(asked.requests):
            at = f"requests[{number}]"
            if request.custom_id in seen:
                raise Failure(
                    Kind.INVALID, f"{at}.custom_id: {request.custom_id!r} is used twice", param=at
                )
            seen.add(request.custom_id)
            decode(_PARAMS, bytes(request.params), only_empty=frozenset(), at=f"{at}.params")
        writer = await self._files.begin(tenant.id, size=len(body))
        await self._files.aside(_write, writer, asked.requests)
        new = stored.New(
            purpose=Purpose.BATCH, name="requests.jsonl", listed=False,
            expires_at=self._files.now() + timedelta(days=_KEPT_DAYS),
        )  # fmt: skip
        file = await self._files.finish(writer, new)
        kept = timedelta(days=_KEPT_DAYS)
        return await self._add(caller, tenant, Dialect.ANTHROPIC, MESSAGES, file, kept=kept)

    async def _list_messages(self, exchange: Exchange, tenant_id: UUID) -> bytes:
        query = Query.read(exchange.query, "after_id", "before_id", "limit", "beta")
        limit = query.limit(default=20, most=1000)
        after, before = query.given.get("after_id"), query.given.get("before_id")
        if after is not None and before is not None:
            raise Failure(Kind.INVALID, "send after_id or before_id, not both", param="after_id")
        edge = None
        if (name := after or before) is not None:
            edge = (await self._get(tenant_id, name, Dialect.ANTHROPIC)).id
        newer = before is not None
        found = await self._files.transact(
            lambda tx: store.list_batches(
                tx, tenant_id, Dialect.ANTHROPIC, limit=limit + 1, edge=edge, newer=newer
            )
        )
        more = len(found) > limit
        found = found[-limit:] if newer else found[:limit]
        shown = [self._shown(exchange, batch) for batch in found]
        return _encode(
            {
                "data": shown,
                "first_id": shown[0]["id"] if shown else None,
                "last_id": shown[-1]["id"] if shown else None,
                "has_more": more,
            }
        )

    async def _send_results(self, exchange: Exchange, tenant_id: UUID, name: str) -> None:
        batch = await self._get(tenant_id, name, Dialect.ANTHROPIC)
        if batch.state is not State.ENDED or batch.output_file is None:
            raise Failure(Kind.CONFLICT, f"batch {name} has not ended yet", param="id")
        file = await self._files.get(tenant_id, file_words.NAME.of(batch.output_file))
        await self._files.send(exchange, file, kind=b"application/x-jsonl")

    async def _delete(self, tenant_id: UUID, name: str) -> None:
        batch = await self._get(tenant_id, name, Dialect.ANTHROPIC)

        def delete(tx: Tx) -> bool:
            own = store.delete(tx, batch.id)
            for file_id in own or ():
                stored.delete(tx, file_id, now=self._files.now())
            return own is not None

        if not await self._files.transact(delete):
            raise Failure(Kind.CONFLICT, f"batch {name} has not ended yet: cancel it first")

    # ── both ─────────────────────────────────────────────────────────────────────────────

    async def _add(
        self,
        caller: Caller,
        tenant: Tenant,
        dialect: Dialect,
        endpoint: str,
        file: StoredFile,
        *,
        kept: timedelta,
        metadata: dict[str, str] | None = None,
    ) -> Batch:
        batch_id = new_id()

        def add(tx: Tx) -> Batch:
            now = self._files.now()
            if store.count_open(tx, tenant.id) >= _MOST_OPEN:
                raise Failure(
                    Kind.NO_ROOM,
                    f"{_MOST_OPEN} batches of this tenant have not ended yet: wait for one",
                )
            new = New(
                id=batch_id, tenant_id=tenant.id, api_key_id=caller.key_id, dialect=dialect,
                endpoint=endpoint, input_file=file.id, expires_at=now + _WINDOW,
                output_seconds=int(kept.total_seconds()), metadata=metadata,
            )  # fmt: skip
            store.add(tx, new, now=now)
            stored.keep_until(tx, file.id, now + _WINDOW + _MARGIN)
            batch = store.get(tx, tenant.id, batch_id, dialect)
            assert batch is not None
            return batch

        return await self._files.transact(add)

    async def _get(self, tenant_id: UUID, name: str, dialect: Dialect) -> Batch:
        words = NAMES[dialect]
        batch_id = words.id_of(name)
        batch = await self._files.transact(lambda tx: store.get(tx, tenant_id, batch_id, dialect))
        if batch is None:
            raise words.missing(name)
        return batch

    async def _cancel(self, tenant_id: UUID, name: str, dialect: Dialect) -> Batch:
        batch = await self._get(tenant_id, name, dialect)
        asked = await self._files.transact(
            lambda tx: store.ask_cancel(tx, batch.id, now=self._files.now())
        )
        batch = await self._get(tenant_id, name, dialect)
        if not asked and batch.cancel_asked_at is None:
            raise Failure(
                Kind.CONFLICT, f"batch {name} is {batch.state}: it cannot be cancelled", param="id"
            )
        return batch


def _reader(tx: Tx, file_id: UUID) -> str | None:
    batch_id = store.find_reader(tx, file_id)
    return None if batch_id is None else f"batch {OPENAI.of(batch_id)}"


def _write(writer: Writer, requests: Sequence[_Request]) -> None:
    for request in requests:
        line: dict[str, Any] = {
            "custom_id": request.custom_id, "method": "POST", "url": MESSAGES,
            "body": request.params,
        }  # fmt: skip
        writer.write(_encode(line) + b"\n")
