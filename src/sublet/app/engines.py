"""Building the engine that this instance runs on: the one place that knows them all."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sublet.config import Config
from sublet.core.clock import Clock
from sublet.engine.hardware import find_gpus, find_nodes
from sublet.engine.images import Images
from sublet.engine.local import LocalEngine
from sublet.engine.port import Engine, InternalQueue, Reserving
from sublet.engine.sandbox import Sandbox, find_sandbox
from sublet.engine.slurm.adapter import SlurmEngine
from sublet.engine.slurm.settings import load_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An engine, and what only some engines have."""

    engine: Engine
    reserving: Reserving | None  # None where nobody but us sets GPUs of windows aside
    queue: InternalQueue | None  # None where the cluster's own queue takes internal jobs
    confines: bool  # tenants' commands run in the sandbox
    refuses_commands: str | None  # why no tenant's command may run here, or None
    drained: Callable[[], bool]  # nothing that was ours is left
    cancel_internal_jobs: Callable[[], None]  # those that run, where they are ours to cancel


def home_of_engine(config: Config) -> Path:
    """Return the folder whose engine it is, by which two control planes know that theirs is one.

    Raises:
        Misconfigured: the settings of the cluster cannot be used.
    """
    return config.data / "engine" if config.slurm is None else load_settings(config.slurm).shared


def build_engine(config: Config, *, clock: Clock) -> Built:
    """Build the engine that `config` names.

    Raises:
        Misconfigured: its settings cannot be used.
        Unavailable: the cluster, or its shared folder, does not answer.
    """
    sandbox, why_not = find_sandbox()
    if sandbox is None:
        log.warning("sandbox.missing", extra={"reason": why_not})
    refuses = why_not if sandbox is None and not config.unsafe_no_sandbox else None
    images = None if config.images is None else Images(root=config.images)
    if config.slurm is not None:
        engine = SlurmEngine(
            load_settings(config.slurm),
            clock=clock,
            sandbox=sandbox,
            unsafe_no_sandbox=config.unsafe_no_sandbox,
            images=images,
        )
        return Built(
            engine=engine,
            reserving=engine,
            queue=None,
            confines=sandbox is not None,
            refuses_commands=refuses,
            drained=lambda: True,  # its jobs are leases, and the loop waits for those
            cancel_internal_jobs=lambda: None,
        )
    return _local(config, clock=clock, sandbox=sandbox, refuses=refuses, images=images)


def _local(
    config: Config,
    *,
    clock: Clock,
    sandbox: Sandbox | None,
    refuses: str | None,
    images: Images | None,
) -> Built:
    engine = LocalEngine(
        config.data / "engine",
        nodes=find_nodes(cpu_slots=config.slots),
        gpus=find_gpus(),
        clock=clock,
        sandbox=sandbox,
        unsafe_no_sandbox=config.unsafe_no_sandbox,
        images=images,
        kept=timedelta(days=config.keep_logs_days),
    )

    def cancel_internal_jobs() -> None:
        for job in engine.internal_jobs():
            if job.running:
                engine.cancel_internal(job.id)

    return Built(
        engine=engine,
        reserving=None,
        queue=engine,
        confines=sandbox is not None,
        refuses_commands=refuses,
        drained=lambda: not engine.alive(),
        cancel_internal_jobs=cancel_internal_jobs,
    )
