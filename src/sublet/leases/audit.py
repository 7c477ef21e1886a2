"""Checking from the record that internal jobs came first and no GPU was sold twice."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sublet.core.audit import Findings
from sublet.core.db import Tx
from sublet.fleet import store as fleet
from sublet.fleet.store import InternalSpan
from sublet.leases.lease import MOVES, State
from sublet.leases.store import QUERIES

# What the control plane may add to a pool's notice: a look at the queue, and its own steps.
SLACK: Final = timedelta(seconds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """GPUs in use from one instant to another."""

    use: str  # 'internal', 'lease' or 'model'
    name: str
    gpus: int
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How many healthy GPUs there are, and how long an internal job may wait, from `at` on."""

    at: datetime
    gpus: int
    notice: timedelta


def audit(tx: Tx, findings: Findings, *, now: datetime) -> None:
    """Replay every pool; see `sweep` and `late_jobs`. Check every lease's moves."""
    capacities: dict[str, list[Capacity]] = defaultdict(list)
    for row in fleet.list_pool_events(tx):
        capacities[row["pool"]].append(
            Capacity(
                at=row["happened_at"],
                gpus=row["gpus"],
                notice=timedelta(seconds=row["notice_seconds"]),
            )
        )
    jobs = fleet.list_internal_spans(tx)
    spans: dict[str, list[Span]] = defaultdict(list)
    for job in jobs:
        findings.check(
            job.submitted_at is not None,
            "past_stands",
            f"internal job {job.job_id} is on record and was never submitted",
        )
        if job.started_at is not None:
            end = job.ended_at or now
            spans[job.pool].append(
                Span(use="internal", name=f"internal job {job.job_id}", gpus=job.gpus,
                     start=job.started_at, end=end)
            )  # fmt: skip
    for row in tx.execute(QUERIES["list_occupancy"]).fetchall():
        if row["started_at"] is not None:
            spans[row["pool"]].append(
                Span(use="model" if row["tenant_kind"] == "house" else "lease",
                     name=f"lease {row['id']}", gpus=row["gpus"],
                     start=row["started_at"], end=row["ended_at"] or now)
            )  # fmt: skip
    for pool, capacity in capacities.items():
        sweep(pool, capacity, spans[pool], findings, now=now)
        of_pool = [job for job in jobs if job.pool == pool]
        late_jobs(pool, capacity, of_pool, spans[pool], findings, now=now)
    _check_moves(tx, findings)


def sweep(
    pool: str,
    capacity: Sequence[Capacity],
    spans: Sequence[Span],
    findings: Findings,
    *,
    now: datetime,
) -> None:
    """Walk through time: at no instant may more GPUs be in use than are healthy.

    Counts GPU-seconds by use; idle is what is left, so they add up to the fleet's.
    """
    law = "no_double_sale"
    changes: list[tuple[datetime, int, str, int, str]] = []
    # At one instant what ends comes before what starts: spans are half-open.
    changes += [(span.start, 1, span.use, span.gpus, span.name) for span in spans]
    changes += [(span.end, 0, span.use, -span.gpus, span.name) for span in spans]
    before = 0
    for step in capacity:
        changes.append((step.at, 0, "healthy", step.gpus - before, pool))
        before = step.gpus
    changes.sort(key=lambda change: change[:2])
    level: dict[str, int] = defaultdict(int)
    seconds: dict[str, timedelta] = defaultdict(timedelta)
    last = changes[0][0] if changes else now
    for at, _, use, gpus, name in [*changes, (now, 0, "healthy", 0, pool)]:
        used = level["internal"] + level["lease"] + level["model"]
        span = max(at, last) - last
        for kind in ("internal", "lease", "model"):
            seconds[kind] += span * level[kind]
        seconds["idle"] += span * (level["healthy"] - used)
        last = max(at, last)
        level[use] += gpus
        used = level["internal"] + level["lease"] + level["model"]
        if use != "healthy" and gpus > 0:
            findings.check(
                used <= level["healthy"],
                law,
                f"pool {pool}: {used} of {level['healthy']} GPUs in use at {at.isoformat()},"
                f" when {name} started",
            )
    findings.count(law, "spans", len(spans))
    for kind in ("internal", "lease", "model", "idle"):
        findings.count(law, f"{kind}_gpu_seconds", round(seconds[kind].total_seconds()))


