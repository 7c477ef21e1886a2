"""What a cluster lacks for Sublet, and the exact configuration that adds it. Changes nothing."""

import getpass
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sublet.core.clock import Clock
from sublet.core.errors import Refused, SubletError, Unavailable
from sublet.engine import images
from sublet.engine.slurm import reading
from sublet.engine.slurm.commands import Slurm
from sublet.engine.slurm.looking import settings_of
from sublet.engine.slurm.pieces import Unknown, expand
from sublet.engine.slurm.reading import SlurmNode
from sublet.engine.slurm.rest import Rest
from sublet.engine.slurm.settings import SlurmSettings, Windows

_OLDEST: Final = (22, 5)
_TIER: Final = 1
_INTERNAL_TIER: Final = 10
# Slurm's scheduler waits up to 3 s after an sbatch, and up to a minute between two full passes.
_SCHEDULER: Final = {
    "batch_sched_delay": "0",
    "sched_interval": "1",
    "bf_interval": "2",
    "preempt_youngest_first": None,
}
_UNLIMITED: Final = frozenset({"UNLIMITED", "INFINITE", "NONE", ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    level: str  # 'ok', 'advice' or 'missing'
    said: str  # what is there, or what to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    name: str
    tier: int
    preempt_mode: str
    grace_seconds: int
    state: str
    max_time: str
    default_time: str
    oversubscribe: str
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What Slurm says of itself."""

    version: tuple[int, int]
    config: Mapping[str, str]
    partitions: Sequence[Partition]
    nodes: Sequence[SlurmNode]
    ahead_seconds: float

    def partition(self, name: str) -> Partition | None:
        return next((found for found in self.partitions if found.name == name), None)

    def beside(self, name: str, nodes: frozenset[str]) -> list[Partition]:
        """Return the other partitions that have some of these nodes."""
        return [p for p in self.partitions if p.name != name and p.nodes & nodes]


def gather(slurm: Slurm, clock: Clock) -> Facts:
    """Ask Slurm for all that `check` and `plan` look at.

    Raises:
        Unavailable: Slurm did not answer, or in words that we do not know.
    """
    try:
        version = re.search(r"(\d+)\.(\d+)", slurm.run("sinfo", "--version"))
        asked = clock.now()
        config_text = slurm.run("scontrol", "show", "config")
        answered = clock.now()
        partitions = slurm.run("scontrol", "-o", "show", "partition")
        shown = slurm.run("sinfo", "-h", "-a", "-N", "-O", reading.node_format())
        nodes = reading.read_nodes(shown)
    except Refused as error:
        raise Unavailable(str(error)) from error
    except Unknown as error:
        raise reading.unavailable(error) from error
    told = re.search(r"data as of (\S+)", config_text)
    ahead = 0.0
    if told is not None:
        at = datetime.fromisoformat(told[1]).replace(tzinfo=UTC)
        ahead = (at - (asked + (answered - asked) / 2)).total_seconds() + 0.5
    return Facts(
        version=(int(version[1]), int(version[2])) if version else (0, 0),
        config=settings_of(config_text),
        partitions=[_partition(line) for line in partitions.splitlines() if line.strip()],
        nodes=nodes,
        ahead_seconds=ahead,
    )


def _partition(line: str) -> Partition:
    values = dict(re.findall(r"(\w+)=(\S*)", line))
    return Partition(
        name=values["PartitionName"],
        tier=int(values.get("PriorityTier", "1")),
        preempt_mode=values.get("PreemptMode", "OFF"),
        grace_seconds=int(values.get("GraceTime", "0")),
        state=values.get("State", "UP"),
        max_time=values.get("MaxTime", ""),
        default_time=values.get("DefaultTime", ""),
        oversubscribe=values.get("OverSubscribe", "NO"),
        nodes=frozenset(expand(values.get("Nodes", ""))),
    )


# ---- check


def check(settings: SlurmSettings, clock: Clock) -> list[Finding]:
    """Look at everything that Sublet needs; say what is missing, and what to do about it."""
    slurm = Slurm(settings=settings)
    try:
        facts = gather(slurm, clock)
    except SubletError as error:
        return [Finding(what="Slurm answers", level="missing", said=str(error))]
    return [
        *_judge(facts, settings),
        _queue(slurm),
        *_accounts(slurm, facts),
        *_windows(slurm, facts),
        _containers(slurm),
        _shared(settings),
    ]


def _judge(facts: Facts, settings: SlurmSettings) -> Iterator[Finding]:
    version = f"{facts.version[0]}.{facts.version[1]:02}"
    yield _finding("version", facts.version >= _OLDEST, version, f"{version}: 22.05 is the oldest")
    preempt = facts.config.get("PreemptType", "")
    yield _finding(
        "preemption", preempt == "preempt/partition_prio", preempt,
        f"set PreemptType=preempt/partition_prio (it is {preempt or 'not set'}), so that Slurm"
        " itself takes GPUs back with Sublet dead",
    )  # fmt: skip
    parameters = facts.config.get("SlurmctldParameters", "")
    yield _finding(
        "notice", "preempt_send_user_signal" in parameters, "preempt_send_user_signal",
        "add preempt_send_user_signal to SlurmctldParameters: without it a batch job hears of its"
        " preemption only when its notice is over",
    )  # fmt: skip
    yield from _partitions(facts, settings)
    tres = facts.config.get("AccountingStorageTRES", "")
    yield Finding(
        what="GPUs in accounting",
        level="ok" if "gres/gpu" in tres else "advice",
        said="gres/gpu"
        if "gres/gpu" in tres
        else "add gres/gpu to AccountingStorageTRES: without it the GPUs of past jobs are unknown",
    )
    scheduler = facts.config.get("SchedulerParameters", "")
    lacking = [name for name in _SCHEDULER if name not in scheduler]
    yield Finding(
        what="scheduler",
        level="advice" if lacking else "ok",
        said=f"SchedulerParameters lacks {', '.join(lacking)}: internal jobs start later than they"
        " could" if lacking else scheduler,
    )  # fmt: skip
    epilog = facts.config.get("Epilog", "(null)")
    none = epilog in {"", "(null)"}
    yield Finding(
        what="epilog",
        level="advice" if none else "ok",
        said="set an Epilog, such as /bin/true: without one a node tells of a job's end in a way on"
        " which slurmctld schedules up to a second later" if none else epilog,
    )  # fmt: skip
    apart = abs(facts.ahead_seconds) >= 3
    yield Finding(
        what="clocks",
        level="advice" if apart else "ok",
        said=f"Slurm's clock is {facts.ahead_seconds:+.0f} s off this machine's: run NTP on both;"
        " Sublet allows for it" if apart else "they agree",
    )  # fmt: skip


def _partitions(facts: Facts, settings: SlurmSettings) -> Iterator[Finding]:
    ours = facts.partition(settings.partition)
    if ours is None:
        yield Finding(
            what=f"partition {settings.partition}", level="missing",
            said="there is none: `sublet engine slurm plan` prints it",
        )  # fmt: skip
        return
    gpus = sum(node.gpus for node in facts.nodes if node.name in ours.nodes)
    yield _finding(
        f"partition {ours.name}", gpus > 0 and ours.state == "UP",
        f"{len(ours.nodes)} nodes, {gpus} GPUs or cores to lend",
        f"it is {ours.state} with {gpus} GPUs: it must be UP and have the nodes that may be lent",
    )  # fmt: skip
    modes = {"CANCEL", "REQUEUE"}
    yield _finding(
        "gives way", ours.preempt_mode in modes and ours.grace_seconds > 0,
        f"PreemptMode={ours.preempt_mode} GraceTime={ours.grace_seconds}",
        f"give partition {ours.name} PreemptMode=CANCEL and the GraceTime of its pool's notice; it"
        f" has PreemptMode={ours.preempt_mode} GraceTime={ours.grace_seconds}",
    )  # fmt: skip
    limits = {ours.max_time, ours.default_time}
    yield Finding(
        what="time limit",
        level="ok" if limits <= _UNLIMITED else "advice",
        said="none"
        if limits <= _UNLIMITED
        else f"leases end with MaxTime={ours.max_time} DefaultTime={ours.default_time} of the"
        " partition: set both to UNLIMITED",
    )
    forced = [
        found.name
        for found in (ours, *facts.beside(ours.name, ours.nodes))
        if found.oversubscribe.startswith("FORCE")
    ]
    yield Finding(
        what="whole nodes",
        level="advice" if forced else "ok",
        said=f"OverSubscribe=FORCE of {', '.join(forced)} overrules --exclusive: pools whose policy"
        " is exclusive would share their nodes" if forced else "are a lease's own in exclusive pools",
    )  # fmt: skip
    for other in facts.beside(ours.name, ours.nodes):
        yield _finding(
            f"partition {other.name}", other.tier > ours.tier and other.preempt_mode == "OFF",
            f"PriorityTier={other.tier} PreemptMode=OFF: comes first",
            f"its jobs must come first: PriorityTier above {ours.tier} (it is {other.tier}) and"
            f" PreemptMode=OFF (it is {other.preempt_mode})",
        )  # fmt: skip


def _queue(slurm: Slurm) -> Finding:
    """Look whether the queue can be read in the way that is set."""
    if slurm.settings.rest is None:
        return _json(slurm)
    try:
        rest = Rest(slurm.settings)
        jobs, nodes = rest.jobs(), rest.nodes(slurm.settings.partition)
    except SubletError as error:
        return Finding(what="slurmrestd", level="missing", said=str(error))
    except Unknown as error:
        said = f"Slurm's commands are used instead: {error}"
        return Finding(what="slurmrestd", level="advice", said=said)
    shown = f"it answers, and shows {len(jobs)} jobs and {len(nodes)} nodes"
    return Finding(what="slurmrestd", level="ok", said=shown)


def _json(slurm: Slurm) -> Finding:
    try:
        reading.read_jobs_json(slurm.run("squeue", "--json"))
    except (Unknown, SubletError) as error:
        return Finding(
            what="JSON", level="advice", said=f"columns are read instead: {str(error)[:200]}"
        )
    return Finding(what="JSON", level="ok", said="squeue --json is offered, and of a known shape")


def _accounts(slurm: Slurm, facts: Facts) -> Iterator[Finding]:
    settings = slurm.settings
    if "slurmdbd" not in facts.config.get("AccountingStorageType", ""):
        yield Finding(
            what="accounting", level="advice",
            said="there is no slurmdbd: Sublet keeps its own record, but jobs that Slurm forgets"
            " (MinJobAge) while Sublet is away are settled by what their agent wrote, and there"
            " is no history to plan from",
        )  # fmt: skip
        return
    try:
        found = slurm.run("sacctmgr", "-n", "-P", "list", "account", "format=Account")
        qos = slurm.run("sacctmgr", "-n", "-P", "list", "qos", "format=Name")
    except SubletError as error:
        yield Finding(what="accounting", level="missing", said=str(error))
        return
    yield Finding(what="accounting", level="ok", said="slurmdbd answers")
    for name, value, there in (
        ("account", settings.account, found.split()),
        ("qos", settings.qos, qos.split()),
    ):
        if value is not None:
            yield _finding(
                f"{name} {value}", value in there, "is there",
                f"there is no such {name}: `sublet engine slurm plan` prints how to add it",
            )  # fmt: skip


def _windows(slurm: Slurm, facts: Facts) -> Iterator[Finding]:
    """Say whether we may make reservations; only trying would tell for certain."""
    if slurm.settings.windows is Windows.OFF:
        return
    user = getpass.getuser()
    may = user == "root" or facts.config.get("SlurmUser", "").partition("(")[0] == user
    if not may and "slurmdbd" in facts.config.get("AccountingStorageType", ""):
        with suppress(SubletError):
            level = slurm.run("sacctmgr", "-n", "-P", "show", "user", user, "format=AdminLevel")
            may = any(word in level for word in ("Operator", "Administrator"))
    yield Finding(
        what="reservations",
        level="ok" if may else "advice",
        said=f"firm windows become reservations, which {slurm.settings.windows}"
        if may
        else f"{user} may make none: firm windows are kept without them. Make it an Operator:"
        f" sacctmgr modify user {user} set adminlevel=operator",
    )


def _containers(slurm: Slurm) -> Finding:
    """Say what there is to make images with; leases run on them unpacked, in the sandbox."""
    found = images.tools()
    with suppress(SubletError):
        if "--container-image" in slurm.run("srun", "--help"):
            found.append("pyxis")
    return Finding(
        what="containers",
        level="ok",
        said="leases run on unpacked images (SUBLET_IMAGES); for `sublet engine image add` there is"
        f" here: {', '.join(found) or 'no tool'}",
    )


def _shared(settings: SlurmSettings) -> Finding:
    folder = settings.shared
    there = folder if folder.exists() else folder.parent
    return _finding(
        "shared folder", os.access(there, os.W_OK | os.X_OK), str(folder),
        f"{folder} cannot be written: make it on a file system that login and compute nodes share",
    )  # fmt: skip


def _finding(what: str, good: bool, there: str, todo: str) -> Finding:
    return Finding(what=what, level="ok" if good else "missing", said=there if good else todo)


# ---- plan


def plan(
    settings: SlurmSettings, clock: Clock, *, notice_seconds: int, nodes: str | None, user: str
) -> str:
    """Return the configuration to add, as text for slurm.conf and a shell.

    Args:
        settings: of this Sublet.
        clock: the machine's own.
        notice_seconds: how long leases are told before they must be gone.
        nodes: which may be lent, as Slurm writes them; None for all that have GPUs, or else all.
        user: whom Sublet's control plane runs as.

    Raises:
        Unavailable: Slurm did not answer.
    """
    facts = gather(Slurm(settings=settings), clock)
    lent = _lent(facts, nodes)
    name = settings.partition
    lines = [
        "# To slurm.conf on every node; then `scontrol reconfigure`, or a restart of slurmctld",
        "# where PreemptType or PreemptMode changed. Sublet changes none of this by itself.",
        *_changed(facts, "PreemptType", "preempt/partition_prio"),
        *_changed(facts, "PreemptMode", "CANCEL"),
        *_added(facts, "SlurmctldParameters", {"preempt_send_user_signal": None}),
        *_added(facts, "SchedulerParameters", _SCHEDULER),
        *_added(facts, "AccountingStorageTRES", {"gres/gpu": None}),
        *_epilog(facts),
    ]
    inherits = facts.config.get("PreemptMode", "OFF") == "OFF"  # what it will be, from now on
    for other in facts.beside(name, frozenset(expand(lent))):
        if other.tier <= _TIER or other.preempt_mode != "OFF" or inherits:
            tier = max(other.tier, _INTERNAL_TIER)
            lines.append(f"# to the line of PartitionName={other.name}, which comes first:")
            lines.append(f"#     PriorityTier={tier} PreemptMode=OFF")
    lines += [
        f"PartitionName={name} Nodes={lent} PriorityTier={_TIER} PreemptMode=CANCEL"
        f" GraceTime={notice_seconds} MaxTime=UNLIMITED DefaultTime=UNLIMITED State=UP"
        + (f" AllowAccounts={settings.account}" if settings.account else ""),
    ]
    if "slurmdbd" in facts.config.get("AccountingStorageType", ""):
        account, qos = settings.account or "sublet", settings.qos or "sublet"
        expanded = set(expand(lent))
        gpus = sum(n.gpus for n in facts.nodes if n.name in expanded and n.gpu_model != "cpu")
        limit = f" GrpTRES=gres/gpu={gpus}" if gpus else ""
        lines += [
            "",
            "# After that, in a shell: an account and a QOS for leases, with limits.",
            f'sacctmgr -i add qos {qos} set Priority=0{limit} Description="leases of Sublet"',
            f"sacctmgr -i add account {account} set DefaultQOS={qos} QOS={qos}",
            f"sacctmgr -i add user {user} account={account} set DefaultQOS={qos} QOS={qos}",
        ]
    return "\n".join(lines) + "\n"


def _lent(facts: Facts, nodes: str | None) -> str:
    if nodes is not None:
        return nodes
    ours = [node.name for node in facts.nodes if node.gpu_model != "cpu"]
    return ",".join(dict.fromkeys(ours or [node.name for node in facts.nodes]))


def _changed(facts: Facts, name: str, value: str) -> list[str]:
    before = facts.config.get(name, "")
    if before == value:
        return []
    remark = f"  # was {before}" if before not in {"", "(null)", "preempt/none", "OFF"} else ""
    return [f"{name}={value}{remark}"]


def _epilog(facts: Facts) -> list[str]:
    if facts.config.get("Epilog", "(null)") not in {"", "(null)"}:
        return []
    return [
        "# Any Epilog: slurmctld schedules at once when one tells it of a job's end, and otherwise",
        "# at its next look, up to a second later.",
        "Epilog=/bin/true",
    ]


def _added(facts: Facts, name: str, values: Mapping[str, str | None]) -> list[str]:
    before = [part for part in facts.config.get(name, "").split(",") if part not in {"", "(null)"}]
    there = {part.split("=")[0] for part in before}
    if name == "AccountingStorageTRES":  # what Slurm always counts is listed, too, and need not be
        before = [part for part in before if "/" in part and part != "fs/disk"]
    missing = [key if value is None else f"{key}={value}" for key, value in values.items()
               if key not in there]  # fmt: skip
    return [f"{name}={','.join([*before, *missing])}"] if missing else []
