"""The engine on this machine: each workload a child process, with a shim that outlives us.

All state is on disk, in one folder a workload, so an engine killed at any moment finds
everything again and starts nothing twice. README.md has the layout and the invariants.
"""

import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.errors import Invalid, Refused, Unavailable
from sublet.engine import cgroups, processes, records
from sublet.engine.checks import check
from sublet.engine.hardware import Gpu, usable_cores
from sublet.engine.images import Images
from sublet.engine.launching import Launcher
from sublet.engine.port import InternalJob, Node, Notice, Observation, Phase, Workload
from sublet.engine.records import Due, Kind, Record, Status
from sublet.engine.sandbox import Sandbox
from sublet.engine.shim import steady_seconds, try_lock
from sublet.engine.slots import free_slots, slots_of

LOG_BYTES: Final = 64 << 20
LISTED: Final = timedelta(days=1)  # how long what has ended is still listed
KEPT: Final = timedelta(days=30)  # how long its log is kept
_PRUNE_EVERY: Final = timedelta(hours=1)
CANCEL_GRACE: Final = timedelta(seconds=5)
TRIES: Final = 3  # of a shim that dies before it launches anything


@dataclass(slots=True)
class _Job:
    """A record, and what this process knows beyond it."""

    record: Record
    folder: Path
    ended: Observation | None = None
    shim: int = 0
    tries: int = 0

    @property
    def waiting(self) -> bool:
        return not self.record.slots and self.ended is None

    @property
    def order(self) -> tuple[datetime, int]:
        return self.record.submitted_at, self.record.sequence


