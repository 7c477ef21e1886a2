"""How the control plane keeps up with many leases: giving GPUs back, and taking leases up again.

    python benchmarks/reclaim.py                      10,000 live leases: a table
    python benchmarks/reclaim.py --leases 2000        fewer
    python benchmarks/reclaim.py --json               one flat object

It starts a PostgreSQL of its own in a temporary folder and a control plane on it, in this process,
with a cluster that answers at once: what is measured is Sublet. Leases of one GPU each fill twenty
pools, and 50,000 internal jobs of other pools wait in the queue. Then:

    pass            one look of the loop at all of it, nothing to do
    minute          what a minute costs: all leases are paid on and charged once, in processor time
    top             an internal job for one GPU comes: until its GPU is free (Kueue: 105.6 s)
    reclaim         one for 4,000 GPUs: until every lease that goes has its notice (KAI: 85 s)
    again           that job ends: until the first evicted lease runs again (Slurm: 121 s), and the
                    last

Peers' figures are those that they or we have measured elsewhere; see docs/benchmarks.md.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, LiteralString
from uuid import UUID

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from sublet.app import bootstrap  # noqa: E402
from sublet.app.admissions import MOST  # noqa: E402
from sublet.app.loop import Control  # noqa: E402
from sublet.core.clock import SystemClock  # noqa: E402
from sublet.core.db import Database  # noqa: E402
from sublet.core.ids import new_id  # noqa: E402
from sublet.core.migrations import migrate  # noqa: E402
from sublet.core.money import Money  # noqa: E402
from sublet.core.postgres import Postgres  # noqa: E402
from sublet.engine.port import (  # noqa: E402
    InternalJob,
    Node,
    Notice,
    Observation,
    Phase,
    Workload,
)
from sublet.leases import admission, service  # noqa: E402
from sublet.leases.admission import Asked  # noqa: E402
from sublet.leases.lease import Lease  # noqa: E402
from sublet.leases.store import Spec  # noqa: E402
from sublet.market.price import Tier  # noqa: E402
from sublet.tenants import store as tenants  # noqa: E402

_POOLS: Final = 20
_OTHER: Final = "busy"  # whose queue is long
_WHAT: Final = {
    "leases": "live leases",
    "queued": "internal jobs that wait",
    "admit_per_s": "leases sold a second, as many in a transaction as the API sells",
    "pass_cpu_ms": "a pass with nothing to do, ms of processor time, middle",
    "pass_ms": "the same by the clock",
    "minute_cpu_s": "paying on and charging each lease once, s of processor time",
    "top_wait_s": "the top job's wait for its GPU, s (Kueue 105.6)",
    "reclaim_gpus": "GPUs taken back at once",
    "reclaim_s": "until all notices are given, s (KAI 85)",
    "reclaim_cpu_s": "the same in processor time of the control plane",
    "again_first_s": "until the first evicted lease runs again, s (Slurm 121)",
    "again_last_s": "until the last does",
    "load": "machine's load average meanwhile",
}


_ABSENT: Final = Observation(phase=Phase.ABSENT)


class Cluster:
    """An engine that does at once what it is asked: workloads leave as soon as they are told."""

    def __init__(self, pools: Mapping[str, int]) -> None:
        self._pools = dict(pools)
        self._free = dict(pools)
        self._leases: dict[UUID, Workload] = {}
        self._seen: dict[UUID, Observation] = {}
        self._queue: dict[UUID, InternalJob] = {}
        self._clock = SystemClock()
        self.told = 0
        self.told_at = 0.0, 0.0  # the last one, by the clock and in processor time

    def nodes(self) -> Sequence[Node]:
        return [
            Node(name=name, gpu_model=name, gpus=gpus, memory_bytes=1 << 40)
            for name, gpus in self._pools.items()
        ]

    def tick(self) -> None:
        for job in list(self._queue.values()):
            if job.started_at is None and job.gpus <= self._free[job.gpu_model]:
                self._free[job.gpu_model] -= job.gpus
                self._queue[job.id] = _started(job, self._clock.now())

    def internal_jobs(self) -> Sequence[InternalJob]:
        return list(self._queue.values())

    def observe(self, workload: UUID) -> Observation:
        return self._seen.get(workload, _ABSENT)

    def workloads(self) -> Mapping[UUID, Observation]:
        return {id_: self.observe(id_) for id_ in self._leases}

    def start(self, workload: Workload, *, deadline: datetime) -> bool:
        del deadline
        if workload.id not in self._leases:
            if self._free[workload.gpu_model] < workload.gpus:
                return False
            self._free[workload.gpu_model] -= workload.gpus
            self._leases[workload.id] = workload
            self._seen[workload.id] = Observation(phase=Phase.RUNNING, started_at=self._clock.now())
        return True

    def extend(self, workload: UUID, *, deadline: datetime) -> None: ...

    def stop(self, workload: UUID, *, notice: Notice) -> None:
        del notice
        seen = self._seen[workload]
        if seen.exited_at is None:
            self._seen[workload] = replace(
                seen, phase=Phase.EXITED, exited_at=self._clock.now(), exit_code=0
            )
            self.told += 1
            self.told_at = time.perf_counter(), time.process_time()
            known = self._leases[workload]
            self._free[known.gpu_model] += known.gpus

    def logs(self, workload: UUID, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        del workload, offset, limit
        return b""

    def submit(self, pool: str, gpus: int) -> UUID:
        now = self._clock.now()
        job = InternalJob(id=new_id(), name="job", gpu_model=pool, gpus=gpus, submitted_at=now)
        self._queue[job.id] = job
        return job.id

    def waits(self, job: UUID) -> bool:
        return self._queue[job].started_at is None

    def end(self, job: UUID) -> None:
        ended = self._queue.pop(job)
        self._free[ended.gpu_model] += ended.gpus


def _started(job: InternalJob, at: datetime) -> InternalJob:
    return InternalJob(
        id=job.id, name=job.name, gpu_model=job.gpu_model, gpus=job.gpus,
        submitted_at=job.submitted_at, started_at=at,
    )  # fmt: skip


class _Later:
    """The machine's clock, some way ahead of it: so a minute need not be waited for."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return self._clock.now() + self.ahead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--leases", type=int, default=10_000)
    parser.add_argument("--queued", type=int, default=50_000)
    parser.add_argument("--reclaim", type=int, default=4_000, help="GPUs")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = _run(given)
    if given.json:
        print(json.dumps(result))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, Python"
          f" {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}")  # fmt: skip
    for name, value in result.items():
        print(f"  {_WHAT[name]:66} {value:>12,}")


