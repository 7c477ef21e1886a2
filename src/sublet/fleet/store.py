"""Pools and observed internal demand in Postgres."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Json

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import NotFound
from sublet.core.money import Rate
from sublet.engine.port import InternalJob
from sublet.fleet.demand import Sample
from sublet.fleet.pool import Policy, Pool, QuietHours

QUERIES: Final = load_queries("sublet.fleet")

_TOGETHER: Final = 10_000  # events that one statement records


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalSpan:
    """One internal job as the record has it."""

    job_id: UUID
    pool: str
    gpus: int  # that it held, or waits for
    wanted: int  # the most that it was ever seen to want or to hold
    name: str
    submitted_at: datetime | None  # None only where somebody tampered with the record
    started_at: datetime | None
    ended_at: datetime | None


def list_pools(tx: Tx) -> list[Pool]:
    return [_pool(row) for row in tx.execute(QUERIES["list_pools"]).fetchall()]


def lock_pool(tx: Tx, name: str) -> Pool:
    """Return the pool, and keep others from admitting to it until the transaction ends.

    Raises:
        NotFound: there is no such pool.
    """
    found = lock_pools(tx, [name])
    if not found:
        raise NotFound(f"there is no pool {name!r}")
    return found[name]


def lock_pools(tx: Tx, names: Collection[str]) -> dict[str, Pool]:
    """Lock those of these pools that there are, as `lock_pool` does one; return them by name."""
    rows = tx.execute(QUERIES["lock_pools"], {"names": sorted(names)}).fetchall()
    return {row["name"]: _pool(row) for row in rows}


def observe_pools(
    tx: Tx,
    gpus: Mapping[str, int],
    *,
    notice_seconds: int,
    now: datetime,
    node_gpus: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Note how many healthy GPUs each pool has; a pool that is not named has none now.

    `notice_seconds` is the policy of a pool that is seen for the first time; `node_gpus` says how
    many the largest node of a pool has, where that is known.
    """
    known = {pool.name for pool in list_pools(tx)}
    for name in sorted(known | set(gpus)):
        row = {
            "name": name,
            "gpus": gpus.get(name, 0),
            "notice_seconds": notice_seconds,
            "node_gpus": node_gpus.get(name),
        }
        changed = one(tx, QUERIES["put_pool"], row)
        if changed is not None:
            tx.execute(QUERIES["insert_pool_event"], {**changed, "policy": None, "now": now})


def expect_pool(tx: Tx, name: str, *, notice_seconds: int, now: datetime) -> None:
    """Make a pool that has no GPUs yet; one that there is stays as it is."""
    if not lock_pools(tx, [name]):
        row = {"name": name, "gpus": 0, "notice_seconds": notice_seconds, "node_gpus": None}
        if (changed := one(tx, QUERIES["put_pool"], row)) is not None:
            tx.execute(QUERIES["insert_pool_event"], {**changed, "policy": None, "now": now})


def set_policy(tx: Tx, name: str, policy: Policy, *, now: datetime) -> Pool:
    """Change what may be sold of a pool. Leases keep what they were promised.

    Raises:
        NotFound: there is no such pool.
        Invalid: a value out of range.
    """
    policy.check()
    lock_pool(tx, name)
    row = {
        "name": name,
        "notice_seconds": policy.notice_seconds,
        "lendable": policy.lendable,
        "lending_limit": policy.lending_limit,
        "reserve": policy.reserve,
        "firm_seconds": policy.firm_seconds,
        "firm_confidence": policy.firm_confidence,
        "credit_percent": policy.credit_percent,
        "floor_nanos": None if policy.floor is None else policy.floor.charge_most(3600).nanos,
        "quiet_from": None if policy.quiet is None else policy.quiet.start,
        "quiet_until": None if policy.quiet is None else policy.quiet.end,
        "exclusive": policy.exclusive,
    }
    changed = one(tx, QUERIES["set_policy"], row)
    assert changed is not None, name
    said = Json(
        {key: value for key, value in row.items() if key not in {"name", "floor_nanos"}}
        | {"floor_nanos": None if row["floor_nanos"] is None else str(row["floor_nanos"])}
    )
    tx.execute(QUERIES["insert_pool_event"], {**changed, "policy": said, "now": now})
    return _pool(changed)


