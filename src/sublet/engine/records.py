"""One workload's folder: what is written there, and read back after a crash."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

from sublet.engine.port import InternalJob, Notice, Observation, Workload
from sublet.engine.shim import overwrite_durably, sync_folder, write_durably

# Always as long, so that one can be written over another.
_DEADLINE_BYTES = 128


class Kind(StrEnum):
    LEASE = "lease"  # asked for by us
    INTERNAL = "internal"  # asked for by the organisation's own, and first


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """An instant to come: by our clock, and in seconds since this machine started."""

    instant: datetime
    steady_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What was asked for, and which slots it was given. `workload.files` is empty here."""

    workload: Workload
    kind: Kind
    confined: bool  # in the sandbox, not merely wished there
    name: str  # an internal job's; "" for a lease
    submitted_at: datetime
    sequence: int  # first come, first served among equal instants
    slots: tuple[int, ...] = ()  # indices among the slots of this GPU model; () while it waits
    slots_at: datetime | None = None  # it holds them from here on
    cancelled_at: datetime | None = None
    archived_at: datetime | None = None

    def forget_secrets(self) -> "Record":
        return replace(self, workload=replace(self.workload, environment={}, tunnel_url=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the shim, or for want of one the engine, says of the process."""

    started_at: datetime | None = None
    exited_at: datetime | None = None
    exit_code: int | None = None
    detail: str | None = None
    lost: bool = False


def create(folder: Path, record: Record, files: Mapping[str, bytes], deadline: Due | None) -> None:
    """Make the workload's folder, whole or not at all.

    Raises:
        OSError: the disk is full or gone.
    """
    draft = folder.with_name(f".new-{folder.name}")
    draft.mkdir(mode=0o700)
    place = draft / ("files" if record.confined else "work")
    for path in (place, draft / "box"):
        path.mkdir()
        path.chmod(0o755)
    for name, content in files.items():
        _place(place, name, content)
    if deadline is not None:
        write_deadline(draft, deadline)
    write(draft, record)
    draft.rename(folder)
    sync_folder(folder.parent)


def _place(root: Path, name: str, content: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # A script can be run: a file has no mode of its own on the way here.
    write_durably(path, content, mode=0o755 if content.startswith(b"#!") else 0o644)


def write(folder: Path, record: Record) -> None:
    row = asdict(record)
    row["workload"].pop("files")
    write_durably(folder / "spec.json", json.dumps(row, default=_plain).encode())


def read(folder: Path) -> Record:
    """Read what `write` wrote.

    Raises:
        FileNotFoundError: there is no such workload.
    """
    row = json.loads((folder / "spec.json").read_bytes())
    workload = row["workload"]
    return Record(
        workload=Workload(
            **{
                **workload,
                "id": UUID(workload["id"]),
                "window": None if workload.get("window") is None else UUID(workload["window"]),
            }
        ),
        kind=Kind(row["kind"]),
        confined=row["confined"],
        name=row["name"],
        submitted_at=datetime.fromisoformat(row["submitted_at"]),
        sequence=row["sequence"],
        slots=tuple(row["slots"]),
        slots_at=_instant(row["slots_at"]),
        cancelled_at=_instant(row["cancelled_at"]),
        archived_at=_instant(row["archived_at"]),
    )


def list_ended(root: Path) -> list[tuple[UUID, datetime]]:
    """Return what was archived below `root`, and when."""
    return [
        (id_, datetime.fromtimestamp(entry.stat().st_mtime, UTC))
        for entry in os.scandir(root / "ended")
        if (id_ := id_of(entry.name)) is not None
    ]


def remove_ended(root: Path, id_: UUID) -> None:
    """Remove an archived workload's folder; dying half way leaves nothing that is read."""
    doomed = (root / "ended" / str(id_)).rename(root / f".new-{id_}")
    shutil.rmtree(doomed)


def id_of(name: str) -> UUID | None:
    """Return the workload whose folder has this name, or None."""
    try:
        return UUID(name)
    except ValueError:
        return None


def internal_job(record: Record, seen: Observation) -> InternalJob:
    """Return a job of the queue as the port shows it."""
    return InternalJob(
        id=record.workload.id,
        name=record.name,
        gpu_model=record.workload.gpu_model,
        gpus=record.workload.gpus,
        submitted_at=record.submitted_at,
        started_at=record.slots_at,  # it holds GPUs from there on, whatever its process does
        exited_at=seen.exited_at,
        exit_code=seen.exit_code,
        cancelled=record.cancelled_at is not None,
    )


def write_status(folder: Path, status: Status) -> None:
    write_durably(folder / "status.json", json.dumps(asdict(status), default=_plain).encode())


def read_status(folder: Path) -> Status:
    """Read status.json, which is there from the moment when the process is up."""
    try:
        row = json.loads((folder / "status.json").read_bytes())
    except FileNotFoundError:
        return Status()
    return Status(
        started_at=_instant(row["started_at"]),
        exited_at=_instant(row["exited_at"]),
        exit_code=row["exit_code"],
        detail=row["detail"],
        lost=row.get("lost", False),
    )


def write_deadline(folder: Path, deadline: Due) -> None:
    row = {"instant": deadline.instant, "steady_seconds": deadline.steady_seconds}
    text = json.dumps(row, default=_plain).encode().ljust(_DEADLINE_BYTES)
    try:
        write_durably(folder / "deadline", text)
    except OSError:
        if not (folder / "deadline").exists():
            raise
        # On a full disk: what is paid for must run on, and what must go must go.
        overwrite_durably(folder / "deadline", text)


def write_notice(folder: Path, notice: Notice, *, due: Due) -> None:
    """Put the notice where the workload sees it, then tell the shim, which sends SIGTERM.

    `due` is its `stops_at`, as the shim counts.
    """
    row = asdict(notice)
    text = json.dumps(row, default=_plain).encode()
    write_durably(folder / "box" / "notice.json", text, mode=0o644)
    row["stops_at_steady_seconds"] = due.steady_seconds
    write_durably(folder / "stop.json", json.dumps(row, default=_plain).encode())


def read_notice(folder: Path) -> Notice | None:
    try:
        row = json.loads((folder / "stop.json").read_bytes())
    except FileNotFoundError:
        return None
    return Notice(
        reason=row["reason"],
        message=row["message"],
        noticed_at=datetime.fromisoformat(row["noticed_at"]),
        stops_at=datetime.fromisoformat(row["stops_at"]),
    )


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _plain(value: Any) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case UUID():
            return str(value)
        case _:
            raise TypeError(value)
