"""Leases in Postgres."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Conflict, NotFound
from sublet.leases.lease import PROVISIONING_LIMIT, EndReason, Lease, LeaseId, State
from sublet.market.price import Tier
from sublet.planner.firm import Promised

QUERIES: Final = load_queries("sublet.leases")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a lease runs, as its tenant asked for it."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)  # relative path → content
    network: bool = False
    memory_bytes: int | None = None
    processes: int | None = None
    sandboxed: bool = True
    interactive: bool = False
    image: str | None = None


def insert(tx: Tx, admitted: Sequence[tuple[Lease, Spec]], *, now: datetime) -> set[LeaseId]:
    """Add leases that were admitted just now.

    Returns:
        their ids, without those that were taken already: nothing was added of these.
    """
    rows = []
    for lease, spec in admitted:
        assert (lease.state, lease.version) == (State.ADMITTED, 2), lease
        rows.append({
            "id": lease.id, "tenant_id": lease.tenant_id, "pool": lease.pool, "gpus": lease.gpus,
            "tier": lease.tier.value, "notice_seconds": int(lease.notice.total_seconds()),
            "price_id": lease.price_id, "workload": Jsonb(to_json(spec)),
            "max_seconds": int(lease.max_duration.total_seconds()),
            "requested_at": lease.requested_at, "since": lease.since,
            "resumable": lease.resumable, "resumes": lease.resumes,
            "firm_seconds": None if lease.firm is None else int(lease.firm.total_seconds()),
            "credit_percent": lease.credit_percent, "list_price_id": lease.list_price_id,
            "reservation_id": lease.reservation_id, "until": lease.until,
            "exclusive": lease.exclusive,
        })  # fmt: skip
    given = {name: [row[name] for row in rows] for name in rows[0]} | {"now": now}
    return {row["id"] for row in tx.execute(QUERIES["insert_admitted"], given)}


def save(tx: Tx, lease: Lease, *, now: datetime) -> None:
    """Write a lease one move later, and the move to the record.

    Raises:
        Conflict: somebody else moved it first.
    """
    row = {
        "id": lease.id, "state": lease.state, "since": lease.since, "version": lease.version,
        "end_reason": lease.end_reason, "running_at": lease.running_at,
        "stopped_at": lease.stopped_at, "ends_at": lease.ends_at, "stops_at": lease.stops_at,
        "exit_code": lease.exit_code, "detail": lease.detail, "paid_until": lease.paid_until,
        "noticed_at": lease.noticed_at,
    }  # fmt: skip
    if one(tx, QUERIES["save_move"], row) is None:
        raise Conflict(f"lease {lease.id} was moved by somebody else")
    _insert_event(tx, lease, now=now)


def find(tx: Tx, lease_id: LeaseId) -> Lease | None:
    row = one(tx, QUERIES["get_lease"], {"id": lease_id})
    return None if row is None else _lease(row)


def find_all(tx: Tx, ids: Sequence[LeaseId]) -> list[Lease]:
    """Return those of these leases that there are."""
    return [_lease(row) for row in tx.execute(QUERIES["get_leases"], {"ids": list(ids)})]


def save_all(tx: Tx, leases: Sequence[Lease], *, now: datetime) -> set[LeaseId]:
    """Write leases one move later, and the moves to the record, as `save` does one.

    Returns:
        those that were: the others were moved by somebody else first.
    """
    given = {
        "ids": [lease.id for lease in leases],
        "versions": [lease.version for lease in leases],
        "states": [lease.state.value for lease in leases],
        "since": [lease.since for lease in leases],
        "reasons": [None if one.end_reason is None else one.end_reason.value for one in leases],
        "stopped": [lease.stopped_at for lease in leases],
        "stops": [lease.stops_at for lease in leases],
        "noticed": [lease.noticed_at for lease in leases],
        "codes": [lease.exit_code for lease in leases],
        "details": [lease.detail for lease in leases],
        "now": now,
    }
    return {row["id"] for row in tx.execute(QUERIES["save_moves"], given)}


def get(tx: Tx, lease_id: LeaseId) -> Lease:
    """Raises NotFound: there is no such lease."""
    return _lease(_get(tx, lease_id))


def get_spec(tx: Tx, lease_id: LeaseId) -> Spec:
    """Raises NotFound: there is no such lease."""
    return from_json(_get(tx, lease_id)["workload"])


def get_specs(tx: Tx, ids: Sequence[LeaseId]) -> dict[LeaseId, Spec]:
    """Return what those of these leases run that there are."""
    rows = tx.execute(QUERIES["get_leases"], {"ids": list(ids)}).fetchall()
    return {LeaseId(row["id"]): from_json(row["workload"]) for row in rows}


def list_live(tx: Tx) -> list[Lease]:
    """Return every lease that has not ended, oldest first."""
    return [_lease(row) for row in tx.execute(QUERIES["list_live"]).fetchall()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What was written since an earlier look."""

    leases: Sequence[Lease]  # live ones, as they are now
    live: int  # how many there are
    horizon: str  # what the next look goes on from


