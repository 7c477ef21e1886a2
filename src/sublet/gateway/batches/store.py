"""Batches and their lines in Postgres. Sync."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Json

from sublet.core.db import Tx, load_queries, one
from sublet.core.ids import derived_id

QUERIES: Final = load_queries("sublet.gateway.batches")

_ALIVE: Final = timedelta(seconds=15)  # gateways say every second that they live
_STATES: Final = ("answered", "refused", "expired", "cancelled")


class Dialect(StrEnum):
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class State(StrEnum):
    VALIDATING = "validating"  # its file is read, or waits to be
    FAILED = "failed"  # its file cannot be worked on; nothing was
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"  # no line runs any more; results are written
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many lines of a batch are in which state."""

    total: int = 0
    answered: int = 0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    id: UUID
    tenant_id: UUID
    api_key_id: UUID
    dialect: Dialect
    endpoint: str
    input_file: UUID
    output_file: UUID | None
    error_file: UUID | None
    state: State
    metadata: dict[str, str] | None
    errors: list[dict[str, Any]]
    output_seconds: int
    counts: Counts
    created_at: datetime
    begun_at: datetime | None
    cancel_asked_at: datetime | None
    finalizing_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime

    @property
    def source(self) -> str:
        return source_of(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One that this gateway works on."""

    batch_id: UUID
    number: int
    model: str
    start: int
    bytes: int
    troubles: int

    @property
    def id(self) -> UUID:
        """Of its request and of what it uses: whoever answers it, and however often."""
        return derived_id("batch", self.batch_id, self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """What a worker needs to know of a line's batch."""

    id: UUID
    tenant_id: UUID
    api_key_id: UUID
    dialect: Dialect
    endpoint: str
    input_file: UUID
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class New:
    id: UUID
    tenant_id: UUID
    api_key_id: UUID
    dialect: Dialect
    endpoint: str
    input_file: UUID
    expires_at: datetime
    output_seconds: int
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Me:
    """The run of a gateway that works: its id, and its name."""

    id: UUID
    name: str


@dataclass(slots=True)
class Read:
    """What a batch's file has: its lines, or why it cannot be worked on."""

    lines: list[tuple[int, str, int, int]] = field(default_factory=list)  # as `copy_lines` has them
    errors: list[dict[str, Any]] = field(default_factory=list)


def source_of(batch_id: UUID) -> str:
    """Return what usages of a batch are numbered by: a line's usage has the line's number."""
    return f"batch:{batch_id}"


def bound_to(batch_id: UUID, number: int) -> str:
    """Return what a line's answer is bound to, for the vault."""
    return f"batch/{batch_id}/{number}"


# ── what tenants do ──────────────────────────────────────────────────────────────────────


def add(tx: Tx, new: New, *, now: datetime) -> None:
    tx.execute(
        QUERIES["insert_batch"],
        {
            "id": new.id, "tenant_id": new.tenant_id, "api_key_id": new.api_key_id,
            "dialect": new.dialect, "endpoint": new.endpoint, "input_file": new.input_file,
            "metadata": Json(new.metadata), "output_seconds": new.output_seconds, "now": now,
            "expires_at": new.expires_at,
        },
    )  # fmt: skip


def count_open(tx: Tx, tenant_id: UUID) -> int:
    row = one(tx, QUERIES["count_open"], {"tenant_id": tenant_id})
    assert row is not None
    return int(row["n"])


def find_reader(tx: Tx, file_id: UUID) -> UUID | None:
    """Return a batch that still reads a file."""
    row = one(tx, QUERIES["find_reader"], {"file_id": file_id})
    return None if row is None else row["id"]


def get(tx: Tx, tenant_id: UUID, batch_id: UUID, dialect: Dialect) -> Batch | None:
    row = {"id": batch_id, "tenant_id": tenant_id, "dialect": dialect}
    found = one(tx, QUERIES["get_batch"], row)
    return None if found is None else _batches(tx, [found])[0]


def list_batches(
    tx: Tx,
    tenant_id: UUID,
    dialect: Dialect,
    *,
    limit: int,
    edge: UUID | None = None,
    newer: bool = False,
) -> list[Batch]:
    """Return batches, newest first: older than the one `edge`, or those next newer than it."""
    row = {
        "tenant_id": tenant_id, "dialect": dialect, "limit": limit, "edge": edge, "newer": newer,
    }  # fmt: skip
    found = tx.execute(QUERIES["list_batches"], row).fetchall()
    return _batches(tx, found[::-1] if newer else found)


def ask_cancel(tx: Tx, batch_id: UUID, *, now: datetime) -> bool:
    """Say that no further line shall begin; False: it was said, or it has come to its end."""
    return one(tx, QUERIES["ask_cancel"], {"id": batch_id, "now": now}) is not None


def delete(tx: Tx, batch_id: UUID) -> list[UUID] | None:
    """Delete one that has ended, and return the files that were its own; None: it has not."""
    row = one(tx, QUERIES["delete_batch"], {"id": batch_id})
    return None if row is None else [id_ for id_ in row.values() if id_ is not None]


# ── what workers do ──────────────────────────────────────────────────────────────────────


def claim_batch(tx: Tx, me: Me, *, now: datetime) -> Batch | None:
    """Take up a batch whose file is to be read, or whose results are to be written."""
    row = {"me": me.id, "now": now, "alive": now - _ALIVE}
    found = one(tx, QUERIES["claim_batch"], row)
    return None if found is None else _batches(tx, [found])[0]


def let_go(tx: Tx, me: Me, batch_id: UUID) -> None:
    tx.execute(QUERIES["let_go"], {"id": batch_id, "me": me.id})


def begin(tx: Tx, me: Me, batch_id: UUID, read: Read, *, now: datetime) -> bool:
    """Note all of its lines; False: somebody else took it up meanwhile, and nothing was done."""
    models = sorted({model for _, model, _, _ in read.lines})
    row = {"id": batch_id, "me": me.id, "now": now, "total": len(read.lines), "models": models}
    if one(tx, QUERIES["begin_batch"], row) is None:
        return False
    with tx.cursor().copy(QUERIES["copy_lines"]) as copy:
        for line in read.lines:
            copy.write_row((batch_id, *line))
    return True


def fail(tx: Tx, me: Me, batch_id: UUID, read: Read, *, now: datetime) -> None:
    row = {
        "id": batch_id, "me": me.id, "now": now, "errors": Json(read.errors),
        "total": len(read.lines),
    }  # fmt: skip
    tx.execute(QUERIES["fail_batch"], row)


def adopt(tx: Tx, me: Me, *, now: datetime) -> None:
    """Let lines wait again whose gateway is gone."""
    tx.execute(QUERIES["adopt_lines"], {"me": me.id, "name": me.name, "alive": now - _ALIVE})


def list_models(tx: Tx, *, now: datetime) -> list[str]:
    return [row["model"] for row in tx.execute(QUERIES["list_models"], {"now": now}).fetchall()]


def count_running(tx: Tx) -> dict[str, int]:
    """Return how many lines of each model run, on all gateways."""
    return {row["model"]: row["n"] for row in tx.execute(QUERIES["count_running"]).fetchall()}


def lock_claims(tx: Tx) -> bool:
    """Be the one gateway that shares out, until the transaction ends; False: another one is."""
    row = one(tx, QUERIES["lock_claims"], {})
    return row is not None and bool(row["mine"])


def claim_lines(tx: Tx, me: Me, model: str, *, most: int, now: datetime) -> list[Line]:
    row = {"me": me.id, "model": model, "most": most, "now": now}
    return [Line(**found) for found in tx.execute(QUERIES["claim_lines"], row).fetchall()]


def list_open(tx: Tx, batch_ids: Iterable[UUID]) -> list[Open]:
    rows = tx.execute(QUERIES["list_claimed"], {"ids": list(batch_ids)}).fetchall()
    return [Open(**{**row, "dialect": Dialect(row["dialect"])}) for row in rows]


def end_line(tx: Tx, me: Me, line: Line, *, answer: bytes, report: bytes | None = None) -> bool:
    """Keep how a line ended: with an answer, and then with what that used.

    Returns:
        False: it is somebody else's by now, and stays so.
    """
    row = {
        "batch_id": line.batch_id, "number": line.number, "me": me.id, "answer": answer,
        "report": report, "state": "refused" if report is None else "answered",
    }  # fmt: skip
    return one(tx, QUERIES["end_line"], row) is not None


def put_back(
    tx: Tx, me: Me, line: Line, *, not_before: datetime | None, trouble: bool = False
) -> None:
    row = {
        "batch_id": line.batch_id, "number": line.number, "me": me.id, "not_before": not_before,
        "trouble": int(trouble),
    }  # fmt: skip
    tx.execute(QUERIES["put_back"], row)


def put_all_back(tx: Tx, me: Me) -> None:
    tx.execute(QUERIES["put_all_back"], {"me": me.id})


def finalize(tx: Tx, me: Me, batch: Batch, *, now: datetime) -> bool:
    """Close what waits; False: somebody else took it up meanwhile."""
    if one(tx, QUERIES["finalize"], {"id": batch.id, "me": me.id, "now": now}) is None:
        return False
    state = "expired" if batch.cancel_asked_at is None else "cancelled"
    tx.execute(QUERIES["close_lines"], {"batch_id": batch.id, "state": state})
    return True


def list_uncharged(tx: Tx, batch_id: UUID, *, now: datetime) -> list[dict[str, Any]]:
    """Return answered lines whose use is not on record yet: `number`, `report`, `alive`."""
    row = {"batch_id": batch_id, "source": source_of(batch_id), "alive": now - _ALIVE}
    return tx.execute(QUERIES["list_uncharged"], row).fetchall()


def list_ended(tx: Tx, batch_id: UUID, *, after: int) -> list[dict[str, Any]]:
    """Return a page of its lines, in order: `number`, `start`, `bytes`, `state`, `answer`."""
    return tx.execute(QUERIES["list_ended"], {"batch_id": batch_id, "after": after}).fetchall()


def end(
    tx: Tx,
    me: Me,
    batch_id: UUID,
    *,
    output_file: UUID | None,
    error_file: UUID | None,
    counts: Mapping[str, int],
    now: datetime,
) -> bool:
    """End it, and forget its lines; False: somebody else took it up meanwhile."""
    row = {
        "id": batch_id, "me": me.id, "now": now, "output_file": output_file,
        "error_file": error_file, **{state: counts.get(state, 0) for state in _STATES},
    }  # fmt: skip
    if one(tx, QUERIES["end_batch"], row) is None:
        return False
    tx.execute(QUERIES["insert_end"], row)
    tx.execute(QUERIES["delete_lines"], {"id": batch_id})
    return True


def _batches(tx: Tx, rows: Sequence[Mapping[str, Any]]) -> list[Batch]:
    running = [row["id"] for row in rows if row["state"] in (State.IN_PROGRESS, State.FINALIZING)]
    counted: dict[UUID, dict[str, int]] = {}
    if running:
        for row in tx.execute(QUERIES["count_lines"], {"ids": running}).fetchall():
            counted.setdefault(row["batch_id"], {})[row["state"]] = row["n"]
    return [_batch(row, counted.get(row["id"])) for row in rows]


def _batch(row: Mapping[str, Any], counted: Mapping[str, int] | None) -> Batch:
    ends = row if counted is None else counted
    fields = {name: row[name] for name in Batch.__slots__ if name in row}
    return Batch(
        **{
            **fields,
            "dialect": Dialect(row["dialect"]),
            "state": State(row["state"]),
            "counts": Counts(
                total=row["total"], **{state: ends.get(state, 0) for state in _STATES}
            ),
        }
    )