def late_jobs(
    pool: str,
    capacity: Sequence[Capacity],
    jobs: Sequence[InternalSpan],
    spans: Sequence[Span],
    findings: Findings,
    *,
    now: datetime,
) -> None:
    """Find internal jobs that waited for leases longer than the pool's policy allows.

    A job that waits for other internal jobs is none of our business; so only the time after
    its notice counts in which leases held GPUs that it, at the head of the queue, lacked.
    """
    law = "internal_first"
    findings.count(law, "internal_jobs", len(jobs))
    leased = [span for span in spans if span.use != "internal"]
    internal = [span for span in spans if span.use == "internal"]
    head_from = datetime.min.replace(tzinfo=now.tzinfo)
    queue = [(job.submitted_at, job) for job in jobs if job.submitted_at is not None]
    for submitted_at, job in sorted(queue, key=lambda entry: (entry[0], entry[1].job_id)):
        at_head = max(submitted_at, head_from)
        waited_until = job.started_at or job.ended_at or now
        head_from = max(head_from, waited_until)
        notice = max(
            (step.notice for step in capacity if step.at <= waited_until), default=timedelta()
        )
        # From when on it fitted beside the internal jobs that ran: the rest is up to us.
        fits_from = max(
            [at_head, *(span.end for span in internal if span.start <= at_head < span.end)]
        )
        since = fits_from if _crowded(job, internal, capacity, at_head) else at_head
        due = since + notice + SLACK
        blocking = [
            span for span in leased if span.start < waited_until and max(span.start, due) < span.end
        ]
        findings.check(
            waited_until <= due or not blocking,
            law,
            f"pool {pool}: internal job {job.job_id} waited until {waited_until.isoformat()}"
            f" and should have had its GPUs at {due.isoformat()};"
            f" held by {blocking[0].name if blocking else 'nobody'}",
        )


def _crowded(
    job: InternalSpan, internal: Sequence[Span], capacity: Sequence[Capacity], at: datetime
) -> bool:
    healthy = next((step.gpus for step in reversed(capacity) if step.at <= at), 0)
    running = sum(span.gpus for span in internal if span.start <= at < span.end)
    return running + job.gpus > healthy


def _check_moves(tx: Tx, findings: Findings) -> None:
    law = "past_stands"
    last: dict[object, tuple[int, State]] = {}
    times: dict[tuple[object, State], datetime] = {}
    moves = 0
    for row in tx.execute(QUERIES["list_all_events"]).fetchall():
        moves += 1
        lease_id, version, state = row["lease_id"], row["version"], State(row["state"])
        if lease_id in last:
            before_version, before = last[lease_id]
            findings.check(
                version == before_version + 1 and state in MOVES[before],
                law,
                f"lease {lease_id} went from {before} to {state}, which it cannot",
            )
        else:
            findings.check(
                (version, state) == (1, State.REQUESTED),
                law,
                f"lease {lease_id} begins as {state}, which it cannot",
            )
        last[lease_id] = (version, state)
        times[lease_id, state] = row["happened_at"]
    findings.count(law, "lease_moves", moves)
    for row in tx.execute(QUERIES["list_all_for_audit"]).fetchall():
        lease_id = row["id"]
        findings.check(
            last.get(lease_id) == (row["version"], row["state"]),
            law,
            f"lease {lease_id} is {row['state']} and its record says otherwise",
        )
        running_at = times.get((lease_id, State.RUNNING))
        stopped_at = None if running_at is None else times.get((lease_id, State.DRAINING))
        findings.check(
            (row["running_at"], row["stopped_at"]) == (running_at, stopped_at),
            law,
            f"lease {lease_id} says it ran from {row['running_at']} to {row['stopped_at']},"
            f" its record says from {running_at} to {stopped_at}",
        )
