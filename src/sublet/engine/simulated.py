"""An engine in memory, on a clock that is moved by hand, with trouble when the dice say so.

What becomes of a workload is decided when it starts: its `Fate` is drawn once, and every
later question is answered from the fate, the orders given since, and the clock. So the same
seed and the same calls give the same history, however often anybody looks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random
from typing import Final
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.errors import Invalid, Unavailable
from sublet.engine.checks import check
from sublet.engine.port import InternalJob, Node, Notice, Observation, Phase, Workload
from sublet.engine.slots import slots_of

CANCEL_GRACE: Final = timedelta(seconds=5)
SOON: Final = timedelta(milliseconds=10)  # a process dies of SIGTERM at once, but not sooner
TERMINATED: Final = 128 + 15
KILLED: Final = 128 + 9
LISTED: Final = timedelta(days=1)  # how long what has ended is still listed
LOST: Final = "its node went down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What a process does by itself, and how it takes SIGTERM."""

    starts_after: timedelta = timedelta(0)  # STARTING until then
    fails: str | None = None  # instead of coming up, it ends with this detail
    lasts: timedelta | None = None  # None: until it is stopped
    exit_code: int = 0
    obeys_after: timedelta | None = SOON  # from SIGTERM to its exit; None: it waits for SIGKILL
    exit_code_obeying: int = TERMINATED
    lost_after: timedelta | None = None  # from its start; its node goes down with it
    output: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often what goes wrong, as probabilities in [0, 1]; none without dice."""

    unavailable: float = 0.0  # of each call; of those that change something, half took effect
    slow_start: float = 0.0
    slow_start_most: timedelta = timedelta(minutes=5)
    failed_start: float = 0.0
    lost: float = 0.0
    lost_most: timedelta = timedelta(hours=12)
    deaf: float = 0.0  # of workloads, to SIGTERM
    obeys_most: timedelta = timedelta(seconds=30)  # how long the others take over it


def fate_of(workload: Workload) -> Fate:
    """Read a fate from a command: ("sleep", "5"), "true" and "false" do as in a shell."""
    match tuple(workload.command):
        case ("sleep", seconds):
            return Fate(lasts=timedelta(seconds=float(seconds)))
        case ("true", *_):
            return Fate(lasts=timedelta(0))
        case ("false", *_):
            return Fate(lasts=timedelta(0), exit_code=1)
        case _:
            return Fate()


@dataclass(slots=True)
class _Job:
    workload: Workload
    fate: Fate
    internal: bool
    name: str
    submitted_at: datetime
    deadline: datetime | None = None
    slots_at: datetime | None = None  # None: it waits in the internal queue
    placed: Mapping[str, int] = field(default_factory=dict)  # its slots of each node
    notice: Notice | None = None
    told_at: datetime | None = None
    cancelled_at: datetime | None = None
    ended: Observation | None = None

    def look(self, now: datetime) -> Observation:
        """Say how it is. The earliest of all that may end it is its end, and then stays so."""
        if self.ended is None and (end := self._end(now)) is not None:
            self.ended = end
        if self.ended is not None:
            return self.ended
        if self.slots_at is None or now < self.slots_at + self.fate.starts_after:
            return Observation(phase=Phase.STARTING)
        return Observation(
            phase=Phase.RUNNING,
            started_at=self.slots_at + self.fate.starts_after,
            nodes=tuple(self.placed),
        )

    def _end(self, now: datetime) -> Observation | None:
        if self.slots_at is None:
            if self.cancelled_at is None:
                return None
            return Observation(
                phase=Phase.EXITED,
                exited_at=self.cancelled_at,
                detail="it was cancelled before it started",
            )

        fate = self.fate
        up_at = self.slots_at + fate.starts_after
        ends: list[tuple[datetime, int | None, str | None]] = []
        if self.deadline is not None:
            ends.append((self.deadline, KILLED, "it reached its deadline and was killed"))
        if self.notice is not None and self.told_at is not None:
            kill_at = max(self.notice.stops_at, self.told_at)
            ends.append((kill_at, KILLED, "its notice was over and it was killed"))
            if self.told_at < up_at:
                ends.append((self.told_at, None, "it was stopped before it started"))
            elif fate.obeys_after is not None:
                ends.append((self.told_at + fate.obeys_after, fate.exit_code_obeying, None))
        orders = len(ends)
        if fate.fails is not None:
            ends.append((up_at, None, fate.fails))
        if fate.lasts is not None:
            ends.append((up_at + fate.lasts, fate.exit_code, None))
        if fate.lost_after is not None:
            ends.append((up_at + fate.lost_after, None, LOST))

        first = min(range(len(ends)), key=lambda i: ends[i][0], default=None)
        if first is None or ends[first][0] > now:
            return None
        at, code, detail = ends[first]
        if fate.fails is not None or at < up_at or (at == up_at and first < orders):
            # It never ran. A deadline that had passed before it was given slots ends it now.
            at = max(at, self.slots_at)
            return Observation(phase=Phase.EXITED, exited_at=at, detail=detail)
        return Observation(
            phase=Phase.LOST if detail == LOST else Phase.EXITED,
            started_at=up_at,
            exited_at=at,
            exit_code=code,
            detail=detail,
        )


class SimulatedEngine:
    """An `Engine` and an `InternalQueue` that pretends."""

    def __init__(
        self,
        nodes: Sequence[Node],
        clock: Clock,
        dice: Random | None = None,
        *,
        faults: Faults | None = None,
        fate: Callable[[Workload], Fate] = fate_of,
    ) -> None:
        """Make an empty cluster.

        Args:
            nodes: what it has; slots of one model count together, whichever node has them. What
                runs is put on as few nodes as can be, the fullest first.
            clock: moved by the test. Nothing here moves without it.
            dice: for `faults`, and for nothing else.
            faults: what goes wrong, if there are dice.
            fate: what a workload would do if nothing went wrong.
        """
        self._nodes = tuple(nodes)
        self._clock = clock
        self._dice = dice
        self._faults = faults or Faults()
        self._fate = fate
        self._jobs: dict[UUID, _Job] = {}
        # Years are simulated: what has ended is not looked through again and again.
        self._listed: dict[UUID, _Job] = {}
        self._live: dict[UUID, _Job] = {}

    # ---- the port

    def nodes(self) -> Sequence[Node]:
        self._answer()
        return self._nodes

    def set_nodes(self, nodes: Sequence[Node]) -> None:
        """Change what the cluster has, as failing and repaired nodes do. What runs runs on."""
        self._nodes = tuple(nodes)

    def observe(self, workload: UUID) -> Observation:
        self._answer()
        job = self._jobs.get(workload)
        return Observation(phase=Phase.ABSENT) if job is None else job.look(self._clock.now())

    def workloads(self) -> Mapping[UUID, Observation]:
        self._answer()
        now = self._clock.now()
        return {id_: job.look(now) for id_, job in self._listed.items() if not job.internal}

    def internal_jobs(self) -> Sequence[InternalJob]:
        self._answer()
        now = self._clock.now()
        jobs = (job for job in self._listed.values() if job.internal)
        return [_internal_job(j, j.look(now)) for j in sorted(jobs, key=lambda j: j.submitted_at)]

    def start(self, workload: Workload, *, deadline: datetime) -> bool:
        check(workload, self._nodes)
        late = self._answer_late()
        if (known := self._jobs.get(workload.id)) is not None:
            if known.internal:
                raise Invalid(f"{workload.id} is an internal job")
            return True
        if self._queue(workload.gpu_model) or self._free_for(workload) < workload.gpus:
            return False
        now = self._clock.now()
        self._add(
            _Job(
                workload=workload,
                fate=self._trouble(self._fate(workload)),
                internal=False,
                name="",
                submitted_at=now,
                deadline=deadline,
                slots_at=now,
                placed=self._place(workload),
            )
        )
        late()
        return True

    def extend(self, workload: UUID, *, deadline: datetime) -> None:
        late = self._answer_late()
        job = self._jobs.get(workload)
        if job is not None and job.look(self._clock.now()).exited_at is None:
            job.deadline = max(deadline, self._clock.now())  # it did run until now
        late()

    def stop(self, workload: UUID, *, notice: Notice) -> None:
        late = self._answer_late()
        job = self._jobs.get(workload)
        if job is None or job.look(self._clock.now()).exited_at is not None:
            return
        if job.internal:
            raise Invalid(f"{workload} is an internal job: those are cancelled")
        self._notify(job, notice)
        late()

    def logs(self, workload: UUID, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        if offset < 0 or limit < 0:
            raise Invalid(f"offset and limit cannot be negative: {offset}, {limit}")
        self._answer()
        job = self._jobs.get(workload)
        if job is None or job.look(self._clock.now()).started_at is None:
            return b""
        return job.fate.output[offset : offset + limit]

    def tick(self) -> None:
        self._answer()
        now = self._clock.now()
        self._sweep(now)
        for model in {node.gpu_model: None for node in self._nodes}:
            for job in self._queue(model):
                if job.workload.gpus > self._free_for(job.workload):
                    break  # strictly in order
                job.slots_at = now
                job.placed = self._place(job.workload)

    # ---- the internal queue, and what a test wants to know

    def submit_internal(self, job: Workload, *, name: str, submitted_at: datetime) -> None:
        check(job, self._nodes)
        if (known := self._jobs.get(job.id)) is not None:
            if not known.internal:
                raise Invalid(f"{job.id} is a lease")
            return
        # The organisation's own jobs have troubles too, but none that tests Sublet.
        fate = self._fate(job)
        self._add(
            _Job(workload=job, fate=fate, internal=True, name=name, submitted_at=submitted_at)
        )

    def cancel_internal(self, job: UUID) -> None:
        found = self._jobs.get(job)
        now = self._clock.now()
        if found is None or not found.internal or found.look(now).exited_at is not None:
            return
        if found.cancelled_at is None:
            found.cancelled_at = now
            if found.slots_at is not None:
                message = "The job was cancelled."
                stops_at = now + CANCEL_GRACE
                self._notify(
                    found,
                    Notice(reason="cancelled", message=message, noticed_at=now, stops_at=stops_at),
                )

    def notice(self, workload: UUID) -> Notice | None:
        """Return what a workload was told, as its notice file would say."""
        job = self._jobs.get(workload)
        return None if job is None else job.notice

    def held(self, gpu_model: str) -> int:
        """Return how many slots are in use now, by leases and internal jobs."""
        now = self._clock.now()
        jobs = (job for job in self._live.values() if job.workload.gpu_model == gpu_model)
        holding = (j for j in jobs if j.slots_at is not None and j.look(now).exited_at is None)
        return sum(job.workload.gpus for job in holding)

    # ---- inside

    def _add(self, job: _Job) -> None:
        id_ = job.workload.id
        self._jobs[id_] = self._listed[id_] = self._live[id_] = job

    def _sweep(self, now: datetime) -> None:
        for id_, job in list(self._live.items()):
            if job.look(now).exited_at is not None:
                del self._live[id_]
        for id_, job in list(self._listed.items()):
            if (exited_at := job.look(now).exited_at) is not None and exited_at < now - LISTED:
                del self._listed[id_]

    def _free_for(self, workload: Workload) -> int:
        """Return how many slots there are for it: of one model they count together."""
        model = workload.gpu_model
        now = self._clock.now()
        alone = workload.exclusive or any(
            job.workload.exclusive and job.workload.gpu_model == model
            for job in self._live.values()
            if job.look(now).exited_at is None
        )
        if alone:
            return sum(max(free, 0) for free in self._free_by_node(workload).values())
        return slots_of(self._nodes, model) - self.held(model)

    def _free_by_node(self, workload: Workload) -> dict[str, int]:
        """Return {node: slots for it}, of nodes that it could share, or have alone if it must."""
        free = {
            node.name: node.gpus for node in self._nodes if node.gpu_model == workload.gpu_model
        }
        now = self._clock.now()
        for job in self._live.values():
            if job.look(now).exited_at is None:
                for name, slots in job.placed.items():
                    if name not in free:
                        continue
                    alone = workload.exclusive or job.workload.exclusive
                    free[name] = 0 if alone else free[name] - slots
        return free

    def _place(self, workload: Workload) -> Mapping[str, int]:
        """Say on which nodes it runs: the fullest that holds it all, or the emptiest one by one."""
        free = self._free_by_node(workload)
        if len(free) == 1:
            return dict.fromkeys(free, workload.gpus)
        fitting = [name for name in free if free[name] >= workload.gpus]
        if fitting:
            return {min(fitting, key=lambda name: free[name]): workload.gpus}
        placed, left = {}, workload.gpus
        for name in sorted(free, key=lambda name: -free[name]):
            if (some := min(max(free[name], 0), left)) > 0:
                placed[name] = some
                left -= some
        return placed

    def _queue(self, gpu_model: str) -> list[_Job]:
        waiting = (
            job
            for job in self._live.values()
            if job.workload.gpu_model == gpu_model and job.slots_at is None and job.ended is None
        )
        return sorted((j for j in waiting if not j.cancelled_at), key=lambda j: j.submitted_at)

    def _notify(self, job: _Job, notice: Notice) -> None:
        if job.notice is None:
            job.notice, job.told_at = notice, self._clock.now()
        elif notice.stops_at < job.notice.stops_at:
            # No sooner than now: what was killed in the past would have been seen there.
            stops_at = max(notice.stops_at, self._clock.now())
            job.notice = replace(job.notice, stops_at=stops_at)

    def _happens(self, probability: float) -> bool:
        # No draw without a chance, so a fault that is off does not change the others' dice.
        return self._dice is not None and probability > 0 and self._dice.random() < probability

    def _answer(self) -> None:
        if self._happens(self._faults.unavailable):
            raise Unavailable("the simulated cluster did not answer")

    def _answer_late(self) -> Callable[[], None]:
        """Fail before a change, or return what may fail after it, when only the reply is lost."""
        if not self._happens(self._faults.unavailable):
            return _nothing
        if self._happens(0.5):
            return _reply_lost
        raise Unavailable("the simulated cluster did not answer")

    def _trouble(self, fate: Fate) -> Fate:
        """Throw the dice over a workload that starts."""
        if self._dice is None:
            return fate
        faults = self._faults
        if self._happens(faults.slow_start):
            fate = replace(fate, starts_after=faults.slow_start_most * self._dice.random())
        if self._happens(faults.failed_start):
            fate = replace(fate, fails="its node refused it")
        if self._happens(faults.lost):
            fate = replace(fate, lost_after=faults.lost_most * self._dice.random())
        if self._happens(faults.deaf):
            return replace(fate, obeys_after=None)
        if fate.obeys_after is not None:
            fate = replace(fate, obeys_after=SOON + faults.obeys_most * self._dice.random())
        return fate


def _nothing() -> None:
    pass


def _reply_lost() -> None:
    raise Unavailable("the simulated cluster's answer was lost on the way")


def _internal_job(job: _Job, seen: Observation) -> InternalJob:
    return InternalJob(
        id=job.workload.id,
        name=job.name,
        gpu_model=job.workload.gpu_model,
        gpus=job.workload.gpus,
        submitted_at=job.submitted_at,
        started_at=job.slots_at,
        exited_at=seen.exited_at,
        exit_code=seen.exit_code,
        cancelled=job.cancelled_at is not None,
    )
