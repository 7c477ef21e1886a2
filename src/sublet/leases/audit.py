"""Checking from the record that internal jobs came first and no GPU was sold twice."""

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import heappop, heappush
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Any, Final, LiteralString
from uuid import UUID

from sublet.core.audit import Findings, Progress
from sublet.core.db import Tx
from sublet.fleet import store as fleet
from sublet.fleet.store import InternalSpan
from sublet.leases.lease import MOVES, State
from sublet.leases.store import QUERIES

# What the control plane may add to a pool's notice: a look at the queue, and its own steps.
SLACK: Final = timedelta(seconds=2)
WEIGHT: Final = 4.0  # of all steps, as `Progress` counts
_PAGE: Final = 5_000  # rows that a cursor brings at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """GPUs in use from one instant to another."""

    use: str  # 'internal', 'lease' or 'model'
    id: UUID
    gpus: int
    start: datetime
    end: datetime

    @property
    def name(self) -> str:
        return f"{'internal job' if self.use == 'internal' else 'lease'} {self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How many healthy GPUs there are, and how long an internal job may wait, from `at` on."""

    at: datetime
    gpus: int
    notice: timedelta


def audit(tx: Tx, findings: Findings, *, now: datetime, progress: Progress | None = None) -> None:
    """Replay every pool; see `sweep` and `late_jobs`. Check every lease's moves."""
    progress = progress or Progress()
    progress.begin("what each pool's GPUs did", weight=2)
    capacities: dict[str, list[Capacity]] = defaultdict(list)
    for row in fleet.list_pool_events(tx):
        capacities[row["pool"]].append(
            Capacity(
                at=row["happened_at"],
                gpus=row["gpus"],
                notice=timedelta(seconds=row["notice_seconds"]),
            )
        )
    spans: dict[str, list[Span]] = defaultdict(list)
    jobs: dict[str, list[InternalSpan]] = defaultdict(list)
    for job in fleet.list_internal_spans(tx):
        jobs[job.pool].append(job)
        findings.check(
            job.submitted_at is not None,
            "past_stands",
            f"internal job {job.job_id} is on record and was never submitted",
        )
        if job.started_at is not None:
            end = job.ended_at or now
            spans[job.pool].append(
                Span(use="internal", id=job.job_id, gpus=job.gpus, start=job.started_at, end=end)
            )
    for row in _read(tx, QUERIES["list_occupancy"]):
        spans[row["pool"]].append(
            Span(use="model" if row["tenant_kind"] == "house" else "lease",
                 id=row["id"], gpus=row["gpus"],
                 start=row["started_at"], end=row["ended_at"] or now)
        )  # fmt: skip
    for pool, capacity in capacities.items():
        sweep(pool, capacity, spans[pool], findings, now=now)
        late_jobs(pool, capacity, jobs[pool], spans[pool], findings, now=now)
    progress.begin("every move of every lease", weight=2)
    _check_moves(_read(tx, QUERIES["list_moves"]), findings)
    progress.end()