def list_changed(tx: Tx, *, since: str | None) -> Changes:
    """Return the live leases written since the look whose `horizon` this is; all of them for None.

    One may be among them that has not changed. One that has ended is not.
    """
    rows = tx.execute(QUERIES["list_changed"], {"since": since}).fetchall()
    return Changes(
        leases=[_lease(row) for row in rows if row["id"] is not None],
        live=rows[0]["live"],
        horizon=rows[0]["horizon"],
    )


def list_of(
    tx: Tx, tenant_id: UUID | None, *, limit: int, before: datetime | None, live: bool
) -> list[Lease]:
    """Return a tenant's leases, or everybody's (None), newest first."""
    row = {"tenant_id": tenant_id, "limit": limit, "before": before, "live": live}
    return [_lease(found) for found in tx.execute(QUERIES["list_of_tenant"], row).fetchall()]


def last_fence(tx: Tx) -> datetime | None:
    """Return until when any lease may run on its engine, were nobody there to pay for it on."""
    limit = int(PROVISIONING_LIMIT.total_seconds())
    row = one(tx, QUERIES["last_fence"], {"provisioning_seconds": limit})
    assert row is not None
    fence: datetime | None = row["fence"]
    return fence


def list_reclaimed(tx: Tx, tier: Tier) -> list[Lease]:
    """Return every lease of a tier that gave way to internal jobs."""
    return [_lease(row) for row in tx.execute(QUERIES["list_reclaimed"], {"tier": tier}).fetchall()]


def list_events(tx: Tx, lease_id: LeaseId) -> list[dict[str, Any]]:
    return tx.execute(QUERIES["list_events"], {"id": lease_id}).fetchall()


def list_unsettled(tx: Tx) -> list[Lease]:
    """Return ended leases that still have a block to settle."""
    return [_lease(row) for row in tx.execute(QUERIES["list_unsettled"]).fetchall()]


def ask_release(tx: Tx, lease_id: LeaseId, reason: EndReason) -> bool:
    """Ask for a lease to end; False when it is leaving already."""
    return one(tx, QUERIES["ask_release"], {"id": lease_id, "reason": reason}) is not None


def ask_all(tx: Tx, leases: Sequence[LeaseId], reason: EndReason) -> list[LeaseId]:
    """Ask for leases to end; return those that were not leaving already."""
    given = {"ids": list(leases), "reason": reason}
    return [row["id"] for row in tx.execute(QUERIES["ask_all"], given).fetchall()]


def note_checkpoint(tx: Tx, lease_id: LeaseId, at: datetime) -> bool:
    """Note that a lease's work is safe until an instant; False when it does not run.

    An older one than is known changes nothing.
    """
    return one(tx, QUERIES["note_checkpoint"], {"id": lease_id, "at": at}) is not None


def reclaimed_lately(tx: Tx, *, since: datetime) -> dict[str, dict[UUID, int]]:
    """Return {pool: {tenant: how often it gave way since then}}."""
    found: dict[str, dict[UUID, int]] = {}
    for row in tx.execute(QUERIES["count_reclaimed"], {"since": since}).fetchall():
        found.setdefault(row["pool"], {})[row["tenant_id"]] = row["times"]
    return found


def list_paused(tx: Tx) -> list[Lease]:
    """Return reclaimed leases that wait to come back, the first requested first."""
    return [_lease(row) for row in tx.execute(QUERIES["list_paused"]).fetchall()]


def end_pause(tx: Tx, lease_id: LeaseId) -> bool:
    """Let a paused lease wait no longer; False when it does not. It came back, or was given up."""
    return one(tx, QUERIES["end_pause"], {"id": lease_id}) is not None


def lock_paused(tx: Tx, ids: Sequence[LeaseId]) -> set[LeaseId]:
    """Return which of these still wait to come back, and keep others from ending that."""
    return {row["id"] for row in tx.execute(QUERIES["lock_paused"], {"ids": list(ids)})}


