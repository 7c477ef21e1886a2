"""An `Engine` on a Slurm cluster: a lease is one job, and Slurm's own queue comes first.

Nothing is kept in this process that is not in Slurm or in the shared folder, so that any other
process goes on from there. One query shows all jobs; who asks in between gets that look again.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.errors import Invalid, Refused, Unavailable
from sublet.engine import records
from sublet.engine.checks import check
from sublet.engine.images import Images
from sublet.engine.port import (
    InternalJob,
    Node,
    Notice,
    Observation,
    Phase,
    Window,
    Workload,
)
from sublet.engine.sandbox import Sandbox
from sublet.engine.slurm import ends, view, watch, windows
from sublet.engine.slurm import folder as shared
from sublet.engine.slurm.commands import Slurm
from sublet.engine.slurm.keeping import Keeper
from sublet.engine.slurm.looking import Cluster, Look, Looker
from sublet.engine.slurm.poking import Poker
from sublet.engine.slurm.reading import WANTING, SlurmJob
from sublet.engine.slurm.settings import SlurmSettings, Windows
from sublet.engine.slurm.submitter import Changed, Held, Submitter, due
from sublet.engine.slurm.view import Demand, Layout

log = logging.getLogger(__name__)

LOG_BYTES: Final = 64 << 20
LISTED: Final = timedelta(days=1)
# How long after its notice a job may still be there before Slurm is asked to kill it.
_OVERDUE: Final = timedelta(seconds=3)
_AGAIN: Final = timedelta(seconds=10)
_SAVE_SECONDS: Final = 5.0


class SlurmEngine:
    def __init__(
        self,
        settings: SlurmSettings,
        *,
        clock: Clock,
        sandbox: Sandbox | None,
        unsafe_no_sandbox: bool = False,
        log_bytes: int = LOG_BYTES,
        images: Images | None = None,
    ) -> None:
        """Find again whatever runs, and start nothing.

        Raises:
            Unavailable: the shared folder or Slurm did not answer.
        """
        self._settings = settings
        self._root = settings.shared
        self._clock = clock
        self._slurm = Slurm(settings=settings)
        self._looker = Looker(self._slurm, clock=clock)
        self._lock = threading.RLock()
        self._leases: dict[UUID, Held] = {}
        self._poker = Poker(self._slurm)
        self._saved_at = 0.0
        self._mine: Sequence[InternalJob] = ()
        self._demand: Sequence[Demand] = ()
        self._followed: Look | None = None
        with _disk():
            (self._root / "ended").mkdir(mode=0o700, parents=True, exist_ok=True)
            program, bwrap = shared.install(
                self._root, None if sandbox is None else sandbox.program
            )
        if sandbox is not None:
            assert bwrap is not None
            sandbox = replace(sandbox, program=bwrap)
        self._cluster: Cluster = self._looker.cluster()
        self._watch = watch.Watch(cluster=self._cluster.name)
        self._keeper = Keeper(self._slurm, grace_seconds=self._cluster.grace_seconds)
        self._submitter = Submitter(
            self._slurm,
            looker=self._looker,
            keeper=self._keeper,
            clock=clock,
            agent=program,
            sandbox=sandbox,
            unsafe_no_sandbox=unsafe_no_sandbox,
            grace_seconds=self._cluster.grace_seconds,
            log_bytes=log_bytes,
            images=images,
        )
        self._leads = False

    # ---- the port

    def nodes(self) -> Sequence[Node]:
        look = self._look()
        return view.nodes_of(look.nodes, look.jobs, self._looker.blocks)

    def observe(self, workload: UUID) -> Observation:
        with self._lock, _disk():
            return self._observe(workload)

    def workloads(self) -> Mapping[UUID, Observation]:
        since = self._clock.now() - LISTED
        found = {}
        with self._lock, _disk():
            ended = [
                entry.name
                for entry in os.scandir(self._root / "ended")
                if entry.stat().st_mtime >= since.timestamp()
            ]
            for name in [*os.listdir(self._root), *ended]:  # noqa: PTH208 -- names alone
                try:
                    id_ = UUID(name)
                except ValueError:
                    continue
                seen = self._observe(id_)
                if seen.phase is not Phase.ABSENT:
                    found[id_] = seen
        return found

    def internal_jobs(self) -> Sequence[InternalJob]:
        look = self._look()
        with self._lock:
            self._follow(look)
            return list(self._mine)

    def start(self, workload: Workload, *, deadline: datetime) -> bool:
        look = self._look()
        whole = [
            Node(name=n.name, gpu_model=n.gpu_model, gpus=n.gpus, memory_bytes=n.memory_bytes)
            for n in look.nodes
        ]
        check(workload, whole)
        with self._lock, _disk():
            here = self._root / str(workload.id)
            if (self._root / "ended" / str(workload.id)).exists():
                return True
            if here.exists():
                if self._observe(workload.id).phase is not Phase.ABSENT:
                    return True
                # We died before Slurm had it, or it was told us by nobody: a look that is newer
                # than the last sbatch knows.
                look = self._look(fresh=True)
                if self._observe(workload.id).phase is not Phase.ABSENT:
                    return True
            layout = self._room(workload, look)
            if layout is None:
                return False
            if not here.exists():
                self._submitter.create(workload, deadline)
            held = self._leases.setdefault(workload.id, Held())
            try:
                self._submitter.submit(workload, layout, held)
            except (Refused, Changed):
                self._leases.pop(workload.id, None)
                raise
            return True

    def extend(self, workload: UUID, *, deadline: datetime) -> None:
        with self._lock, _disk():
            here = self._root / str(workload)
            if here.exists() and shared.read_end(here) is None:
                records.write_deadline(here, due(deadline))

    def stop(self, workload: UUID, *, notice: Notice) -> None:
        with self._lock, _disk():
            here = self._root / str(workload)
            if not here.exists():
                return
            seen = self._observe(workload)
            if seen.phase not in {Phase.STARTING, Phase.RUNNING}:
                return
            lease = self._leases[workload]
            if (first := records.read_notice(here)) is not None:
                lease.stop = first
            if lease.stop is None or notice.stops_at < lease.stop.stops_at:
                told = notice if lease.stop is None else replace(
                    lease.stop, stops_at=notice.stops_at)  # fmt: skip
                records.write_notice(here, told, due=due(told.stops_at))
                lease.stop = told
                # Who is not up yet reads its notice first of all, and hears no signal until then.
                if lease.key is not None and lease.started:
                    self._poker.poke(lease.key)
            self._insist(workload, lease)

    def logs(self, workload: UUID, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        if offset < 0 or limit < 0:
            raise Invalid(f"offset and limit cannot be negative: {offset}, {limit}")
        with _disk():
            for folder in (self._root / str(workload), self._root / "ended" / str(workload)):
                try:
                    with (folder / "log").open("rb") as file:
                        file.seek(offset)
                        return file.read(limit)
                except FileNotFoundError:
                    continue
        return b""

    def tick(self) -> None:
        with self._lock, _disk():
            if not self._leads:
                # Only who leads comes here: it goes on from what the last one saw.
                self._watch = watch.load(self._root / "internal.json", self._cluster.name)
                self._leads, self._followed = True, None
        if self._looker.due():
            self._look(fresh=True)
        with self._lock, _disk():
            if time.monotonic() >= self._saved_at + _SAVE_SECONDS:
                self._watch.save(self._root / "internal.json")
                self._saved_at = time.monotonic()

    def reserve(self, windows: Sequence[Window]) -> None:
        look = self._look()
        self._keeper.keep(
            windows,
            look,
            self._demand,
            window_of=self._window_of,
            ahead=self._looker.ahead,
            now=self._clock.now(),
        )

    def refresh(self) -> None:
        """Look now, however lately we looked."""
        self._look(fresh=True)

    # ---- what we see

    def _look(self, *, fresh: bool = False) -> Look:
        look = self._looker.look(fresh=fresh)
        with self._lock:
            self._follow(look)
        return look

    def _follow(self, look: Look) -> None:
        if look is self._followed:
            return
        self._followed = look
        kept = self._keeper.standing(self._clock.now())
        holds = self._settings.windows is Windows.HOLD
        # Where windows yield, a job that one of our reservations keeps out waits for GPUs.
        wanting = WANTING | {windows.KEPT_OUT} if kept and not holds else WANTING
        demand = view.internal_demand(
            look.jobs, look.nodes, partition=self._settings.partition, wanting=wanting
        )
        if holds:
            demand = windows.beside(demand, kept, look.nodes)
        self._demand = demand
        self._mine = self._watch.look(demand, look.jobs, now=self._clock.now())

    def _window_of(self, id_: UUID) -> UUID | None:
        lease = self._leases.get(id_)
        if lease is None:
            return None
        if not lease.window_known:
            with self._lock, suppress(FileNotFoundError):
                lease.window = records.read(self._root / str(id_)).workload.window
            lease.window_known = True
        return lease.window

    def _observe(self, id_: UUID) -> Observation:
        here = self._root / str(id_)
        lease = self._leases.get(id_)
        if lease is None:
            there = self._root / "ended" / str(id_)
            if (ended := shared.read_end(there)) is not None:
                return ended
            if not here.exists():
                return Observation(phase=Phase.ABSENT)
            if (ended := shared.read_end(here)) is not None:
                return self._bury(id_, ended)  # we died before it was moved aside
            lease = self._leases[id_] = Held(key=shared.job_key(here))
        look = self._look()
        jobs = look.leases.get(id_, ())
        if not jobs:
            return self._unseen(id_, lease, look)
        # Should Slurm ever have two: the one that runs, else the first.
        job, *others = sorted(jobs, key=lambda job: (not job.holds, _number(job)))
        lease.key = job.key
        for other in others:
            if not other.ended:
                self._cancel(other.key)
        return self._judge(id_, lease, job, look)

    def _unseen(self, id_: UUID, lease: Held, look: Look) -> Observation:
        """Say what of a lease is true that Slurm's queue does not show."""
        here = self._root / str(id_)
        if look.began < lease.submitted or shared.submit_runs(here):
            return Observation(phase=Phase.STARTING)
        if lease.key is None:
            lease.key = shared.job_key(here)
        status = records.read_status(here)
        if lease.key is None and status.started_at is None and status.exited_at is None:
            return Observation(phase=Phase.ABSENT)  # it never reached Slurm
        if lease.key is not None and lease.submitted == 0.0:
            # Its number was written after we looked, by an sbatch that outlived its control plane.
            written = (here / "job").stat().st_mtime
            if look.at.timestamp() <= written:
                return Observation(phase=Phase.STARTING)
        accounted = self._looker.account(lease.key) if lease.key is not None else None
        if accounted is not None:
            assert accounted.ended_at is not None
            state, started, ended = accounted.state, accounted.started_at, accounted.ended_at
            code = accounted.exit_code
        else:
            # Purged, and no accounting to ask: what its agent wrote, or the last that we saw.
            state, code = "COMPLETED" if status.exited_at else "NODE_FAIL", None
            started = status.started_at
            ended = status.exited_at or status.started_at or look.at
        return self._bury(id_, self._end(id_, state, started, ended, code))

    def _judge(self, id_: UUID, lease: Held, job: SlurmJob, look: Look) -> Observation:
        here = self._root / str(id_)
        if job.ended:
            ended_at = job.ended_at or self._clock.now()
            seen = self._end(
                id_, job.state, job.started_at, ended_at, job.exit_code, preempted=job.preempted
            )
            return self._bury(id_, seen)
        if not lease.started and job.holds:
            lease.started = records.read_status(here).started_at is not None
        if job.waits:
            if job.restarts:
                # It ran, and an administrator put it back into the queue: never twice. Slurm says
                # so; that it was launched may be news since we looked, and says nothing.
                self._cancel(job.key)
                detail = "its job was put back into Slurm's queue"
                status = records.read_status(here)
                started_at, ended_at = status.started_at, status.exited_at or self._clock.now()
                if (run := self._looker.account(job.key)) is not None:
                    assert run.ended_at is not None
                    started_at, ended_at = run.started_at, run.ended_at
                seen = self._end(id_, "NODE_FAIL", started_at, ended_at, None)
                return self._bury(id_, replace(seen, detail=detail))
            why = None if job.reason == "None" else f"Slurm has not started it yet: {job.reason}"
            return Observation(phase=Phase.STARTING, detail=why)
        if not lease.started:
            return Observation(phase=Phase.STARTING)
        told_at = None
        if job.preempted:
            told_at = shared.preempted_at(here) or self._clock.now()
        return Observation(
            phase=Phase.RUNNING,
            started_at=job.started_at,
            nodes=job.nodes,
            address=_address(job, look),
            reclaimed_at=told_at,
            seen_at=look.at,
        )

    def _end(
        self,
        id_: UUID,
        state: str,
        started_at: datetime | None,
        ended_at: datetime,
        code: int | None,
        *,
        preempted: bool | None = None,
    ) -> Observation:
        return ends.end_of(
            self._root / str(id_),
            state=state,
            started_at=started_at,
            ended_at=ended_at,
            code=code,
            preempted=preempted,
        )

    def _bury(self, id_: UUID, seen: Observation) -> Observation:
        here = self._root / str(id_)
        self._leases.pop(id_, None)
        if not here.exists():  # another control plane of this database was faster
            return shared.read_end(self._root / "ended" / str(id_)) or seen
        shared.write_end(here, seen)
        shared.archive(self._root, id_)
        return seen

    # ---- what we ask for

    def _room(self, workload: Workload, look: Look) -> Layout | None:
        """Return where a lease fits; None while there is no room, or internal jobs wait."""
        if any(job.pending and job.gpu_model == workload.gpu_model for job in self._mine):
            return None
        free = view.free_by_node(look.nodes, look.jobs, workload.gpu_model)
        now = self._clock.now()
        for name in windows.shut(self._keeper.standing(now), window=workload.window, now=now):
            free.pop(name, None)
        unplaced = self._unplaced(look, workload.gpu_model)
        if sum(free.values()) - sum(unplaced) < workload.gpus:
            return None
        return view.lay_out(workload, look.nodes, free, unplaced=unplaced)

    def _unplaced(self, look: Look, gpu_model: str) -> list[int]:
        """Return the GPUs of each job of ours that holds no node yet, or was not seen."""
        waiting = [
            view.amount_of(job, gpu_model)
            for jobs in look.leases.values()
            for job in jobs
            if job.waits
        ]
        unseen = [
            lease.gpus
            for id_, lease in self._leases.items()
            if lease.gpu_model == gpu_model and id_ not in look.leases
        ]
        return waiting + unseen

    def _insist(self, id_: UUID, lease: Held) -> None:
        """Have Slurm cancel what waits in its queue, or is still there after its notice."""
        assert lease.stop is not None
        if lease.key is None:
            return
        now = self._clock.now()
        job = next((j for j in self._look().leases.get(id_, ()) if j.key == lease.key), None)
        late = now >= lease.stop.stops_at + _OVERDUE
        if (job is None or not job.waits) and not late:
            return
        if lease.cancelled_at is None or now >= lease.cancelled_at + _AGAIN:
            lease.cancelled_at = now
            self._cancel(lease.key)

    def _cancel(self, key: str) -> None:
        try:
            self._slurm.run("scancel", key)
        except Refused as error:  # it has ended meanwhile
            log.info("slurm.not_cancelled", extra={"job": key, "detail": str(error)})


def _address(job: SlurmJob, look: Look) -> str | None:
    first = job.nodes[0] if job.nodes else None
    return next((node.address for node in look.nodes if node.name == first), first)


def _number(job: SlurmJob) -> int:
    digits = job.key.partition("_")[0]
    return int(digits) if digits.isdigit() else 0


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"the folder shared with Slurm's nodes did not answer: {error}"
        ) from error