def _read(tx: Tx, query: LiteralString) -> Iterator[dict[str, Any]]:
    """Read rows through a cursor: there may be millions."""
    with tx.cursor(name="audit") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(query)
        yield from cursor


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
    findings.count(law, "spans", len(spans))
    changes: list[tuple[datetime, int, str, int, Span | None]] = []
    # At one instant what ends comes before what starts: spans are half-open.
    changes += [(span.start, 1, span.use, span.gpus, span) for span in spans]
    changes += [(span.end, 0, span.use, -span.gpus, span) for span in spans]
    before = 0
    for step in capacity:
        changes.append((step.at, 0, "healthy", step.gpus - before, None))
        before = step.gpus
    changes.sort(key=lambda change: change[:2])
    level: dict[str, int] = defaultdict(int)
    seconds: dict[str, timedelta] = defaultdict(timedelta)
    last = changes[0][0] if changes else now
    changes.append((now, 0, "healthy", 0, None))
    for at, _, use, gpus, starting in changes:
        used = level["internal"] + level["lease"] + level["model"]
        span = max(at, last) - last
        for kind in ("internal", "lease", "model"):
            seconds[kind] += span * level[kind]
        seconds["idle"] += span * (level["healthy"] - used)
        last = max(at, last)
        level[use] += gpus
        used = level["internal"] + level["lease"] + level["model"]
        if starting is not None and gpus > 0 and used > level["healthy"]:
            findings.check(
                False,
                law,
                f"pool {pool}: {used} of {level['healthy']} GPUs in use at {at.isoformat()},"
                f" when {starting.name} started",
            )
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
    running = _Running(
        sorted((span for span in spans if span.use == "internal"), key=lambda span: span.start)
    )
    steps = sorted(capacity, key=lambda step: step.at)
    times = [step.at for step in steps]
    notices = list(accumulate((step.notice for step in steps), max))
    head_from = datetime.min.replace(tzinfo=now.tzinfo)
    queue = [(job.submitted_at, job) for job in jobs if job.submitted_at is not None]
    for submitted_at, job in sorted(queue, key=lambda entry: (entry[0], entry[1].job_id)):
        at_head = max(submitted_at, head_from)
        waited_until = job.started_at or job.ended_at or now
        head_from = max(head_from, waited_until)
        known = bisect_right(times, waited_until)
        notice = notices[known - 1] if known else timedelta()
        # From when on it fitted beside the internal jobs that ran: the rest is up to us.
        known = bisect_right(times, at_head)
        healthy = steps[known - 1].gpus if known else 0
        running.go_to(at_head)
        since = running.last_end(at_head) if running.gpus + job.wanted > healthy else at_head
        due = since + notice + SLACK
        if waited_until <= due:
            continue
        blocking = [
            span for span in leased if span.start < waited_until and max(span.start, due) < span.end
        ]
        findings.check(
            not blocking,
            law,
            f"pool {pool}: internal job {job.job_id} waited until {waited_until.isoformat()}"
            f" and should have had its GPUs at {due.isoformat()};"
            f" held by {blocking[0].name if blocking else 'nobody'}",
        )


class _Running:
    """Which internal jobs run at an instant that only goes forward."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._coming = deque(spans)
        self._ends: list[tuple[datetime, UUID, int]] = []  # a heap
        self._latest: datetime | None = None  # of all ends that were ever in it
        self.gpus = 0

    def go_to(self, at: datetime) -> None:
        while self._coming and self._coming[0].start <= at:
            span = self._coming.popleft()
            if span.end > at:
                heappush(self._ends, (span.end, span.id, span.gpus))
                self._latest = max(self._latest or span.end, span.end)
                self.gpus += span.gpus
        while self._ends and self._ends[0][0] <= at:
            self.gpus -= heappop(self._ends)[2]

    def last_end(self, at: datetime) -> datetime:
        """Return when the last of those that run at `at` ends; `at` if none does."""
        return max(at, self._latest or at)


def _check_moves(rows: Iterable[Mapping[str, Any]], findings: Findings) -> None:
    law = "past_stands"
    moves = 0
    for lease_id, of_lease in groupby(rows, key=itemgetter("lease_id")):
        before: tuple[int, State] | None = None
        times: dict[State, datetime] = {}
        row: Mapping[str, Any] = {}
        for row in of_lease:
            if row["version"] is None:
                continue  # a lease without any move
            moves += 1
            version, state = row["version"], State(row["state"])
            if before is None:
                if (version, state) != (1, State.REQUESTED):
                    what = f"lease {lease_id} begins as {state}, which it cannot"
                    findings.check(False, law, what)
            elif version != before[0] + 1 or state not in MOVES[before[1]]:
                what = f"lease {lease_id} went from {before[1]} to {state}, which it cannot"
                findings.check(False, law, what)
            before = version, state
            times[state] = row["happened_at"]
        if before != (row["stands_at"], row["stands"]):
            what = f"lease {lease_id} is {row['stands']} and its record says otherwise"
            findings.check(False, law, what)
        running_at = times.get(State.RUNNING)
        stopped_at = None if running_at is None else times.get(State.DRAINING)
        if (row["running_at"], row["stopped_at"]) != (running_at, stopped_at):
            findings.check(
                False,
                law,
                f"lease {lease_id} says it ran from {row['running_at']} to {row['stopped_at']},"
                f" its record says from {running_at} to {stopped_at}",
            )
    findings.count(law, "lease_moves", moves)
