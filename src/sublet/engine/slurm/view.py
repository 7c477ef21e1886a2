"""From what Slurm shows to what the port tells: pure, and the same for every version."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from uuid import UUID

from sublet.engine.port import Node, Workload
from sublet.engine.slurm.reading import WANTING, SlurmJob, SlurmNode

LEASE_NAME: Final = re.compile(r"sublet-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
# On these Slurm starts jobs, or would once something else has left.
_HEALTHY: Final = frozenset(
    {"idle", "mixed", "allocated", "alloc", "completing", "comp", "planned", "plnd", "reserved",
     "resv", "unknown", "unk", "mix", "blocked"}
)  # fmt: skip
# What runs there runs on, and nothing new starts.
_LEAVING: Final = frozenset({"draining", "drng", "failing", "failg", "maint", "reboot", "perfctrs"})


def job_name(lease: UUID) -> str:
    return f"sublet-{lease}"


def lease_of(job: SlurmJob) -> UUID | None:
    """Return whose lease a job is, by its name; None for everybody else's jobs."""
    found = LEASE_NAME.fullmatch(job.name)
    return UUID(found[1]) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What jobs hold on each node. From the queue alone: what sinfo says of it may be older."""

    gpus: Mapping[tuple[str, str], int]  # (node, model) → GPUs
    cpus: Mapping[str, int]


def use_of(nodes: Iterable[SlurmNode], jobs: Iterable[SlurmJob]) -> Use:
    models: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        models[node.name].append(node.gpu_model)
    gpus: dict[tuple[str, str], int] = defaultdict(int)
    cpus: dict[str, int] = defaultdict(int)
    for job in jobs:
        if not job.holds or not job.nodes:
            continue
        for name in job.nodes:
            cores = -(-job.cpus // len(job.nodes))
            cpus[name] += cores
            if "cpu" in models.get(name, ()):
                gpus[name, "cpu"] += cores
            elif job.gpus and name in models:
                model = job.gpu_model if job.gpu_model in models[name] else models[name][0]
                gpus[name, model] += -(-job.gpus // len(job.nodes))
    return Use(gpus=gpus, cpus=cpus)


def takes_jobs(node: SlurmNode) -> bool:
    """Say whether Slurm starts jobs there, now or once something else has left."""
    return node.state in _HEALTHY


def nodes_of(
    nodes: Sequence[SlurmNode],
    jobs: Sequence[SlurmJob],
    blocks: Mapping[str, str] = MappingProxyType({}),
) -> list[Node]:
    """Return what may be lent: on a node that is leaving or out of cores, only what is in use.

    `blocks` has the block of each node, where the cluster has a topology.
    """
    use = use_of(nodes, jobs)
    return [
        Node(
            name=node.name,
            gpu_model=node.gpu_model,
            gpus=healthy_gpus(node, use),
            memory_bytes=node.memory_bytes,
            block=blocks.get(node.name),
        )
        for node in nodes
    ]


def healthy_gpus(node: SlurmNode, use: Use) -> int:
    used = min(use.gpus.get((node.name, node.gpu_model), 0), node.gpus)
    if node.state in _LEAVING:
        return used
    if node.state not in _HEALTHY:
        return 0
    # Somebody has all the cores, though not all the GPUs: the rest cannot be given to anybody.
    return node.gpus if use.cpus.get(node.name, 0) < node.cpus else used


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one internal job holds or waits for, of what may be lent."""

    job: SlurmJob
    gpu_model: str
    gpus: int
    waits: bool


