"""Files that tenants keep at the gateway: each an artefact of one file, sealed with its own key.

    begin ──► write, a part at a time ──► finish ──► read ──► delete
                  └── given up: swept after an hour

The bytes lie in the chest, which gateways and control plane share; the rest is in Postgres. Until
`finish` nobody sees it, and after `delete` nobody can read it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Database, Tx, load_queries, one
from sublet.core.errors import Conflict, NotFound, Refused
from sublet.core.ids import new_id
from sublet.models import artefacts, catalogue
from sublet.models.artefact import File, Kind, Origin, State
from sublet.models.catalogue import Shelf
from sublet.models.chest import PART_BYTES, Chest, Place, SealedFile

QUERIES: Final = load_queries("sublet.models", "stored.sql")

_PATH: Final = "content"  # of the only file of its artefact
_STALLED: Final = timedelta(hours=1)  # far longer than anybody needs between two parts


class Purpose(StrEnum):
    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"
    FINE_TUNE = "fine-tune"
    FINE_TUNE_RESULTS = "fine-tune-results"
    USER_DATA = "user_data"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    id: UUID
    tenant_id: UUID
    purpose: Purpose
    name: str
    size: int  # in bytes
    created_at: datetime
    expires_at: datetime | None


class Writer:
    """Takes the bytes of one file as they come; a part is sealed when there is enough for it."""

    def __init__(self, chest: Chest, file_id: UUID, key: bytes) -> None:
        self.file_id = file_id
        self.size = 0
        self._chest = chest
        self._key = key
        self._digest = hashlib.sha256()
        self._buffer = bytearray()
        self._parts = 0

    def write(self, data: bytes) -> None:
        """Raises Unavailable: the disk does not take it."""
        self.size += len(data)
        self._digest.update(data)
        self._buffer += data
        while len(self._buffer) >= PART_BYTES:
            self._put(bytes(self._buffer[:PART_BYTES]))
            del self._buffer[:PART_BYTES]

    def close(self) -> bytes:
        """Write what is left, and return the digest of the whole."""
        if self._buffer:
            self._put(bytes(self._buffer))
            self._buffer.clear()
        return self._digest.digest()

    def _put(self, plain: bytes) -> None:
        place = Place(artefact=self.file_id, file=0, part=self._parts)
        self._chest.put(place, plain, key=self._key)
        self._parts += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class New:
    """What is said of a file that came."""

    purpose: Purpose
    name: str
    expires_at: datetime | None = None
    listed: bool = True  # is it one of those that its tenant sees?


def begin(tx: Tx, tenant_id: UUID, *, size: int, shelf: Shelf, now: datetime) -> Writer:
    """Begin to take in a file that may have `size` bytes.

    Raises:
        Refused: the tenant would keep too much.
        Misconfigured: there is no key to seal with.
    """
    file_id = new_id()
    catalogue.check_room(tx, tenant_id, size, shelf=shelf)
    artefacts.add(
        tx, file_id, tenant_id=tenant_id, kind=Kind.FILE, origin=Origin.UPLOAD, source={},
        secret=None, files=[], vault=shelf.vault, now=now,
    )  # fmt: skip
    tx.execute(QUERIES["insert_stored"], {"id": file_id, "tenant_id": tenant_id, "now": now})
    key = artefacts.open_key(artefacts.get(tx, file_id), shelf.vault)
    return Writer(shelf.chest, file_id, key)


def finish(
    tx: Tx, writer: Writer, new: New, *, shelf: Shelf, now: datetime, limited: bool = True
) -> StoredFile:
    """Note that all of a file is here: from then on it is one of its tenant's.

    Args:
        tx: any transaction.
        writer: took all of it.
        new: what is said of it.
        shelf: where it is.
        now: the present instant.
        limited: is it held to what the tenant may keep?

    Raises:
        Conflict: it was swept meanwhile.
        Refused: the tenant would keep too much.
    """
    digest = writer.close()
    artefact = artefacts.get(tx, writer.file_id, lock=True)
    row = {
        "id": writer.file_id, "size": writer.size, "purpose": new.purpose, "name": new.name,
        "expires_at": new.expires_at, "listed": new.listed,
    }  # fmt: skip
    if artefact.state is not State.RECEIVING or one(tx, QUERIES["finish_stored"], row) is None:
        raise Conflict("the upload took too long, and was given up: send it again")
    if limited:
        catalogue.check_room(tx, artefact.tenant_id, writer.size, shelf=shelf)
    artefacts.add_files(
        tx, writer.file_id, [File(number=0, path=_PATH, size=writer.size, sha256=digest)]
    )
    for state in (State.CHECKING, State.READY):
        artefacts.move(tx, artefacts.get(tx, writer.file_id), state, now=now)
    return get(tx, artefact.tenant_id, writer.file_id, now=now)


def get(tx: Tx, tenant_id: UUID, file_id: UUID, *, now: datetime) -> StoredFile:
    """Raises NotFound: the tenant has none of this id."""
    row = one(tx, QUERIES["get_stored"], {"id": file_id, "tenant_id": tenant_id, "now": now})
    if row is None:
        raise NotFound("there is no such file")
    return _file(row)


def list_files(
    tx: Tx,
    tenant_id: UUID,
    *,
    now: datetime,
    limit: int,
    after: UUID | None = None,
    purpose: str | None = None,
    newest_first: bool = True,
) -> list[StoredFile]:
    """Return a tenant's files in the order of their making, from behind the one `after`."""
    row = {
        "tenant_id": tenant_id, "now": now, "limit": limit, "after": after, "purpose": purpose,
        "newest_first": newest_first,
    }  # fmt: skip
    return [_file(found) for found in tx.execute(QUERIES["list_stored"], row).fetchall()]


