"""The Slurm engine under the contract's tests, with Slurm's own queue behind the other face."""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.engine.harness import NODES, PATIENCE_SECONDS, Harness, need_sandbox
from tests.slurm.cluster import Cluster

from sublet.core.clock import Clock, SystemClock
from sublet.engine.port import InternalJob, Workload
from sublet.engine.slurm.adapter import SlurmEngine
from sublet.engine.slurm.settings import SlurmSettings

# What makes a cluster have the contract's nodes.
NODE_OPTIONS = tuple(
    word
    for node in NODES
    for gpus, cpus in [(0, node.gpus) if node.gpu_model == "cpu" else (node.gpus, 32)]
    for word in (
        "--node",
        f"{node.name}:{node.gpu_model}:{gpus}:{cpus}:{node.memory_bytes >> 20}",
    )
)


class SubmittingEngine(SlurmEngine):
    """What users do with sbatch and scancel, in the words of the engines that feed their queue."""

    def __init__(
        self, cluster: Cluster, root: Path, *, sandboxed: bool, clock: Clock, **settings: Any
    ) -> None:
        self.cluster = cluster
        self.root = root
        (root / "internal").mkdir(parents=True, exist_ok=True)
        super().__init__(
            SlurmSettings(shared=root / "shared", conf=cluster.conf, **settings),
            clock=clock,
            sandbox=need_sandbox() if sandboxed else None,
            log_bytes=1 << 20,
        )

    def tick(self) -> None:
        super().tick()
        self.refresh()

    def internal_jobs(self) -> Sequence[InternalJob]:
        return [replace(job, id=UUID(job.name)) for job in super().internal_jobs()]

    def submit_internal(
        self,
        job: Workload,
        *,
        name: str,  # noqa: ARG002 -- the job's name is its id here
        submitted_at: datetime,  # noqa: ARG002 -- Slurm looks at its own clock
    ) -> None:
        self.tick()  # who never ticked does not lead, and forgets what it saw when it begins to
        kind = f"--cpus-per-task={job.gpus}" if job.gpu_model == "cpu" else f"--gres=gpu:{job.gpus}"
        self.cluster.run(
            "sbatch", "-p", "internal", f"--job-name={job.id}", kind,
            f"--output={self.root}/internal/{job.id}", f"--wrap={shlex.join(job.command)}",
        )  # fmt: skip
        self.refresh()

    def cancel_internal(self, job: UUID) -> None:
        self.cluster.run("scancel", f"--name={job}")

    def logs(self, workload: UUID, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        internal = self.root / "internal" / str(workload)
        if internal.exists():
            return internal.read_bytes()[offset : offset + limit]
        return super().logs(workload, offset=offset, limit=limit)


class SlurmHarness(Harness):
    engine: SubmittingEngine
    # Slurm's instants are whole seconds, rounded up: they may lie this far ahead.
    grain = timedelta(seconds=1)
    start_seconds = 6.0
    feeds_queue = False

    def __init__(
        self, cluster: Cluster, root: Path, *, sandboxed: bool, clock: Clock, **settings: Any
    ) -> None:
        self.cluster = cluster
        self.root = root
        self.clock = clock
        self.settings = settings
        super().__init__(self.another(sandboxed=sandboxed), clock, sandboxed=sandboxed)

    def another(self, *, sandboxed: bool | None = None) -> SubmittingEngine:
        """Make a new engine on the same folder, as a control plane does that was killed."""
        sandboxed = self.sandboxed if sandboxed is None else sandboxed
        return SubmittingEngine(
            self.cluster, self.root, sandboxed=sandboxed, clock=self.clock, **self.settings
        )

    def workload(self, *command: str, gpus: int = 1, **more: object) -> Workload:
        made = super().workload(*command, gpus=gpus, **more)
        if made.sandboxed == self.sandboxed:
            return made
        return replace(made, sandboxed=self.sandboxed)

    def wait_until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            self.engine.tick()
            if what():
                return
            time.sleep(0.1)
        raise AssertionError("it never came about")


@contextmanager
def slurm(
    cluster: Cluster, root: Path, *, sandboxed: bool, clock: Clock | None = None, **settings: Any
) -> Iterator[SlurmHarness]:
    """Yield one on a cluster, with settings as in `SlurmSettings`; the cluster is empty after."""
    clock = clock or SystemClock()
    try:
        yield SlurmHarness(cluster, root, sandboxed=sandboxed, clock=clock, **settings)
    finally:
        cluster.clear()
