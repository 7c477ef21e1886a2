"""Which GPUs exist, and what may be lent of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sublet.engine.port import InternalJob, Node

# The most that an operator may let an internal job wait.
LONGEST_NOTICE_SECONDS: Final = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One GPU model at one site, and the operator's policy for it."""

    name: str  # the GPU model
    gpus: int  # healthy now
    notice_seconds: int  # the longest an internal job may wait for leases to go
    lendable: bool
    lending_limit: int | None  # most GPUs ever lent; None: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What internal jobs hold and wait for in one pool, in GPUs."""

    running: int
    pending: int


def gpus_by_pool(nodes: Sequence[Node]) -> dict[str, int]:
    """Return {pool: healthy GPUs} of what the engine reports."""
    pools: dict[str, int] = {}
    for node in nodes:
        pools[node.gpu_model] = pools.get(node.gpu_model, 0) + node.gpus
    return pools


def demand_of(jobs: Sequence[InternalJob], pool: str) -> Demand:
    """Return what internal jobs hold and wait for in `pool`."""
    ours = [job for job in jobs if job.gpu_model == pool]
    return Demand(
        running=sum(job.gpus for job in ours if job.running),
        pending=sum(job.gpus for job in ours if job.pending),
    )


def demand_by_pool(jobs: Sequence[InternalJob]) -> dict[str, Demand]:
    """Return what internal jobs hold and wait for in every pool that they name, in one pass."""
    running: dict[str, int] = {}
    pending: dict[str, int] = {}
    for job in jobs:
        if job.running:
            running[job.gpu_model] = running.get(job.gpu_model, 0) + job.gpus
        elif job.pending:
            pending[job.gpu_model] = pending.get(job.gpu_model, 0) + job.gpus
    return {
        pool: Demand(running=running.get(pool, 0), pending=pending.get(pool, 0))
        for pool in running.keys() | pending.keys()
    }