def _run(given: argparse.Namespace) -> dict[str, float]:
    each = given.leases // _POOLS
    big = min(given.reclaim, given.leases // 2)
    pools = {f"pool-{number}": each for number in range(_POOLS)}
    pools = {"large": big} | pools | {_OTHER: 8}
    cluster, clock = Cluster(pools), _Later()
    folder = Path(tempfile.mkdtemp(prefix="sublet-bench-"))
    server = Postgres(folder / "postgres")
    try:
        server.start()
        with Database(server.url) as db:
            migrate(db, clock=clock)
            control = Control(
                db=db, engine=cluster, clock=clock, first_notice_seconds=60, replicas=None
            )
            control.tick()
            sold = _sell(db, control, clock, given.leases, big)
            for _ in range(given.queued):
                cluster.submit(_OTHER, 16)
            control.tick()  # puts them on record
            passes = [_timed(control.tick) for _ in range(7)]
            clock.ahead += timedelta(seconds=45)
            pay = _timed(control.tick)
            clock.ahead += timedelta(seconds=20)
            charge = _timed(control.tick)
            top = _wait(control, cluster, cluster.submit("pool-0", 1))
            control.tick()
            before = cluster.told
            job = cluster.submit("large", big)
            start, cpu = time.perf_counter(), time.process_time()
            while cluster.told < before + big:
                control.tick()
            reclaim, cpu = cluster.told_at[0] - start, cluster.told_at[1] - cpu
            _wait(control, cluster, job)
            while _count(db, "paused") < big:
                control.tick()
            cluster.end(job)
            start, first = time.perf_counter(), 0.0
            while (back := _count(db, "back")) < big:
                if back and not first:
                    first = time.perf_counter() - start
                control.tick()
            last = time.perf_counter() - start
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "leases": given.leases,
        "queued": given.queued,
        "admit_per_s": round(sold),
        "pass_cpu_ms": round(statistics.median(cpu for _, cpu in passes) * 1000),
        "pass_ms": round(statistics.median(wall for wall, _ in passes) * 1000),
        "minute_cpu_s": round(pay[1] + charge[1], 1),
        "top_wait_s": round(top, 2),
        "reclaim_gpus": big,
        "reclaim_s": round(reclaim, 2),
        "reclaim_cpu_s": round(cpu, 2),
        "again_first_s": round(first or last, 2),
        "again_last_s": round(last, 2),
        "load": round(os.getloadavg()[0], 1),
    }


def _sell(db: Database, control: Control, clock: _Later, leases: int, big: int) -> float:
    with db.transaction() as tx:
        tenant = tenants.create_tenant(tx, "bench", now=clock.now())
        bootstrap.open_accounts(tx, tenant)
        bootstrap.top_up(tx, tenant, Money(10**18), payment=1, now=clock.now())
    names = ["large"] * big
    names += [f"pool-{number % _POOLS}" for number in range(leases - big)]
    start = time.perf_counter()
    for begin in range(0, len(names), MOST):
        asked = [
            Asked(
                tenant=tenant,
                request=service.Request(
                    pool=name, gpus=1, tier=Tier.INTERRUPTIBLE, max_duration=timedelta(days=1),
                    spec=Spec(command=["x"]), resumable=name == "large",
                ),
            )
            for name in names[begin : begin + MOST]
        ]  # fmt: skip
        with db.transaction() as tx:
            outcomes = admission.admit_many(tx, asked, jobs=[], now=clock.now())
        assert all(isinstance(one, Lease) for one in outcomes), outcomes
    seconds = time.perf_counter() - start
    while _count(db, "running") < leases:
        control.tick()
    return leases / seconds


def _wait(control: Control, cluster: Cluster, job: UUID) -> float:
    start = time.perf_counter()
    while cluster.waits(job):
        control.tick()
    return time.perf_counter() - start


def _timed(what: object) -> tuple[float, float]:
    assert callable(what)
    wall, cpu = time.perf_counter(), time.process_time()
    what()
    return time.perf_counter() - wall, time.process_time() - cpu


_COUNTS: Final[Mapping[str, LiteralString]] = {
    "running": "SELECT count(*) FROM lease WHERE state = 'running'",
    "paused": "SELECT count(*) FROM lease WHERE end_reason = 'reclaimed' AND state = 'ended'",
    "back": "SELECT count(*) FROM lease WHERE state = 'running' AND resumes IS NOT NULL",
}


def _count(db: Database, which: str) -> int:
    with db.transaction() as tx:
        row = tx.execute(_COUNTS[which]).fetchone()
    assert row is not None
    return int(row["count"])


if __name__ == "__main__":
    main()