def internal_demand(
    jobs: Iterable[SlurmJob],
    nodes: Sequence[SlurmNode],
    *,
    partition: str,
    wanting: frozenset[str] = WANTING,
) -> list[Demand]:
    """Return the jobs that are not ours and count: that hold lendable GPUs, or wait for some.

    A job that waits for anything else than GPUs (another job, its time, a limit of its own, a
    licence, somebody who holds it) is left out. So is what waits in our own partition.
    """
    where: dict[str, set[str]] = defaultdict(set)
    size: dict[str, int] = defaultdict(int)
    for node in nodes:
        where[node.name].add(node.gpu_model)
        size[node.gpu_model] += node.gpus
    # The model of a job that names none: the commonest, for want of knowing which it will get.
    by_size = sorted(size, key=lambda model: (model == "cpu", -size[model]))
    found = []
    for job in jobs:
        if lease_of(job) is not None or job.ended:
            continue
        kind = "gpu" if job.gpus else "cpu"
        if job.holds:
            inside = [name for name in job.nodes if name in where]
            model = _model(job, kind, {m for name in inside for m in where[name]}, by_size)
            amount = job.gpus or job.cpus
            if not inside or model is None or not amount:
                continue
            share = -(-amount * len(inside) // len(job.nodes))
            found.append(Demand(job=job, gpu_model=model, gpus=share, waits=False))
        elif wants(job, partition=partition, wanting=wanting):
            model = _model(job, kind, set(by_size), by_size)
            if model is not None and (amount := job.gpus or job.cpus):
                found.append(Demand(job=job, gpu_model=model, gpus=amount, waits=True))
    return found


def wants(job: SlurmJob, *, partition: str, wanting: frozenset[str] = WANTING) -> bool:
    """Say whether a job waits for GPUs and for nothing else."""
    return (
        job.state == "PENDING"
        and job.reason in wanting
        # A dependency or a begin time in the future: Slurm gives no instant yet, or a later one.
        and job.eligible_at is not None
        and set(job.partitions) != {partition}
    )


def _model(job: SlurmJob, kind: str, models: set[str], by_size: Sequence[str]) -> str | None:
    if job.gpu_model is not None:
        return job.gpu_model if job.gpu_model in models else None
    fitting = [m for m in by_size if m in models and (m == "cpu") == (kind == "cpu")]
    return fitting[0] if fitting else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a lease is spread: so many nodes, so many GPUs and cores on each."""

    nodes: int
    gpus_a_node: int
    cpus_a_node: int
    memory_a_node_bytes: int


def amount_of(job: SlurmJob, gpu_model: str) -> int:
    """Return how many slots of this model a job has or asks for."""
    if gpu_model == "cpu":
        return 0 if job.gpus else job.cpus
    return job.gpus if job.gpu_model in {None, gpu_model} else 0


def free_by_node(
    nodes: Sequence[SlurmNode], jobs: Sequence[SlurmJob], gpu_model: str
) -> dict[str, int]:
    """Return {node: GPUs of this model that nobody holds} of the nodes that take new jobs."""
    use = use_of(nodes, jobs)
    return {
        node.name: max(healthy_gpus(node, use) - use.gpus.get((node.name, gpu_model), 0), 0)
        for node in nodes
        if node.gpu_model == gpu_model and node.state not in _LEAVING
    }


def lay_out(
    workload: Workload,
    nodes: Sequence[SlurmNode],
    free: Mapping[str, int],
    *,
    unplaced: Sequence[int] = (),
) -> Layout | None:
    """Say where a lease fits now; None if nowhere.

    Args:
        workload: the lease.
        nodes: of the cluster.
        free: {node: GPUs of its model that nobody holds}.
        unplaced: GPUs of leases that were submitted before it and are on no node yet.
    """
    kind = [node for node in nodes if node.gpu_model == workload.gpu_model and node.gpus]
    if not kind:
        return None
    largest = max(kind, key=lambda node: node.gpus)
    if workload.gpus <= largest.gpus:
        count, each = 1, workload.gpus
    else:
        # Whole nodes, or as many of like parts as there must be.
        count = next(
            n for n in range(-(-workload.gpus // largest.gpus), workload.gpus + 1)
            if workload.gpus % n == 0
        )  # fmt: skip
        each = workload.gpus // count
    room = {node.name: node.gpus if workload.exclusive else each for node in kind}
    fitting = sum(free.get(name, 0) >= room[name] for name in room)
    if workload.exclusive:  # each of them may take a node that is empty still
        fitting -= sum(-(-gpus // largest.gpus) for gpus in unplaced)
    if fitting < count:
        return None
    cpus = each if workload.gpu_model == "cpu" else max(largest.cpus * each // largest.gpus, 1)
    return Layout(
        nodes=count,
        gpus_a_node=each,
        cpus_a_node=cpus,
        memory_a_node_bytes=largest.memory_bytes * each // largest.gpus,
    )