def open_file(tx: Tx, file: StoredFile, *, shelf: Shelf) -> SealedFile:
    """Return the content of a file, to be read when the transaction is over.

    Raises:
        NotFound: it was deleted meanwhile.
        Misconfigured: the vault's key is not the one that sealed it.
    """
    artefact = artefacts.get(tx, file.id)
    try:
        key = artefacts.open_key(artefact, shelf.vault)
    except Refused:
        raise NotFound("the file was deleted") from None
    return shelf.chest.open(file.id, 0, file.size, key=key)


def delete(tx: Tx, file_id: UUID, *, now: datetime) -> None:
    """Delete it for good: its key is destroyed here, its parts are removed later."""
    if one(tx, QUERIES["mark_deleted"], {"id": file_id, "now": now}) is not None:
        artefacts.move(tx, artefacts.get(tx, file_id, lock=True), State.DELETED, now=now)


def keep_until(tx: Tx, file_id: UUID, until: datetime) -> None:
    """Let a file live at least so long: something works on it."""
    tx.execute(QUERIES["keep_until"], {"id": file_id, "until": until})


def sweep(db: Database, *, now: datetime) -> int:
    """Delete what is over its time or was given up; return how many that were."""
    with db.transaction() as tx:
        over = tx.execute(QUERIES["list_over"], {"now": now, "stalled": now - _STALLED}).fetchall()
        for row in over:
            delete(tx, row["id"], now=now)
    return len(over)


def lines(file: SealedFile, *, most: int) -> Iterator[tuple[int, bytes]]:
    """Return (where it starts, the line without its end) of a text, one after the other.

    A line is never held that is longer than `most` bytes: its first `most` + 1 are returned, and
    the rest of the file is not.
    """
    start, rest = 0, b""
    for part in file.parts():
        rest += part
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield start, line.removesuffix(b"\r")
            start += len(line) + 1
        if len(rest) > most:
            yield start, rest[: most + 1]
            return
    if rest:
        yield start, rest.removesuffix(b"\r")


def _file(row: Mapping[str, Any]) -> StoredFile:
    return StoredFile(**{**row, "purpose": Purpose(row["purpose"])})
