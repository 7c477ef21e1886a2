"""OpenAI's files: what a tenant sends for batches and fine-tuning, and what comes of those.

    POST /v1/files   GET /v1/files   GET /v1/files/{id}   GET …/content   DELETE /v1/files/{id}

A file goes to the chest as it comes and from it as it is read, a part at a time, sealed: no process
ever holds one whole. Only the tenant's keys see it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import Final, ParamSpec, Protocol, TypeVar
from uuid import UUID

import msgspec

from sublet.core.db import Tx
from sublet.core.errors import Conflict, Misconfigured, NotFound, Refused, Unavailable
from sublet.gateway.call import HungUp
from sublet.gateway.exchange import Exchange
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.form import Form
from sublet.gateway.pages import Name, Query
from sublet.models import stored
from sublet.models.catalogue import Shelf
from sublet.models.chest import SealedFile
from sublet.models.stored import New, Purpose, StoredFile, Writer

P = ParamSpec("P")
T = TypeVar("T")

NAME: Final = Name("file-", "File object")
LINES: Final = ".jsonl"  # how the name of a file of lines ends
_encode: Final = msgspec.json.Encoder().encode
_SENT: Final = (Purpose.BATCH, Purpose.FINE_TUNE, Purpose.USER_DATA)
_OF_LINES: Final = frozenset({Purpose.BATCH, Purpose.FINE_TUNE})
_FORM_BYTES: Final = 1 << 20  # of a form beside its file
_LONGEST_NAME: Final = 255
_THREADS: Final = 2
_EXPIRES: Final = (3600, 2_592_000)
_BATCH_DAYS: Final = 30  # that what is sent for a batch is kept, as OpenAI does
_PAGE: Final = 10_000
_FIELDS: Final = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})


class Desk(Protocol):
    """What files ask of the gateway's database (`directory.py`)."""

    def now(self) -> datetime: ...

    async def transact(self, work: Callable[[Tx], T]) -> T: ...


