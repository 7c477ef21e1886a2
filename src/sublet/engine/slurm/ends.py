"""How a lease ended, put together from what Slurm recorded and what its agent wrote."""

from datetime import datetime
from pathlib import Path
from typing import Final

from sublet.engine import records
from sublet.engine.port import Observation, Phase
from sublet.engine.records import Status
from sublet.engine.slurm import folder as shared

_DETAILS: Final = {
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not come up",
    "CANCELLED": "its job was cancelled in Slurm",
    "TIMEOUT": "it reached the time limit of its partition in Slurm",
    "OUT_OF_MEMORY": "it used more memory than its limit and was killed",
    "DEADLINE": "it reached its deadline in Slurm",
    "PREEMPTED": "Slurm took its GPUs for an internal job",
}
_NODE_GONE: Final = frozenset({"NODE_FAIL", "BOOT_FAIL"})


def end_of(
    folder: Path,
    *,
    state: str,
    started_at: datetime | None,
    ended_at: datetime,
    code: int | None,
    preempted: bool | None,
) -> Observation:
    """Return the last thing to say of a lease.

    Instants are Slurm's: a lease is charged the seconds that Slurm recorded. The agent knows
    better how the command itself ended; and whether it ever came up, which Slurm cannot know.

    Args:
        folder: the lease's, as its agent left it.
        state: the job's last state in Slurm.
        started_at: when it was given its nodes, on our clock.
        ended_at: when it had left them, on our clock.
        code: its exit code in Slurm's eyes.
        preempted: whether Slurm says that it told the job to go; None: it cannot be asked. Its
            SIGTERM alone does not tell: an administrator's scancel and a time limit send it, too.
    """
    status = records.read_status(folder)
    up = status.started_at is not None
    heard_at = shared.preempted_at(folder)
    told_at = None
    if preempted or state == "PREEMPTED":
        told_at = heard_at or ended_at
    elif preempted is None and state not in {"CANCELLED", "TIMEOUT"}:
        told_at = heard_at
    unseen = status.exited_at is None and state not in {"COMPLETED", "FAILED"}
    lost = up and (unseen or state in _NODE_GONE)
    notice = records.read_notice(folder)
    ours = notice is not None and (heard_at is None or notice.noticed_at < heard_at)
    by_hand = up and state == "CANCELLED" and told_at is None and not ours
    return Observation(
        phase=Phase.LOST if lost or by_hand else Phase.EXITED,
        started_at=started_at if up else None,
        exited_at=ended_at,
        exit_code=None if lost or by_hand else _exit_code(folder, status, code),
        detail=_DETAILS[state]
        if by_hand
        else shared.failed_on(folder)[1] or status.detail or _DETAILS.get(state),
        reclaimed_at=told_at,
    )


def _exit_code(folder: Path, status: Status, code: int | None) -> int | None:
    failed, _ = shared.failed_on(folder)  # of several nodes; what is written is the first one's
    if failed is not None:
        return failed
    return code if status.exited_at is None else status.exit_code
