"""What Slurm prints, read into values: JSON of the versions known, or columns.

Slurm cuts instants down to whole seconds. We round all of them up: differences stay what
Slurm recorded, and nothing lies before its cause on a clock that knows fractions.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sublet.core.errors import Unavailable
from sublet.engine.slurm.pieces import (
    UP,
    Unknown,
    exit_code_of,
    expand,
    gpus_of,
    gres_of,
    instant,
    less,
    reason_of,
    tres_of,
    whole,
)

COLUMNS: Final = (
    "JobArrayID", "State", "Reason", "Partition", "SubmitTime", "EligibleTime", "StartTime",
    "EndTime", "PreemptTime", "tres-alloc", "tres-per-node", "tres-per-job", "tres-per-task",
    "NumNodes", "NumTasks", "NodeList", "exit_code", "RestartCnt", "Name",
)  # fmt: skip
NODE_COLUMNS: Final = (
    "NodeList", "StateLong", "Gres", "CPUsState", "Memory", "NodeAddr", "Reason",
)  # fmt: skip
# In these a job has its nodes, whatever else it does.
HOLDING: Final = frozenset(
    {"RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT",
     "STOPPED"}
)  # fmt: skip
WAITING: Final = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
# What a pending job says while it waits for GPUs, and for nothing else.
WANTING: Final = frozenset({"None", "Resources", "Priority"})
# No cluster is so large that more of one array's tasks would change a decision.
MOST_TASKS: Final = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """One job, or one task of an array, as Slurm's queue shows it."""

    key: str  # '17', or '17_3' of an array: what Slurm's commands take, too
    name: str
    partitions: Sequence[str]
    state: str
    reason: str
    submitted_at: datetime
    eligible_at: datetime | None  # None: it may not start yet, such as while it depends on another
    started_at: datetime | None
    ended_at: datetime | None
    preempted: bool  # Slurm itself told it to go; of the instant it shows only the end of grace
    gpus: int
    gpu_model: str | None  # None: whichever its nodes have
    cpus: int
    nodes: Sequence[str]
    exit_code: int | None
    restarts: int

    @property
    def holds(self) -> bool:
        return self.state in HOLDING

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def ended(self) -> bool:
        return not self.holds and not self.waits

    def earlier(self, by: timedelta) -> "SlurmJob":
        """Return it on a clock that Slurm's is so far ahead of."""
        return self if not by else replace(
            self,
            submitted_at=self.submitted_at - by,
            eligible_at=less(self.eligible_at, by),
            started_at=less(self.started_at, by),
            ended_at=less(self.ended_at, by),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmNode:
    """The GPUs of one model in one node; or its cores, where it has no GPU."""

    name: str
    state: str  # without the marks that sinfo appends
    gpu_model: str
    gpus: int
    cpus: int
    memory_bytes: int
    address: str  # by which others reach it
    reason: str


# ---- columns


def job_format() -> str:
    return ",".join(f"{column}:0|" for column in COLUMNS[:-1]) + f",{COLUMNS[-1]}:0"


def node_format() -> str:
    return ",".join(f"{column}:0|" for column in NODE_COLUMNS[:-1]) + f",{NODE_COLUMNS[-1]}:0"


def read_jobs(text: str) -> list[SlurmJob]:
    """Read `squeue -h -O` with `job_format()`.

    Raises:
        Unknown: a line does not have the columns that were asked for.
    """
    jobs: list[SlurmJob] = []
    for line in text.splitlines():
        values = line.split("|", len(COLUMNS) - 1)
        if len(values) < len(COLUMNS):
            raise Unknown(f"squeue printed {line[:80]!r}")
        (
            array_id, state, reason, partition, submit, eligible, start, end, preempt, tres, per_node,
            per_job, per_task, node_count, task_count, node_list, exit_code, restarts, name,
        ) = values  # fmt: skip
        gpus, model = gpus_of(
            tres, per_node=per_node, per_job=per_job, per_task=per_task,
            nodes=whole(node_count), tasks=whole(task_count),
        )  # fmt: skip
        job = SlurmJob(
            key=array_id,
            name=name,
            partitions=tuple(partition.split(",")),
            state=state,
            reason=reason_of(reason),
            submitted_at=instant(submit) or datetime.fromtimestamp(0, UTC),
            eligible_at=instant(eligible),
            started_at=instant(start),
            ended_at=instant(end),
            preempted=instant(preempt) is not None,
            gpus=gpus,
            gpu_model=model,
            cpus=tres_of(tres, "cpu"),
            nodes=expand(node_list),
            exit_code=exit_code_of(exit_code),
            restarts=whole(restarts),
        )
        jobs += _tasks(job)
    return jobs


def read_nodes(text: str) -> list[SlurmNode]:
    """Read `sinfo -h -N -O` with `node_format()`.

    Raises:
        Unknown: a line does not have the columns that were asked for.
    """
    nodes: dict[tuple[str, str], SlurmNode] = {}
    for line in text.splitlines():
        values = line.split("|", len(NODE_COLUMNS) - 1)
        if len(values) < len(NODE_COLUMNS):
            raise Unknown(f"sinfo printed {line[:80]!r}")
        name, state, gres, cpus_state, memory, address, reason = values
        cpus = [whole(part) for part in cpus_state.split("/")]
        if len(cpus) != 4:
            raise Unknown(f"sinfo printed {cpus_state[:40]!r} for CPUs")
        total = cpus[3]
        kinds = gres_of(gres) or [("cpu", total)]
        for model, count in kinds:
            nodes[name, model] = SlurmNode(
                name=name,
                state=state.rstrip("*~#!%$@^-+").lower(),
                gpu_model=model,
                gpus=count,
                cpus=total,
                memory_bytes=whole(memory) << 20,
                address=address,
                reason="" if reason in {"none", "None"} else reason,
            )
    return list(nodes.values())


def read_topology(text: str) -> dict[str, str]:
    """Read `scontrol show topology`: the block, or the leaf switch, that each node is in.

    Where there is no topology, or one that we do not know, nothing is said of any node.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        name = words.get("BlockName")
        if name is None and words.get("Level") == "0":
            name = words.get("SwitchName")
        if name is not None:
            found |= dict.fromkeys(expand(words.get("Nodes", "")), name)
    return found


# ---- JSON


def read_jobs_json(text: str) -> list[SlurmJob]:
    """Read `squeue --json`: numbers plain as of 22.05, or wrapped as of 23.02 and later.

    Raises:
        Unknown: it is not of a shape that we know.
    """
    try:
        document = json.loads(text)
        if document.get("errors"):  # it may show no jobs beside them
            raise Unknown(f"it answers with errors: {str(document['errors'])[:200]}")
        return [job for row in document["jobs"] for job in _tasks(_job(row))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unknown(f"squeue --json: {type(error).__name__}: {error}") from error


def _job(row: Mapping[str, Any]) -> SlurmJob:
    states = row["job_state"]
    states = [states] if isinstance(states, str) else list(states)
    state = "COMPLETING" if "COMPLETING" in states else str(states[0])
    tres = row.get("tres_alloc_str") or row.get("tres_req_str") or ""
    gpus, model = gpus_of(
        tres,
        per_node=row.get("tres_per_node") or "",
        per_job=row.get("tres_per_job") or "",
        per_task=row.get("tres_per_task") or "",
        nodes=_number(row.get("node_count")) or 1,
        tasks=_number(row.get("tasks")) or 1,
    )
    array, task, tasks = (
        _number(row.get("array_job_id")),
        _optional(row.get("array_task_id")),
        row.get("array_task_string") or "",
    )
    key = str(_number(row["job_id"]))
    if array and tasks:
        most = _number(row.get("array_max_tasks"))
        # 22.05 leaves the throttle out of the string, others repeat it there.
        key = f"{array}_[{tasks}{f'%{most}' if most and '%' not in tasks else ''}]"
    elif array and task is not None:
        key = f"{array}_{task}"
    return SlurmJob(
        key=key,
        name=row["name"] or "",
        partitions=tuple(str(row["partition"]).split(",")),
        state=state,
        reason=reason_of(row["state_reason"]),
        submitted_at=_epoch(row["submit_time"]) or datetime.fromtimestamp(0, UTC),
        eligible_at=_epoch(row["eligible_time"]),
        started_at=_epoch(row["start_time"]),
        ended_at=_epoch(row["end_time"]),
        preempted=bool(_number(row.get("preempt_time"))),
        gpus=gpus,
        gpu_model=model,
        cpus=tres_of(tres, "cpu") or _number(row.get("cpus")),
        nodes=expand(row.get("nodes") or ""),
        exit_code=_exit_json(row.get("exit_code")),
        restarts=_number(row.get("restart_cnt")),
    )


def read_nodes_json(text: str, *, partition: str) -> list[SlurmNode]:
    """Read slurmrestd's nodes, of one partition: one state and flags, or as of 23.02 all in one.

    Raises:
        Unknown: it is not of a shape that we know.
    """
    try:
        rows = json.loads(text)["nodes"]
        return [
            node for row in rows if partition in row["partitions"] for node in _nodes_of_row(row)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unknown(f"slurmrestd's nodes: {type(error).__name__}: {error}") from error


def _nodes_of_row(row: Mapping[str, Any]) -> Iterator[SlurmNode]:
    states = row["state"]
    words = [states] if isinstance(states, str) else list(states)
    base, *flags = [str(word).upper() for word in (*words, *row.get("state_flags", ()))]
    cpus = _number(row["cpus"])
    for model, count in gres_of(row["gres"] or "") or [("cpu", cpus)]:
        yield SlurmNode(
            name=row["name"],
            state=_state_of(base, frozenset(flags)),
            gpu_model=model,
            gpus=count,
            cpus=cpus,
            memory_bytes=_number(row["real_memory"]) << 20,
            address=row["address"],
            reason=row.get("reason") or "",
        )


def _state_of(base: str, flags: frozenset[str]) -> str:
    """Put a state and its flags into the one word that sinfo has for them."""
    if base in {"DOWN", "ERROR", "FUTURE"}:
        return base.lower()
    busy = base in {"ALLOCATED", "MIXED"} or "COMPLETING" in flags
    if "DRAIN" in flags:
        return "draining" if busy else "drained"
    if "FAIL" in flags:
        return "failing" if busy else "fail"
    for flag, word in _FLAGGED.items():
        if flag in flags:
            return word
    return base.lower()


_FLAGGED: Final = {
    "POWERED_DOWN": "powered_down", "POWERING_DOWN": "powering_down", "POWERDOWN": "powered_down",
    "MAINTENANCE": "maint", "MAINT": "maint", "REBOOT_ISSUED": "reboot",
    "COMPLETING": "completing", "PLANNED": "planned", "RESERVED": "reserved",
}  # fmt: skip


def _number(value: Any) -> int:
    return _optional(value) or 0


def _optional(value: Any) -> int | None:
    if isinstance(value, Mapping):  # {"set": true, "infinite": false, "number": 3}
        return int(value["number"]) if value.get("set", True) else None
    return None if value is None else int(value)


def _epoch(value: Any) -> datetime | None:
    seconds = _number(value)
    return datetime.fromtimestamp(seconds, UTC) + UP if seconds else None


def _exit_json(value: Any) -> int | None:
    if isinstance(value, Mapping) and "return_code" in value:
        signal = value.get("signal") or {}
        number = _number(signal.get("id", signal.get("signal_id")))
        return 128 + number if number else _number(value["return_code"])
    status = _optional(value)
    if status is None:
        return None
    # As wait(2) has it.
    return 128 + (status & 0x7F) if status & 0x7F else status >> 8


# ---- arrays


def _tasks(job: SlurmJob) -> Iterator[SlurmJob]:
    """Yield the tasks of an array that still wait as one: no more than may run at a time."""
    array, bracket, rest = job.key.partition("_[")
    if not bracket:
        yield job
        return
    listed, _, most = rest.rstrip("]").partition("%")
    try:
        numbers = _steps(listed)
        limit = min(int(most or MOST_TASKS), MOST_TASKS)
        for number in itertools.islice(numbers, limit):
            yield replace(job, key=f"{array}_{number}")
    except ValueError:  # '1-9,...' where squeue cut a long list
        yield job


def _steps(listed: str) -> Iterator[int]:
    for piece in listed.split(","):
        ends, _, step = piece.partition(":")
        first, _, last = ends.partition("-")
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def unavailable(error: Unknown) -> Unavailable:
    return Unavailable(
        f"Slurm printed what this Sublet does not know ({error}); see `sublet engine slurm check`"
    )