def end_pauses(tx: Tx, ids: Sequence[LeaseId]) -> None:
    """Do `end_pause` for many, whose rows are locked."""
    tx.execute(QUERIES["end_pauses"], {"ids": list(ids)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What leases and windows hold of a pool at an instant, in GPUs."""

    held: int  # by leases, until the engine shows them empty
    promised: int  # of these, to those that are firm still
    aside: int  # of windows that run, or are about to, and do not use them
    returned: int  # of windows, put back on sale, and not in use: no part of `aside`
    windows: bool  # are there any that are not over?


def standings(tx: Tx, soon: Mapping[str, datetime], *, now: datetime) -> dict[str, Standing]:
    """Return what is held of pools, and set aside for windows that start until `soon`, by pool."""
    given = {"pools": list(soon), "soon": list(soon.values()), "now": now}
    return {
        row["pool"]: Standing(
            held=int(row["held"]),
            promised=int(row["promised"]),
            aside=int(row["aside"]),
            returned=int(row["returned"]),
            windows=row["windows"],
        )
        for row in tx.execute(QUERIES["get_standings"], given)
    }


def standing(tx: Tx, pool: str, *, now: datetime, soon: datetime) -> Standing:
    """Return the same of one pool."""
    return standings(tx, {pool: soon}, now=now)[pool]


def list_promised(tx: Tx, pool: str, *, now: datetime) -> list[Promised]:
    """Return the GPUs of `pool` that leases were promised, each until when."""
    rows = tx.execute(QUERIES["list_firm"], {"pool": pool, "now": now}).fetchall()
    return [
        Promised(gpus=row["gpus"], start=now, end=row["until"] or datetime.max.replace(tzinfo=UTC))
        for row in rows
    ]


def _get(tx: Tx, lease_id: LeaseId) -> dict[str, Any]:
    row = one(tx, QUERIES["get_lease"], {"id": lease_id})
    if row is None:
        raise NotFound(f"there is no lease {lease_id}")
    return row


def _insert_event(tx: Tx, lease: Lease, *, now: datetime) -> None:
    row = {
        "lease_id": lease.id, "version": lease.version, "state": lease.state,
        "reason": lease.end_reason, "happened_at": lease.since, "recorded_at": now,
    }  # fmt: skip
    tx.execute(QUERIES["insert_event"], row)


def _lease(row: Mapping[str, Any]) -> Lease:
    return Lease(
        id=row["id"],
        tenant_id=row["tenant_id"],
        pool=row["pool"],
        gpus=row["gpus"],
        tier=Tier(row["tier"]),
        notice=timedelta(seconds=row["notice_seconds"]),
        price_id=row["price_id"],
        max_duration=timedelta(seconds=row["max_seconds"]),
        requested_at=row["requested_at"],
        state=State(row["state"]),
        since=row["since"],
        version=row["version"],
        end_reason=None if row["end_reason"] is None else EndReason(row["end_reason"]),
        release_asked=None if row["release_asked"] is None else EndReason(row["release_asked"]),
        running_at=row["running_at"],
        stopped_at=row["stopped_at"],
        ends_at=row["ends_at"],
        stops_at=row["stops_at"],
        paid_until=row["paid_until"],
        exit_code=row["exit_code"],
        detail=row["detail"],
        firm=None if row["firm_seconds"] is None else timedelta(seconds=row["firm_seconds"]),
        credit_percent=row["credit_percent"],
        list_price_id=row["list_price_id"],
        reservation_id=row["reservation_id"],
        until=row["until"],
        noticed_at=row["noticed_at"],
        checkpoint_at=row["checkpoint_at"],
        resumable=row["resumable"],
        resumes=row["resumes"],
        exclusive=row["exclusive"],
    )


def to_json(spec: Spec) -> dict[str, Any]:
    return {
        "command": list(spec.command),
        "environment": dict(spec.environment),
        "files": {
            path: base64.b64encode(content).decode("ascii") for path, content in spec.files.items()
        },
        "network": spec.network,
        "memory_bytes": spec.memory_bytes,
        "processes": spec.processes,
        "sandboxed": spec.sandboxed,
        "interactive": spec.interactive,
        "image": spec.image,
    }


def from_json(document: Mapping[str, Any]) -> Spec:
    return Spec(
        command=document["command"],
        environment=document["environment"],
        files={path: base64.b64decode(text) for path, text in document["files"].items()},
        network=document["network"],
        memory_bytes=document["memory_bytes"],
        processes=document["processes"],
        sandboxed=document["sandboxed"],
        interactive=document.get("interactive", False),
        image=document.get("image"),
    )
