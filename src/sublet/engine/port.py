"""What we ask of whatever runs the work: local, simulated, Slurm, later Kubernetes.

An engine is the cluster beneath us. It knows nothing of money, tenants or leases: it has
nodes with slots, runs workloads on them, and has a queue of internal jobs that are none of
our business but come first. Every call is safe to repeat; `start` and `stop` return before
they take effect; what became of them is read with `observe`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID


class Phase(StrEnum):
    ABSENT = "absent"  # the engine has no trace of it: never started, or forgotten
    STARTING = "starting"  # accepted; its process is not up yet
    RUNNING = "running"  # its process is up, and holds its slots
    EXITED = "exited"  # its process ended by itself or was stopped; holds nothing
    LOST = "lost"  # it was up and is gone without an exit status; holds nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine, or one group of like GPUs in a machine."""

    name: str
    gpu_model: str  # "cpu" where slots are cores
    gpus: int  # healthy slots
    memory_bytes: int
    block: str | None = None  # rack, NVLink domain or switch that it shares with its neighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A command to run. Files are placed in its working folder before it starts."""

    id: UUID
    gpu_model: str
    gpus: int
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)  # relative path → content
    sandboxed: bool = True  # False only for the operator's own: replicas and internal jobs
    network: bool = False  # only asked of a sandboxed workload; others have it anyway
    memory_bytes: int | None = None  # None: no limit
    processes: int | None = None  # None: no limit
    image: str | None = None  # the name of the image that it runs on; None: the node's own system
    notice_url: str | None = None  # told to the workload as SUBLET_NOTICE_URL
    tunnel_url: str | None = None  # its node dials there, to join it to who connects
    window: UUID | None = None  # the window that it is leased from
    exclusive: bool = False  # nobody else has anything on its nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the engine knows of one workload. Instants are the engine's own, in UTC."""

    phase: Phase
    started_at: datetime | None = None  # its process came up
    exited_at: datetime | None = None  # its slots came free
    exit_code: int | None = None  # 128 + signal number when a signal ended it
    detail: str | None = None  # a plain sentence on why it did not start or was lost
    nodes: Sequence[str] = ()  # whose slots it holds, by name, where the engine can tell
    address: str | None = None  # host name or number of its first node; None: this machine
    reclaimed_at: datetime | None = None  # the cluster itself told it to go, for a job of its own
    seen_at: datetime | None = None  # until when it is known to have run; None: until it was asked


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalJob:
    """A job of the organisation's own, as the cluster's queue shows it."""

    id: UUID
    name: str
    gpu_model: str
    gpus: int
    submitted_at: datetime
    started_at: datetime | None = None
    exited_at: datetime | None = None
    exit_code: int | None = None
    cancelled: bool = False

    @property
    def pending(self) -> bool:
        return self.started_at is None and self.exited_at is None

    @property
    def running(self) -> bool:
        return self.started_at is not None and self.exited_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What a workload is told when it must go. Written as JSON to its notice file."""

    reason: str  # an EndReason's value
    message: str  # for a person
    noticed_at: datetime
    stops_at: datetime  # it is killed then


class Engine(Protocol):
    """The port.

    Raises (every call):
        Unavailable: the cluster did not answer; nothing is known to have changed.
    """

    def nodes(self) -> Sequence[Node]: ...

    def observe(self, workload: UUID) -> Observation: ...

    def workloads(self) -> Mapping[UUID, Observation]:
        """Return every workload of ours that the engine still knows, internal jobs excluded."""
        ...

    def internal_jobs(self) -> Sequence[InternalJob]:
        """Return internal jobs pending, running, and ended not long ago; oldest first."""
        ...

    def start(self, workload: Workload, *, deadline: datetime) -> bool:
        """Start `workload` unless it was started before; it is killed at `deadline`.

        Returns:
            False when there are no free slots for it now, or an internal job waits for
            them: nothing happened, ask again later.

        Raises:
            Invalid: it can never start, such as a command that cannot be run here.
        """
        ...

    def extend(self, workload: UUID, *, deadline: datetime) -> None:
        """Move the instant at which the engine itself kills the workload. Later calls win."""
        ...

    def stop(self, workload: UUID, *, notice: Notice) -> None:
        """Tell the workload to go (SIGTERM and the notice file), and kill it at `stops_at`.

        The first call's notice stands; a repeat changes nothing, except that an earlier
        `stops_at` brings the kill forward.
        """
        ...

    def logs(self, workload: UUID, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """Return up to `limit` bytes of stdout and stderr from `offset`; b"" at the end."""
        ...

    def tick(self) -> None:
        """Let the engine do what it does by itself: start internal jobs, notice ends."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """GPUs that were sold from one instant to another, whether leases run on them or not."""

    id: UUID
    gpu_model: str
    gpus: int
    starts_at: datetime
    ends_at: datetime  # half-open


class Reserving(Protocol):
    """An engine whose cluster can set the GPUs of windows aside by itself: Slurm."""

    def reserve(self, windows: Sequence[Window]) -> None:
        """Make the cluster's reservations agree with the windows that stand. Safe to repeat.

        Raises:
            Unavailable: the cluster did not answer; ask again.
        """
        ...


class InternalQueue(Protocol):
    """An engine whose internal queue is ours to feed: local and simulated, never Slurm."""

    def submit_internal(self, job: Workload, *, name: str, submitted_at: datetime) -> None: ...

    def cancel_internal(self, job: UUID) -> None: ...