class Files:
    def __init__(self, desk: Desk, shelf: Shelf | None, *, most_bytes: int) -> None:
        """Keep files on `shelf`; None: this gateway was not told where that is."""
        self._desk = desk
        self._shelf = shelf
        self._most_bytes = most_bytes
        # (tx, file) → who still reads it, for people: such a file is not deleted.
        self.readers: list[Callable[[Tx, UUID], str | None]] = []
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="files")

    def stop(self) -> None:
        """End the threads. Sync: after the loop ran."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def now(self) -> datetime:
        return self._desk.now()

    @property
    def there(self) -> bool:
        """Does this gateway reach them?"""
        return self._shelf is not None

    @property
    def shelf(self) -> Shelf:
        """Raises Failure: this gateway does not reach it."""
        if self._shelf is None:
            raise Failure(
                Kind.UNAVAILABLE, "this gateway was started without the folder that files are in"
            )
        return self._shelf

    async def aside(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what takes a disk or much work in a thread.

        Raises:
            Failure: the store does not take it, or give it.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, partial(work, *args, **kwargs))
        except Unavailable as error:
            raise Failure(Kind.UNAVAILABLE, str(error)) from None

    async def transact(self, work: Callable[[Tx], T]) -> T:
        """As the desk's; what the shelf refuses is the client's to know.

        Raises:
            Failure: the tenant keeps too much, or a file was given up.
            Unavailable: the database is away.
        """
        try:
            return await self._desk.transact(work)
        except Refused as error:
            raise Failure(Kind.NO_ROOM, str(error)) from None
        except Conflict as error:
            raise Failure(Kind.TOO_SLOW, str(error)) from None
        except Misconfigured as error:
            raise Failure(Kind.INTERNAL, "this gateway cannot open what is kept") from error

    # ── what is asked over HTTP ──────────────────────────────────────────────────────────

    async def answer(self, exchange: Exchange, tenant_id: UUID, rest: Sequence[str]) -> None:
        """Serve one call; `rest` is what is behind `/v1/files` in its path."""
        match exchange.method, rest:
            case "POST", []:
                file = await self._receive(exchange, tenant_id)
                await exchange.respond(200, _encode(document(file)))
            case "DELETE", [name]:
                file = await self.get(tenant_id, name)
                await self._delete(file)
                said = {"id": NAME.of(file.id), "object": "file", "deleted": True}
                await exchange.respond(200, _encode(said))
            case _, []:
                await exchange.respond(200, _encode(await self._list(exchange, tenant_id)))
            case _, [name]:
                Query.read(exchange.query)
                await exchange.respond(200, _encode(document(await self.get(tenant_id, name))))
            case _, [name, _]:
                Query.read(exchange.query)
                file = await self.get(tenant_id, name)
                is_lines = file.name.endswith(LINES)
                kind = b"application/jsonl" if is_lines else b"application/octet-stream"
                await self.send(exchange, file, kind=kind)
            case _:
                raise AssertionError(rest)

    async def _receive(self, exchange: Exchange, tenant_id: UUID) -> StoredFile:
        most, now = self._most_bytes, self._desk.now()
        form = Form(exchange.header(b"content-type") or "")
        writer: Writer | None = None
        try:
            async for data in exchange.stream_body(most=most + _FORM_BYTES):
                came = form.feed(data)
                if form.begun and writer is None:
                    _check_fields(form)
                    writer = await self.begin(tenant_id, size=min(_length_of(exchange), most))
                if came and writer is not None:
                    if writer.size + len(came) > most:
                        raise Failure(Kind.TOO_LARGE, f"a file may have {most} bytes", param="file")
                    await self.aside(writer.write, came)
            form.end()
            assert writer is not None
            if not writer.size:
                raise Failure(Kind.INVALID, "the file is empty", param="file")
            return await self.finish(writer, _described(form, now))
        except (Failure, HungUp, Unavailable):
            if writer is not None:  # what came of it is of no use; else it is swept later
                with contextlib.suppress(Unavailable):
                    await self.delete(writer.file_id)
            raise

    async def _list(self, exchange: Exchange, tenant_id: UUID) -> dict[str, object]:
        query = Query.read(exchange.query, "after", "limit", "order", "purpose")
        limit = query.limit(default=_PAGE, most=_PAGE)
        newest_first = query.one_of("order", "desc", "asc") == "desc"
        after = query.given.get("after")
        after_id = None if after is None else (await self.get(tenant_id, after)).id
        found = await self._desk.transact(
            lambda tx: stored.list_files(
                tx, tenant_id, now=self._desk.now(), limit=limit + 1, after=after_id,
                purpose=query.given.get("purpose"), newest_first=newest_first,
            )
        )  # fmt: skip
        shown = [document(file) for file in found[:limit]]
        return {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(found) > limit,
        }

    async def send(self, exchange: Exchange, file: StoredFile, *, kind: bytes) -> None:
        """Answer with the content of a file."""
        if exchange.method == "HEAD":
            await exchange.respond(200, b"", kind=kind)
            return
        parts = self.read(await self.open(file))
        first = await anext(parts)  # what cannot be read is told before the head is sent
        await exchange.begin([], kind=kind)
        await exchange.write(first)
        async for part in parts:
            await exchange.write(part)
        await exchange.end(b"")

    async def _delete(self, file: StoredFile) -> None:
        def delete(tx: Tx) -> str | None:
            for find in self.readers:
                if (reader := find(tx, file.id)) is not None:
                    return reader
            stored.delete(tx, file.id, now=self._desk.now())
            return None

        if (reader := await self.transact(delete)) is not None:
            raise Failure(
                Kind.CONFLICT, f"{reader} still reads this file: cancel that first", param="id"
            )

    # ── what batches and fine-tuning ask ─────────────────────────────────────────────────

    async def begin(self, tenant_id: UUID, *, size: int) -> Writer:
        """Begin a file; raises as `transact`."""
        shelf = self.shelf
        return await self.transact(
            lambda tx: stored.begin(tx, tenant_id, size=size, shelf=shelf, now=self._desk.now())
        )

    async def finish(self, writer: Writer, new: New) -> StoredFile:
        """End a file, of which all was written; raises as `transact`."""
        shelf = self.shelf
        await self.aside(writer.close)
        return await self.transact(
            lambda tx: stored.finish(tx, writer, new, shelf=shelf, now=self._desk.now())
        )

    async def delete(self, file_id: UUID) -> None:
        await self.transact(lambda tx: stored.delete(tx, file_id, now=self._desk.now()))

    async def get(self, tenant_id: UUID, name: str) -> StoredFile:
        """Raises Failure: the tenant has no such file."""
        file_id = NAME.id_of(name)
        try:
            return await self._desk.transact(
                lambda tx: stored.get(tx, tenant_id, file_id, now=self._desk.now())
            )
        except NotFound:
            raise NAME.missing(name) from None

    async def open(self, file: StoredFile) -> SealedFile:
        """Raises Failure: it was deleted meanwhile."""
        shelf = self.shelf
        try:
            return await self.transact(lambda tx: stored.open_file(tx, file, shelf=shelf))
        except NotFound:
            raise NAME.missing(NAME.of(file.id)) from None

    async def read(self, file: SealedFile) -> AsyncIterator[bytes]:
        """Yield a file, a part at a time.

        Raises:
            Failure: the store does not give it.
        """
        parts = file.parts()
        while (part := await self.aside(next, parts, b"")) != b"":
            yield part


def document(file: StoredFile) -> dict[str, object]:
    shown: dict[str, object] = {
        "id": NAME.of(file.id),
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at.timestamp()),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }
    if file.expires_at is not None:
        shown["expires_at"] = int(file.expires_at.timestamp())
    return shown


def expiry(seconds: object, *, at: str) -> timedelta:
    """Return after how long a file is to be deleted, as OpenAI bounds it.

    Raises:
        Failure: it is no number, or outside of these bounds.
    """
    least, most = _EXPIRES
    number = int(seconds) if isinstance(seconds, str) and seconds.isdecimal() else seconds
    if not isinstance(number, int) or not least <= number <= most:
        raise Failure(Kind.INVALID, f"{at} must be a number from {least} to {most}", param=at)
    return timedelta(seconds=number)


def _length_of(exchange: Exchange) -> int:
    declared = exchange.header(b"content-length") or "0"
    return int(declared) if declared.isdecimal() and len(declared) < 18 else 0


def _check_fields(form: Form) -> None:
    """Look at what is known before the file, so that no large one is sent in vain.

    Raises:
        Failure: it cannot be taken as it is described.
    """
    for name in form.fields:
        if name not in _FIELDS:
            raise Failure(
                Kind.UNSUPPORTED,
                f"Unknown or unsupported parameter: {name[:100]!r}",
                param=name[:100],
            )
    purpose = form.fields.get("purpose")
    if purpose is not None and purpose not in _SENT:
        raise Failure(
            Kind.INVALID,
            f"purpose must be one of: {', '.join(_SENT)}, not {purpose[:100]!r}",
            param="purpose",
        )
    if purpose in _OF_LINES and not form.name.endswith(LINES):
        raise Failure(
            Kind.INVALID,
            f"a file for {purpose} has a JSON object a line, and a name that ends with {LINES},"
            f" not {form.name[:100]!r}",
            param="file",
        )


def _described(form: Form, now: datetime) -> New:
    _check_fields(form)
    fields = form.fields
    if "purpose" not in fields:
        raise Failure(Kind.INVALID, "the form has no field 'purpose'", param="purpose")
    purpose = Purpose(fields["purpose"])
    expires_at = now + timedelta(days=_BATCH_DAYS) if purpose is Purpose.BATCH else None
    if "expires_after[seconds]" in fields or "expires_after[anchor]" in fields:
        if fields.get("expires_after[anchor]") != "created_at":
            at = "expires_after[anchor]"
            raise Failure(Kind.INVALID, f"{at} must be created_at", param=at)
        at = "expires_after[seconds]"
        expires_at = now + expiry(fields.get(at), at=at)
    return New(purpose=purpose, name=form.name[:_LONGEST_NAME], expires_at=expires_at)
