"""Engines under test, behind one small face: real ones are polled, the simulated one is moved."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import pytest

from sublet.core.clock import Clock, ManualClock, SystemClock
from sublet.core.ids import new_id
from sublet.engine import records
from sublet.engine.local import LocalEngine
from sublet.engine.port import Engine, InternalQueue, Node, Notice, Phase, Workload
from sublet.engine.processes import survivors
from sublet.engine.records import Due
from sublet.engine.sandbox import Sandbox, find_sandbox
from sublet.engine.simulated import Fate, SimulatedEngine, fate_of

GIB = 1 << 30
NODES = (
    # More slots than cores, so that nothing is pinned and every machine can run the tests.
    Node(name="here", gpu_model="cpu", gpus=64, memory_bytes=GIB),
    Node(name="here-toy", gpu_model="toy", gpus=4, memory_bytes=GIB),
)
DEAF = ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
POLITE = ("sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")
PATIENCE_SECONDS = 90.0


@functools.cache
def sandbox() -> tuple[Sandbox | None, str]:
    return find_sandbox()


def need_sandbox() -> Sandbox:
    found, why = sandbox()
    if found is None:
        pytest.skip(f"no sandbox can be had here: {why}")
    return found


def notice(at: datetime, *, grace_seconds: float = 20.0, reason: str = "reclaimed") -> Notice:
    stops_at = at + timedelta(seconds=grace_seconds)
    return Notice(reason=reason, message="Please go.", noticed_at=at, stops_at=stops_at)


class TestedEngine(Engine, InternalQueue, Protocol):
    """Both faces of the engines that feed their own queue."""


class Harness:
    # How far the instants of an engine may lie ahead of the clock.
    grain = timedelta(0)
    # How long a start may take where another scheduler does it, on a busy machine.
    start_seconds = 0.0
    # Whether the internal queue is the engine's own: Slurm has one that is not ours to feed.
    feeds_queue = True

    def __init__(self, engine: TestedEngine, clock: Clock, *, sandboxed: bool) -> None:
        self.engine = engine
        self.clock = clock
        self.sandboxed = sandboxed

    def wait_until(self, what: Callable[[], bool]) -> None:
        raise NotImplementedError

    def in_(self, seconds: float) -> datetime:
        return self.clock.now() + timedelta(seconds=seconds)

    def workload(self, *command: str, gpus: int = 1, **more: Any) -> Workload:
        kind: dict[str, Any] = {"gpu_model": "toy", "sandboxed": self.sandboxed} | more
        return Workload(id=new_id(), gpus=gpus, command=command, **kind)

    def start(self, *command: str, seconds: float = 60.0, **more: Any) -> UUID:
        """Start a command that must find room, and let it run `seconds` at most."""
        workload = self.workload(*command, **more)
        assert self.engine.start(workload, deadline=self.in_(seconds))
        return workload.id

    def submit(self, *command: str, name: str = "job", **more: Any) -> UUID:
        job = self.workload(*command, **more)
        self.engine.submit_internal(job, name=name, submitted_at=self.clock.now())
        return job.id

    def phase(self, id_: UUID) -> Phase:
        return self.engine.observe(id_).phase

    def wait_for(self, id_: UUID, phase: Phase) -> None:
        self.wait_until(lambda: self.phase(id_) is phase)

    def wait_for_log(self, id_: UUID, text: bytes) -> None:
        self.wait_until(lambda: text in self.engine.logs(id_))

    def output(self, *command: str, **more: Any) -> str:
        """Run a command to its end and return what it printed."""
        id_ = self.start(*command, **more)
        self.wait_until(lambda: self.engine.observe(id_).exited_at is not None)
        return self.engine.logs(id_).decode()


class SimulatedHarness(Harness):
    def __init__(self) -> None:
        self.manual = ManualClock(datetime(2026, 1, 1, 12, tzinfo=UTC))
        super().__init__(
            SimulatedEngine(NODES, self.manual, fate=_fate), self.manual, sandboxed=True
        )

    def wait_until(self, what: Callable[[], bool]) -> None:
        for _ in range(4000):
            self.engine.tick()
            if what():
                return
            self.manual.advance(timedelta(milliseconds=50))
        raise AssertionError("it never came about")


def _fate(workload: Workload) -> Fate:
    """Do as a shell would with the few scripts that the contract's tests use."""
    match tuple(workload.command):
        case command if command == DEAF:
            return Fate(obeys_after=None, output=b"up\n")
        case command if command == POLITE:
            return Fate(exit_code_obeying=7, output=b"up\n")
        case ("sh", "-c", "exit 3"):
            return Fate(lasts=timedelta(0), exit_code=3)
        case ("echo", word):
            return Fate(lasts=timedelta(0), output=f"{word}\n".encode())
        case _:
            return fate_of(workload)


class LocalHarness(Harness):
    engine: LocalEngine

    def __init__(self, root: Path, *, sandboxed: bool, log_bytes: int = 1 << 20) -> None:
        self.root = root
        self.log_bytes = log_bytes
        super().__init__(self.another(sandboxed=sandboxed), SystemClock(), sandboxed=sandboxed)

    def another(self, *, sandboxed: bool | None = None) -> LocalEngine:
        """Make a new engine on the same folder, as a control plane does that was killed."""
        sandboxed = self.sandboxed if sandboxed is None else sandboxed
        return LocalEngine(
            self.root,
            nodes=NODES,
            clock=SystemClock(),
            sandbox=need_sandbox() if sandboxed else None,
            unsafe_no_sandbox=False,
            log_bytes=self.log_bytes,
        )

    def wait_until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            self.engine.tick()
            if what():
                return
            time.sleep(0.02)
        raise AssertionError("it never came about")

    def folder(self, id_: UUID) -> Path:
        here = self.root / str(id_)
        return here if here.exists() else self.root / "ended" / str(id_)

    def ids(self) -> Sequence[UUID]:
        names = [path.parent.name for path in self.root.glob("**/spec.json")]
        return [UUID(name) for name in names if not name.startswith(".")]

    def close(self) -> None:
        """End everything by its fence, and insist that nothing is left."""
        for job in self.engine.internal_jobs():
            self.engine.cancel_internal(job.id)

        def all_dead() -> bool:
            alive = self.engine.alive()
            for id_ in alive:
                long_ago = Due(instant=datetime(2000, 1, 1, tzinfo=UTC), steady_seconds=0.0)
                records.write_deadline(self.root / str(id_), long_ago)
            return not alive

        self.wait_until(all_dead)
        assert [id_ for id_ in self.ids() if survivors(id_)] == []


@contextmanager
def local(root: Path, *, sandboxed: bool, log_bytes: int = 1 << 20) -> Iterator[LocalHarness]:
    harness = LocalHarness(root, sandboxed=sandboxed, log_bytes=log_bytes)
    try:
        yield harness
    finally:
        harness.close()