def record_internal_jobs(tx: Tx, jobs: Sequence[InternalJob], *, now: datetime) -> None:
    """Add what is new in the cluster's queue to the record."""
    events = [
        (job, event, happened_at)
        for job in jobs
        for event, happened_at in (
            ("submitted", job.submitted_at), ("started", job.started_at), ("ended", job.exited_at)
        )
        if happened_at is not None
    ]  # fmt: skip
    for begin in range(0, len(events), _TOGETHER):
        some = events[begin : begin + _TOGETHER]
        given = {
            "jobs": [job.id for job, _, _ in some],
            "events": [event for _, event, _ in some],
            "pools": [job.gpu_model for job, _, _ in some],
            "gpus": [job.gpus for job, _, _ in some],
            "names": [job.name for job, _, _ in some],
            "happened": [happened_at for _, _, happened_at in some],
            "recorded_at": now,
        }
        tx.execute(QUERIES["insert_internal_job_events"], given)


def keep_samples(tx: Tx, samples: Sequence[Sample]) -> None:
    """Keep what was seen of slots; what was kept of the same slots before is joined to it."""
    ordered = sorted(samples, key=lambda sample: (sample.pool, sample.slot))
    row = {
        "pools": [sample.pool for sample in ordered],
        "slots": [sample.slot for sample in ordered],
        "gpus": [sample.gpus for sample in ordered],
        "running": [sample.running for sample in ordered],
        "pending": [sample.pending for sample in ordered],
    }
    tx.execute(QUERIES["put_demand_samples"], row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """A pool's samples in order of time; lists of equal length."""

    slots: Sequence[int]  # their starts, in seconds since the epoch
    gpus: Sequence[int]
    running: Sequence[int]
    pending: Sequence[int]


def list_samples(tx: Tx, *, since: datetime) -> dict[str, Samples]:
    """Return the samples of every pool that has any, of slots from an instant on."""
    rows = tx.execute(QUERIES["list_demand_samples"], {"since": since}).fetchall()
    return {row.pop("pool"): Samples(**row) for row in rows}


def forget_samples(tx: Tx, *, before: datetime) -> int:
    """Remove samples of slots before an instant. Returns how many there were."""
    return tx.execute(QUERIES["forget_demand_samples"], {"before": before}).rowcount


def list_internal_spans(tx: Tx) -> list[InternalSpan]:
    """Return every internal job on record, oldest first."""
    rows = tx.execute(QUERIES["list_internal_spans"]).fetchall()
    return [InternalSpan(**row) for row in rows]


def list_jobs_at(tx: Tx, pool: str, at: datetime) -> list[dict[str, Any]]:
    """Return {job_id, gpus, submitted_at, started_at, ended_at} of jobs that used or waited."""
    return tx.execute(QUERIES["list_jobs_at"], {"pool": pool, "at": at}).fetchall()


def list_pool_events(tx: Tx) -> list[dict[str, Any]]:
    """Return {pool, gpus, notice_seconds, happened_at} of every change, in order."""
    return tx.execute(QUERIES["list_pool_events"]).fetchall()


def _pool(row: Mapping[str, Any]) -> Pool:
    return Pool(
        name=row["name"],
        gpus=row["gpus"],
        node_gpus=row["node_gpus"],
        policy=Policy(
            notice_seconds=row["notice_seconds"],
            lendable=row["lendable"],
            lending_limit=row["lending_limit"],
            reserve=row["reserve"],
            firm_seconds=row["firm_seconds"],
            firm_confidence=row["firm_confidence"],
            credit_percent=row["credit_percent"],
            floor=None
            if row["floor_nanos"] is None
            else Rate(nanos=int(row["floor_nanos"]), per=3600),
            quiet=None
            if row["quiet_from"] is None
            else QuietHours(start=row["quiet_from"], end=row["quiet_until"]),
            exclusive=row["exclusive"],
        ),
    )
