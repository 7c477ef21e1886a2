"""What sbatch is told of a lease."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from sublet.engine.port import Workload
from sublet.engine.slurm import view
from sublet.engine.slurm.settings import SlurmSettings
from sublet.engine.slurm.view import Layout


def options(
    workload: Workload,
    layout: Layout,
    *,
    settings: SlurmSettings,
    here: Path,
    agent: Path,
    reservations: Sequence[str] = (),
    minutes: int | None = None,
) -> list[str]:
    """Return sbatch's options: the job's name and comment carry the lease's id."""
    command = [settings.python, "-I", "-S", str(agent), str(here)]
    if layout.nodes > 1:
        command += ["--nodes", str(layout.nodes)]
    found = [
        "--parsable", "--export=ALL", "--no-requeue",
        f"--job-name={view.job_name(workload.id)}", f"--comment=sublet lease {workload.id}",
        f"--partition={settings.partition}",
        f"--nodes={layout.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={layout.cpus_a_node}",
        f"--mem={layout.memory_a_node_bytes >> 20}M",
        # Slurm's own notice goes to the agent alone, and not to the tenant's processes: it tells
        # them, and lets none be killed before the notice is over.
        "--signal=B:TERM@60",
        f"--output={here}/slurm.log", "--open-mode=append", f"--chdir={here}",
    ]  # fmt: skip
    if workload.gpu_model != "cpu":
        model = "" if workload.gpu_model == "gpu" else f"{workload.gpu_model}:"
        found.append(f"--gres=gpu:{model}{layout.gpus_a_node}")
    if workload.exclusive:
        found.append("--exclusive")
    if settings.account is not None:
        found.append(f"--account={settings.account}")
    if settings.qos is not None:
        found.append(f"--qos={settings.qos}")
    if reservations:
        found.append(f"--reservation={','.join(reservations)}")
    if minutes is not None:
        found.append(f"--time={minutes}")
    return [*found, f"--wrap=exec {shlex.join(command)}"]