class LocalEngine:
    """An `Engine` and an `InternalQueue` on the processes of this machine."""

    def __init__(
        self,
        root: Path,
        *,
        nodes: Sequence[Node],
        clock: Clock,
        sandbox: Sandbox | None,
        unsafe_no_sandbox: bool,
        gpus: Sequence[Gpu] = (),
        log_bytes: int = LOG_BYTES,
        images: Images | None = None,
        kept: timedelta = KEPT,
        parent_environment: Mapping[str, str] | None = None,
    ) -> None:
        """Find again whatever runs below `root`, and start nothing.

        Args:
            root: a folder of this engine's own, made if it is missing.
            nodes: what this machine lends, as `find_nodes` found it.
            clock: the shims are told what it says.
            sandbox: what `find_sandbox` found.
            images: what workloads may run on, besides this machine's own system.
            unsafe_no_sandbox: run a tenant's command unprotected where there is no sandbox.
            gpus: the devices behind `nodes`, as `find_gpus` found them.
            log_bytes: how much of one workload's output is kept.
            kept: for how long the folder of what has ended stays, its log in it.
            parent_environment: what the operator's own workloads inherit; None for ours.

        Raises:
            Unavailable: `root` cannot be made or read.
        """
        self._root = root.absolute()
        self._nodes = tuple(nodes)
        self._node_of = {node.gpu_model: (node.name,) for node in nodes}
        self._clock = clock
        self._unsafe_no_sandbox = unsafe_no_sandbox
        cores = usable_cores()
        self._launcher = Launcher(
            root=self._root,
            sandbox=sandbox,
            cgroups=cgroups.find_cgroups(),
            gpus=tuple(gpus),
            cores=cores if 0 < slots_of(nodes, "cpu") <= len(cores) else None,
            log_bytes=log_bytes,
            images=images,
            parent=dict(os.environ if parent_environment is None else parent_environment),
        )
        self._kept = max(kept, LISTED)
        self._pruned_at: datetime | None = None
        self._lock = threading.RLock()
        self._jobs: dict[UUID, _Job] = {}
        with self._world():
            self._load()

    # ---- the port

    def nodes(self) -> Sequence[Node]:
        return self._nodes

    def observe(self, workload: UUID) -> Observation:
        with self._world():
            job = self._find(workload)
            return Observation(phase=Phase.ABSENT) if job is None else self._look(job)

    def workloads(self) -> Mapping[UUID, Observation]:
        with self._world():
            leases = [job for job in self._jobs.values() if job.record.kind is Kind.LEASE]
            return {job.record.workload.id: self._look(job) for job in leases}

    def internal_jobs(self) -> Sequence[InternalJob]:
        with self._world():
            return [
                records.internal_job(job.record, self._look(job))
                for job in sorted(self._jobs.values(), key=lambda job: job.order)
                if job.record.kind is Kind.INTERNAL
            ]

    def start(self, workload: Workload, *, deadline: datetime) -> bool:
        check(workload, self._nodes)
        with self._world():
            if (job := self._find(workload.id)) is not None:
                if job.record.kind is Kind.INTERNAL:
                    raise Invalid(f"{workload.id} is an internal job")
                return True
            confined = self._confined(workload)
            self._look_at_all()
            # Theirs first: what is free is theirs while one of them waits for this model.
            if self._queue(workload.gpu_model):
                return False
            if (slots := self._free(workload)) is None:
                return False
            now = self._clock.now()
            job = self._create(
                workload,
                self._record(workload, Kind.LEASE, confined, now, slots=slots, slots_at=now),
                deadline=deadline,
            )
            self._launch(job)
            return True

    def extend(self, workload: UUID, *, deadline: datetime) -> None:
        """Move the deadline; of a workload that is unknown or has ended there is none to move."""
        with self._world():
            job = self._find(workload)
            if job is not None and self._look(job).phase in {Phase.STARTING, Phase.RUNNING}:
                records.write_deadline(job.folder, self._due(deadline))

    def stop(self, workload: UUID, *, notice: Notice) -> None:
        """See the port. What is unknown or has ended need not be told."""
        with self._world():
            job = self._find(workload)
            if job is None or self._look(job).phase not in {Phase.STARTING, Phase.RUNNING}:
                return
            if job.record.kind is Kind.INTERNAL:
                raise Invalid(f"{workload} is an internal job: those are cancelled")
            self._notify(job, notice)

    def logs(self, workload: UUID, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        if offset < 0 or limit < 0:
            raise Invalid(f"offset and limit cannot be negative: {offset}, {limit}")
        with self._world():
            job = self._find(workload)
            if job is None:
                return b""
            try:
                with (job.folder / "log").open("rb") as file:
                    file.seek(offset)
                    return file.read(limit)
            except FileNotFoundError:
                return b""  # it has not started

    def tick(self) -> None:
        with self._world():
            self._look_at_all()
            for job in list(self._jobs.values()):
                if job.ended is None:
                    self._repair(job)
                elif job.record.archived_at is None:
                    self._archive(job)
                elif job.record.archived_at < self._clock.now() - LISTED:
                    del self._jobs[job.record.workload.id]  # on disk it stays
            for model in {node.gpu_model for node in self._nodes}:
                self._start_internal(model)
            self._prune()

    # ---- the internal queue

    def submit_internal(self, job: Workload, *, name: str, submitted_at: datetime) -> None:
        """Queue a job; a repeat changes nothing.

        Raises:
            Invalid: it can never run here.
            Refused: it wants a sandbox, and there is none.
        """
        check(job, self._nodes)
        with self._world():
            if (known := self._find(job.id)) is not None:
                if known.record.kind is Kind.LEASE:
                    raise Invalid(f"{job.id} is a lease")
                return
            confined = self._confined(job)
            self._create(job, self._record(job, Kind.INTERNAL, confined, submitted_at, name=name))

    def cancel_internal(self, job: UUID) -> None:
        """Take a job off the queue, or tell it to go if it runs."""
        with self._world():
            found = self._find(job)
            if found is None or found.record.kind is not Kind.INTERNAL:
                return
            if self._look(found).exited_at is None and found.record.cancelled_at is None:
                self._update(found, replace(found.record, cancelled_at=self._clock.now()))
            self._look(found)
            self._repair(found)

    def alive(self) -> list[UUID]:
        """Return the workloads, internal jobs too, whose shim runs: a shutdown leaves them be."""
        with self._world():
            here = [job for job in self._jobs.values() if job.record.archived_at is None]
            return [
                job.record.workload.id
                for job in here
                if job.shim in processes.SHIMS or processes.shim_runs(job.folder)
            ]

    # ---- what is on disk

    @contextmanager
    def _world(self) -> Iterator[None]:
        with self._lock:
            processes.reap()
            try:
                yield
            except OSError as error:
                raise Unavailable(f"the local engine's disk did not answer: {error}") from error

    def _load(self) -> None:
        (self._root / "ended").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root.chmod(0o700)
        for folder in self._root.iterdir():
            if folder.name.startswith(".new-"):
                shutil.rmtree(folder)  # half made or half removed: nobody is to be told of it
            elif (id_ := records.id_of(folder.name)) is not None:
                self._jobs[id_] = _Job(records.read(folder), folder)
        for id_, archived_at in records.list_ended(self._root):
            if archived_at >= self._clock.now() - LISTED:
                self._find(id_)

    def _find(self, id_: UUID) -> _Job | None:
        """Return a job, also one that ended too long ago to be listed."""
        if id_ not in self._jobs:
            folder = self._root / "ended" / str(id_)
            if not folder.exists():
                return None
            job = self._jobs[id_] = _Job(records.read(folder), folder)
            job.ended = _end(job.record, records.read_status(folder))
            assert job.ended is not None, folder
        return self._jobs[id_]

    def _record(
        self,
        workload: Workload,
        kind: Kind,
        confined: bool,
        submitted_at: datetime,
        *,
        name: str = "",
        slots: tuple[int, ...] = (),
        slots_at: datetime | None = None,
    ) -> Record:
        return Record(
            workload=replace(workload, files={}),
            kind=kind,
            confined=confined,
            name=name,
            submitted_at=submitted_at,
            sequence=max((job.record.sequence for job in self._jobs.values()), default=0) + 1,
            slots=slots,
            slots_at=slots_at,
        )

    def _create(
        self, workload: Workload, record: Record, *, deadline: datetime | None = None
    ) -> _Job:
        folder = self._root / str(workload.id)
        due = None if deadline is None else self._due(deadline)
        shutil.rmtree(folder.with_name(f".new-{folder.name}"), ignore_errors=True)  # a failed try
        records.create(folder, record, workload.files, due)
        job = self._jobs[workload.id] = _Job(record, folder)
        return job

    def _update(self, job: _Job, record: Record) -> None:
        records.write(job.folder, record)
        job.record = record

    def _archive(self, job: _Job) -> None:
        """Move an ended workload out of the way, with its log and without its secrets."""
        if (lock := try_lock(job.folder / "lock")) is None:
            return  # the shim has a last line to run
        try:
            for name in ("files", "work", "box", "etc"):
                shutil.rmtree(job.folder / name, ignore_errors=True)
            for name in ("environment", "launch.json", "cgroups.json"):
                (job.folder / name).unlink(missing_ok=True)
            self._update(job, replace(job.record.forget_secrets(), archived_at=self._clock.now()))
            job.folder = job.folder.rename(self._root / "ended" / job.folder.name)
        finally:
            os.close(lock)

    def _prune(self) -> None:
        """Remove what ended long ago, now and then. Its lease or job stays on record elsewhere."""
        now = self._clock.now()
        if self._pruned_at is not None and now < self._pruned_at + _PRUNE_EVERY:
            return
        self._pruned_at = now
        for id_, archived_at in records.list_ended(self._root):
            if archived_at < now - self._kept:
                self._jobs.pop(id_, None)
                records.remove_ended(self._root, id_)

    # ---- what runs

    def _look_at_all(self) -> None:
        for job in self._jobs.values():
            self._look(job)

    def _look(self, job: _Job) -> Observation:
        """Say how a workload is. What ended is remembered; all else is read from its folder."""
        if job.ended is None:
            status = records.read_status(job.folder) if job.record.slots else Status()
            if status.exited_at is None and job.record.slots and (job.folder / "launched").exists():
                status = self._bury_if_lost(job)
            job.ended = _end(job.record, status)
            if job.ended is None:
                phase = Phase.STARTING if status.started_at is None else Phase.RUNNING
                on = self._node_of.get(job.record.workload.gpu_model, ())
                return Observation(phase=phase, started_at=status.started_at, nodes=on)
        return job.ended

    def _bury_if_lost(self, job: _Job) -> Status:
        """Return the status, after making sure that a workload without a shim is dead."""
        if (lock := try_lock(job.folder / "lock")) is None:
            return records.read_status(job.folder)
        try:
            # Read again: the shim may have written its last word and left just now.
            status = records.read_status(job.folder)
            if status.exited_at is not None or not processes.kill_all(
                job.record.workload.id, job.folder
            ):
                return status  # if some of it lives, it still holds its slots
            lost = replace(
                status,
                exited_at=self._clock.now(),
                lost=True,
                detail="its shim is gone: it was killed, or the machine was restarted",
            )
            records.write_status(job.folder, lost)
            return lost
        finally:
            os.close(lock)

    def _repair(self, job: _Job) -> None:
        """Finish what we, or the engine before us, began with a workload and did not end."""
        if job.ended is not None or not job.record.slots:
            return
        if job.record.cancelled_at is not None and records.read_notice(job.folder) is None:
            now = self._clock.now()
            message = "The job was cancelled."
            self._notify(
                job,
                Notice(
                    reason="cancelled",
                    message=message,
                    noticed_at=now,
                    stops_at=now + CANCEL_GRACE,
                ),
            )
        if (
            job.shim in processes.SHIMS
            or processes.shim_runs(job.folder)
            or (job.folder / "launched").exists()
        ):
            return
        if job.tries < TRIES:
            self._launch(job)
        elif (lock := try_lock(job.folder / "lock")) is not None:
            said = (job.folder / "shim.log").read_text(errors="replace").strip()[-300:]
            detail = f"its shim did not start: {said or 'it said nothing'}"
            if records.read_status(job.folder) == Status():
                failed = Status(exited_at=self._clock.now(), detail=detail)
                records.write_status(job.folder, failed)
            os.close(lock)

    def _launch(self, job: _Job) -> None:
        job.tries += 1
        offset = self._clock.now().timestamp() - steady_seconds()
        job.shim = self._launcher.launch(job.folder, job.record, clock_offset=offset)
        processes.SHIMS.add(job.shim)

    def _notify(self, job: _Job, notice: Notice) -> None:
        if (first := records.read_notice(job.folder)) is not None:
            if notice.stops_at >= first.stops_at:
                return
            notice = replace(first, stops_at=notice.stops_at)
        due = self._due(notice.stops_at)
        try:
            records.write_notice(job.folder, notice, due=due)
        except OSError:
            # It cannot be told, on a full disk; but it must be gone by then.
            if (job.folder / "deadline").exists():
                records.write_deadline(job.folder, due)
            raise

    def _due(self, instant: datetime) -> Due:
        left = instant - self._clock.now()
        return Due(instant=instant, steady_seconds=steady_seconds() + left.total_seconds())

    # ---- who runs

    def _confined(self, workload: Workload) -> bool:
        """Say whether it will be in the sandbox.

        Raises:
            Invalid: its command is not there.
            Refused: there is no sandbox to put it in, or not its image.
        """
        self._launcher.check_image(workload)
        if workload.sandboxed and self._launcher.sandbox is not None:
            return True
        if workload.sandboxed and not self._unsafe_no_sandbox:
            raise Refused(
                "there is no sandbox on this machine, so no tenant's command is run here; "
                "install bubblewrap, or set unsafe_no_sandbox to run it unprotected"
            )
        # A path with a slash that is not absolute may be one of the files still to be placed.
        program = workload.command[0]
        path = workload.environment.get("PATH", self._launcher.parent.get("PATH"))
        if ("/" not in program or program.startswith("/")) and not shutil.which(program, path=path):
            raise Invalid(f"there is no command {program!r} on this machine")
        return False

    def _queue(self, gpu_model: str) -> list[_Job]:
        """Return the internal jobs that wait for slots of this model, the next one first."""
        jobs = [job for job in self._jobs.values() if job.record.workload.gpu_model == gpu_model]
        return sorted((job for job in jobs if job.waiting), key=lambda job: job.order)

    def _free(self, workload: Workload) -> tuple[int, ...] | None:
        held = [job.record for job in self._jobs.values() if job.ended is None]
        return free_slots(workload, self._nodes, held)

    def _start_internal(self, gpu_model: str) -> None:
        for job in self._queue(gpu_model):
            # Strictly in order: a small job that overtakes could keep a big one waiting for ever.
            if (slots := self._free(job.record.workload)) is None:
                return
            # On disk before it is launched, so that nobody else is given these slots.
            self._update(job, replace(job.record, slots=slots, slots_at=self._clock.now()))
            self._launch(job)


def _end(record: Record, status: Status) -> Observation | None:
    """Return the last thing to say of a workload, or None while there is more to come."""
    if not record.slots and record.cancelled_at is not None:
        detail = "it was cancelled before it started"
        return Observation(phase=Phase.EXITED, exited_at=record.cancelled_at, detail=detail)
    if status.exited_at is None:
        return None
    return Observation(
        phase=Phase.LOST if status.lost else Phase.EXITED,
        started_at=status.started_at,
        exited_at=status.exited_at,
        exit_code=status.exit_code,
        detail=status.detail,
    )
