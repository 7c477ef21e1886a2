"""Answers that are kept at their callers' wish: sealed at rest, for thirty days, deleted at a word.

Nothing is kept unless `store: true` asks for it. Then the answer and what was asked go to
Postgres, sealed (`core/vault.py`): bound to the answer's id and its tenant, so a copy of the
database says nothing, and no row can be put in another's place. Only the tenant's keys fetch it.

    background: running ──► ended (completed, incomplete, failed or cancelled: the answer says it)

One that a gateway worked on in the background, and that gateway is gone, has failed.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

import msgspec
from msgspec import Raw, Struct

from sublet.core.db import Tx, one
from sublet.core.errors import Misconfigured
from sublet.core.vault import Vault
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.instance import QUERIES

T = TypeVar("T")

KEPT_FOR: Final = timedelta(days=30)
MOST: Final = 10_000  # of one tenant: the newest


class Desk(Protocol):
    """What the store asks of the gateway's database (`directory.py`)."""

    @property
    def instance_id(self) -> UUID: ...

    def now(self) -> Any: ...

    async def transact(self, work: Callable[[Tx], T]) -> T: ...


class Record(Struct, frozen=True, kw_only=True):
    """What is sealed."""

    response: Raw  # the answer, as it is fetched
    messages: list[dict[str, Any]]  # all that was said, in the form that replicas read
    items: list[dict[str, Any]]  # what was asked, in the words of Responses
    background: bool = False


_RECORD: Final = msgspec.json.Decoder(Record)


class Kept:
    def __init__(self, desk: Desk, vault: Vault | None) -> None:
        self._desk = desk
        self._vault = vault

    def check(self) -> Vault:
        """Return what seals.

        Raises:
            Failure: this gateway has no key, so it keeps nothing.
        """
        if self._vault is None:
            raise Failure(
                Kind.UNSUPPORTED,
                "Unsupported value of 'store': this gateway was started without the key that"
                " answers are sealed with",
                param="store",
            )
        return self._vault

    async def add(
        self, tenant_id: UUID, id_: UUID, record: Record, *, running: bool = False
    ) -> None:
        """Keep an answer.

        Raises:
            Unavailable: the database is away.
        """
        now = self._desk.now()
        row = {
            "id": id_, "tenant_id": tenant_id, "now": now, "expires_at": now + KEPT_FOR,
            "sealed": self._seal(tenant_id, id_, record),
            "status": "running" if running else "ended",
            "instance": self._desk.instance_id if running else None,
        }  # fmt: skip
        await self._desk.transact(lambda tx: tx.execute(QUERIES["insert_response"], row) and None)

    async def end(self, tenant_id: UUID, id_: UUID, record: Record) -> None:
        """Put the end of an answer in the place of its beginning."""
        row = {
            "id": id_, "tenant_id": tenant_id, "sealed": self._seal(tenant_id, id_, record),
        }  # fmt: skip
        await self._desk.transact(lambda tx: tx.execute(QUERIES["end_response"], row) and None)

    async def get(self, tenant_id: UUID, name: str) -> tuple[Record, bool]:
        """Return an answer, and whether some gateway still works on it.

        Raises:
            Failure: there is none, or none of this tenant's.
            Unavailable: the database is away.
        """
        id_ = _id_of(name)
        row = {"id": id_, "tenant_id": tenant_id, "now": self._desk.now()}
        found = await self._desk.transact(lambda tx: one(tx, QUERIES["get_response"], row))
        if found is None:
            raise not_kept(name)
        sealed = bytes(found["sealed"])
        try:
            text = self.check().open(sealed, bound_to=_bound(tenant_id, id_))
        except Misconfigured as error:
            raise Failure(Kind.INTERNAL, "this gateway cannot open what was kept") from error
        record = _RECORD.decode(text)
        if found["status"] == "running" and not found["alive"]:
            return record_failed(record), False
        return record, found["status"] == "running"

    async def delete(self, tenant_id: UUID, name: str) -> None:
        """Raises Failure: there is no such answer."""
        row = {"id": _id_of(name), "tenant_id": tenant_id}
        if await self._desk.transact(lambda tx: one(tx, QUERIES["delete_response"], row)) is None:
            raise not_kept(name)

    async def ask_cancel(self, tenant_id: UUID, name: str) -> None:
        row = {"id": _id_of(name), "tenant_id": tenant_id}
        await self._desk.transact(lambda tx: tx.execute(QUERIES["cancel_response"], row) and None)

    async def still_wanted(self, ids: Sequence[UUID]) -> set[UUID]:
        """Return which of these were neither cancelled nor deleted."""
        rows = await self._desk.transact(
            lambda tx: tx.execute(QUERIES["list_running_responses"], {"ids": list(ids)}).fetchall()
        )
        return {row["id"] for row in rows}

    async def forget(self) -> None:
        """Delete what is over its time."""
        row = {"now": self._desk.now(), "most": MOST}
        await self._desk.transact(lambda tx: tx.execute(QUERIES["forget_responses"], row) and None)

    def _seal(self, tenant_id: UUID, id_: UUID, record: Record) -> bytes:
        text = msgspec.json.encode(record).decode()
        return self.check().seal(text, bound_to=_bound(tenant_id, id_))


def record_failed(record: Record, *, code: str = "server_error", message: str = "") -> Record:
    """Return a record whose answer failed."""
    told = message or "the gateway that worked on this answer is gone; ask again"
    error = {"code": code, "message": told}
    return with_response(record, {"status": "failed", "error": error})


def with_response(record: Record, changes: Mapping[str, object]) -> Record:
    response = msgspec.json.decode(record.response) | dict(changes)
    return msgspec.structs.replace(record, response=Raw(msgspec.json.encode(response)))


def not_kept(name: str) -> Failure:
    return Failure(
        Kind.NO_SUCH_RESPONSE,
        f"there is no response {name[:100]!r}: only answers asked for with `store: true` are kept,"
        f" for {KEPT_FOR.days} days",
    )


def _id_of(name: str) -> UUID:
    """Raises Failure: it is no id of ours."""
    prefix, _, digits = name.partition("_")
    try:
        if prefix == "resp" and len(digits) == 32:
            return UUID(hex=digits)
    except ValueError:
        pass
    raise not_kept(name)


def _bound(tenant_id: UUID, id_: UUID) -> str:
    return f"response {id_} of tenant {tenant_id}"
