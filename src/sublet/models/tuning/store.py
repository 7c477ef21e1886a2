"""Fine-tuning jobs in Postgres: their state, checkpoints and events."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Json, Jsonb

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Conflict, NotFound
from sublet.core.ids import new_id
from sublet.models.tuning.job import Checkpoint, Event, Method, State, Trouble, Tuning

QUERIES: Final = load_queries("sublet.models.tuning")


@dataclass(frozen=True, slots=True, kw_only=True)
class New:
    id: UUID
    tenant_id: UUID
    api_key_id: UUID
    base: str
    suffix: str
    training_file: UUID
    validation_file: UUID | None
    method: Method
    metadata: Mapping[str, str]
    price_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What was learnt on top of a model, and whose it is."""

    name: str
    owner_id: UUID
    base: str
    artefact_id: UUID


def add(tx: Tx, new: New, *, now: datetime) -> Tuning:
    row = {
        **{name: getattr(new, name) for name in new.__slots__},
        "method": Json(asdict(new.method)), "metadata": Json(dict(new.metadata)), "now": now,
    }  # fmt: skip
    tx.execute(QUERIES["insert_tuning"], row)
    tell(tx, new.id, f"Created fine-tuning job on {new.base}", now=now)
    return get(tx, new.id)


def get(tx: Tx, tuning_id: UUID, *, tenant_id: UUID | None = None, lock: bool = False) -> Tuning:
    """Raises NotFound: there is none, or it is another tenant's."""
    query = QUERIES["lock_tuning"] if lock else QUERIES["get_tuning"]
    row = one(tx, query, {"id": tuning_id})
    if row is None or tenant_id not in (None, row["tenant_id"]):
        raise NotFound("there is no such fine-tuning job")
    return _tuning(row)


def list_of(
    tx: Tx,
    tenant_id: UUID,
    *,
    limit: int,
    after: UUID | None,
    metadata: Mapping[str, str] | None = None,
) -> list[Tuning]:
    row = {
        "tenant_id": tenant_id, "limit": limit, "after": after,
        "metadata": None if metadata is None else Jsonb(dict(metadata)),
    }  # fmt: skip
    return [_tuning(found) for found in tx.execute(QUERIES["list_tunings"], row).fetchall()]


def list_open(tx: Tx) -> list[Tuning]:
    return [_tuning(row) for row in tx.execute(QUERIES["list_open"]).fetchall()]


def count_open(tx: Tx, tenant_id: UUID) -> int:
    row = one(tx, QUERIES["count_open"], {"tenant_id": tenant_id})
    return 0 if row is None else int(row["n"])


def find_reader(tx: Tx, file_id: UUID) -> UUID | None:
    """Return a job that still reads a file."""
    row = one(tx, QUERIES["find_reader"], {"file_id": file_id})
    return None if row is None else row["id"]


def move(
    tx: Tx,
    tuning: Tuning,
    to: State,
    *,
    now: datetime,
    error: Trouble | None = None,
    model: str | None = None,
    examples: int | None = None,
    steps: int | None = None,
    tokens: int | None = None,
    hold_id: UUID | None = None,
) -> None:
    """Take a job to its next state.

    Raises:
        Refused: it cannot go there.
        Conflict: somebody else moved it first.
    """
    tuning.check_move(to)
    row = {
        "id": tuning.id, "before": tuning.state, "state": to, "now": now, "model": model,
        "error": None if error is None else Json(asdict(error)), "examples": examples,
        "steps": steps, "tokens": tokens, "hold_id": hold_id,
    }  # fmt: skip
    if one(tx, QUERIES["move"], row) is None:
        raise Conflict(f"fine-tuning job {tuning.id} was moved by somebody else")


def set_run(
    tx: Tx,
    tuning_id: UUID,
    lease_id: UUID | None,
    *,
    secret: str | None = None,
    fruitless: int = 0,
    not_before: datetime | None = None,
) -> None:
    """Say who trains from now on; None: nobody does, and nobody shall before an instant."""
    row = {
        "id": tuning_id, "lease_id": lease_id, "secret": secret, "fruitless": fruitless,
        "not_before": not_before,
    }  # fmt: skip
    tx.execute(QUERIES["set_run"], row)


def ask_cancel(tx: Tx, tuning_id: UUID, *, now: datetime) -> bool:
    """Ask for it to end; False when it has ended, or was asked before."""
    return one(tx, QUERIES["ask_cancel"], {"id": tuning_id, "now": now}) is not None


def tell(
    tx: Tx,
    tuning_id: UUID,
    message: str,
    *,
    now: datetime,
    level: str = "info",
    step: int | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Add an event; of a step there is one, and what is said of it again is dropped."""
    row = {
        "id": new_id(), "tuning_id": tuning_id, "step": step, "level": level, "message": message,
        "data": None if data is None else Json(dict(data)), "now": now,
    }  # fmt: skip
    tx.execute(QUERIES["insert_event"], row)


def list_events(tx: Tx, tuning_id: UUID, *, limit: int, after: UUID | None) -> list[Event]:
    """Return what its tenant was told, newest first."""
    row = {"id": tuning_id, "limit": limit, "after": after}
    return [Event(**found) for found in tx.execute(QUERIES["list_events"], row).fetchall()]


def add_checkpoint(tx: Tx, tuning_id: UUID, checkpoint: Checkpoint) -> None:
    row = {
        "id": tuning_id, "step": checkpoint.step, "tokens": checkpoint.tokens,
        "epoch": checkpoint.epoch, "artefact_id": checkpoint.artefact_id,
        "lease_id": checkpoint.lease_id, "metrics": Json(dict(checkpoint.metrics)),
        "now": checkpoint.happened_at,
    }  # fmt: skip
    tx.execute(QUERIES["insert_checkpoint"], row)


def list_checkpoints(tx: Tx, tuning_id: UUID) -> list[Checkpoint]:
    """Return all that there were, the last one first."""
    rows = tx.execute(QUERIES["list_checkpoints"], {"id": tuning_id}).fetchall()
    return [Checkpoint(**row) for row in rows]


def list_adapters(tx: Tx) -> list[Adapter]:
    return [Adapter(**row) for row in tx.execute(QUERIES["list_adapters"]).fetchall()]


def find_adapted(tx: Tx, replica_id: UUID) -> tuple[str, str] | None:
    """Return (its deployment, its secret) of a replica that may be given adapters."""
    row = one(tx, QUERIES["find_adapted"], {"id": replica_id})
    return None if row is None else (row["deployment"], row["secret"])


def set_replica_adapters(tx: Tx, replica_id: UUID, adapters: Sequence[UUID]) -> None:
    row = {"id": replica_id, "adapters": list(adapters)}
    tx.execute(QUERIES["set_replica_adapters"], row)


def _tuning(row: Mapping[str, Any]) -> Tuning:
    return Tuning(
        **{
            **row,
            "method": Method(**row["method"]),
            "state": State(row["state"]),
            "error": None if row["error"] is None else Trouble(**row["error"]),
        }
    )
