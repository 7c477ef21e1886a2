"""Firm windows as reservations in Slurm: which there should be, and on which nodes. Pure.

A reservation holds whole nodes, as many as fit into its window, and its name carries the window's
id. Leases run inside and outside of reservations alike (FLEX); it is Slurm's other jobs that they
keep out, and Slurm's own preemption, which knows no tiers. A reservation follows its leases.

Where windows yield, a reservation is there from a minute before the window on, ends a minute from
now unless it is renewed, and is taken away as soon as internal jobs need its nodes: whoever is
dead, internal jobs come first. Where windows are held, it is there from the sale to the end of
the window, and a job that waits for its nodes waits for something that is not ours to give.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.engine.port import Window
from sublet.engine.slurm.pieces import Unknown, expand
from sublet.engine.slurm.reading import SlurmJob, SlurmNode
from sublet.engine.slurm.settings import Windows
from sublet.engine.slurm.view import LEASE_NAME, Demand, takes_jobs

AHEAD: Final = timedelta(seconds=60)  # of its window, where windows yield
FENCE: Final = timedelta(seconds=60)  # so long it stands without us
# After a window that is held: its last leases get their notice there, and none nears the time
# limit by which Slurm knows that they leave.
_AFTER: Final = timedelta(minutes=5)
_MINUTE: Final = timedelta(minutes=1)
_RENEWED: Final = timedelta(seconds=20)  # as often the fence is moved on
_PATIENCE: Final = timedelta(seconds=5)
# What Slurm says of a job that a reservation keeps waiting, and of some others.
KEPT_OUT: Final = "ReqNodeNotAvail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One reservation of ours; instants are on our clock."""

    window: UUID
    starts_at: datetime
    ends_at: datetime
    nodes: frozenset[str]
    active: bool = False

    @property
    def name(self) -> str:
        return f"sublet-{self.window}"


def read(text: str, *, partition: str, ahead: timedelta) -> list[Kept]:
    """Read `scontrol -o show reservation`; those of other partitions are not ours.

    Raises:
        Unknown: it is not of a shape that we know.
    """
    found = []
    for line in text.splitlines():
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        name = LEASE_NAME.fullmatch(values.get("ReservationName", ""))
        if name is None or values.get("PartitionName") != partition:
            continue
        try:
            starts, ends = (
                datetime.fromisoformat(values[key]).replace(tzinfo=UTC) - ahead
                for key in ("StartTime", "EndTime")
            )
        except (KeyError, ValueError) as error:
            raise Unknown(f"scontrol printed {line[:80]!r}") from error
        found.append(
            Kept(
                window=UUID(name[1]),
                starts_at=starts,
                ends_at=ends,
                nodes=frozenset(expand(values.get("Nodes", ""))),
                active=values.get("State") == "ACTIVE",
            )
        )
    return found


def overridden(
    windows: Iterable[Window],
    demand: Iterable[Demand],
    nodes: Sequence[SlurmNode],
    *,
    grace_seconds: float,
    now: datetime,
) -> frozenset[str]:
    """Return the GPU models of which internal jobs need what windows would keep from them.

    That is while some wait, and do not fit beside the windows, or Slurm says that a reservation
    is in their way, or they have waited for longer than anybody's notice takes.
    """
    patience = timedelta(seconds=grace_seconds) + _PATIENCE
    healthy = _by_model((node.gpu_model, node.gpus) for node in nodes if takes_jobs(node))
    kept = _by_model((w.gpu_model, w.gpus) for w in windows if w.starts_at - AHEAD <= now)
    used: Counter[str] = Counter()
    urgent: set[str] = set()
    waiting: set[str] = set()
    for found in demand:
        used[found.gpu_model] += found.gpus
        if not found.waits:
            continue
        waiting.add(found.gpu_model)
        since = max(found.job.submitted_at, found.job.eligible_at or found.job.submitted_at)
        if found.job.reason == KEPT_OUT or now >= since + patience:
            urgent.add(found.gpu_model)
    full = {m for m in kept if used[m] > healthy[m] - kept[m]}
    return frozenset((waiting & full) | urgent)


def beside(
    demand: Sequence[Demand], kept: Iterable[Kept], nodes: Sequence[SlurmNode]
) -> list[Demand]:
    """Leave out who waits for nodes that windows hold: it does not wait for what leases give back."""
    reserved = {name for one in kept for name in one.nodes}
    if not reserved:
        return list(demand)
    room = _by_model(
        (node.gpu_model, node.gpus)
        for node in nodes
        if takes_jobs(node) and node.name not in reserved
    )
    found = []
    for one in demand:
        if not one.waits:
            inside = sum(name in reserved for name in one.job.nodes)
            outside = len(one.job.nodes) - inside
            room[one.gpu_model] -= one.gpus * outside // max(len(one.job.nodes), 1)
            found.append(one)
    for one in sorted(demand, key=lambda one: one.job.submitted_at):
        if one.waits and one.gpus <= room[one.gpu_model]:
            room[one.gpu_model] -= one.gpus
            found.append(one)
    return found


def plan(
    windows: Iterable[Window],
    kept: Iterable[Kept],
    nodes: Sequence[SlurmNode],
    *,
    draws: Mapping[UUID, frozenset[str]],
    internal: frozenset[str],
    yielding: frozenset[str],
    mode: Windows,
    grace_seconds: float,
    now: datetime,
) -> list[Kept]:
    """Return the reservations that there should be.

    Args:
        windows: that were sold and have not ended.
        kept: the reservations that there are.
        nodes: of the partition.
        draws: window → nodes on which its leases run.
        internal: nodes on which internal jobs run.
        yielding: models of which internal jobs need everything now.
        mode: whether windows yield or are held.
        grace_seconds: of the partition.
        now: on our clock.
    """
    there = {one.window: one for one in kept}
    taken: list[Kept] = []
    for window in sorted(windows, key=lambda one: (one.starts_at, one.id)):
        starts_at, ends_at = window.starts_at, window.ends_at
        before = there.get(window.id)
        if now >= ends_at:
            continue
        if mode is Windows.HOLD:
            ends_at += timedelta(seconds=grace_seconds) + _AFTER
        else:
            if window.gpu_model in yielding or now < starts_at - AHEAD:
                continue
            ends_at = min(ends_at, max(starts_at, now).replace(microsecond=0) + FENCE)
            if before is not None and before.ends_at > ends_at - _RENEWED:
                ends_at = min(before.ends_at, window.ends_at)
        mine = before.nodes if before is not None else frozenset()
        chosen = _choose(
            window, nodes, taken=[one for one in taken if one.starts_at < ends_at
                                  and starts_at < one.ends_at],
            draws=draws.get(window.id, frozenset()), internal=internal, mine=mine,
        )  # fmt: skip
        if chosen:
            active = before is not None and before.active
            taken.append(Kept(window=window.id, starts_at=starts_at, ends_at=ends_at,
                              nodes=chosen, active=active))  # fmt: skip
    return taken


def _choose(
    window: Window,
    nodes: Sequence[SlurmNode],
    *,
    taken: Sequence[Kept],
    draws: frozenset[str],
    internal: frozenset[str],
    mine: frozenset[str],
) -> frozenset[str]:
    others = {name for one in taken for name in one.nodes}
    can = [
        node
        for node in nodes
        if node.gpu_model == window.gpu_model and takes_jobs(node) and node.name not in others
    ]
    can.sort(key=lambda n: (n.name not in draws, n.name in internal, n.name not in mine, n.name))
    chosen: set[str] = set()
    left = window.gpus
    for node in can:
        if 0 < node.gpus <= left:
            chosen.add(node.name)
            left -= node.gpus
    return frozenset(chosen)


def draws_of(
    leases: Mapping[UUID, Sequence[SlurmJob]], window_of: Mapping[UUID, UUID]
) -> dict[UUID, frozenset[str]]:
    """Return window → nodes on which its leases run."""
    found: dict[UUID, set[str]] = defaultdict(set)
    for id_, jobs in leases.items():
        if (window := window_of.get(id_)) is not None:
            found[window].update(name for job in jobs if job.holds for name in job.nodes)
    return {window: frozenset(names) for window, names in found.items()}


def shut(kept: Iterable[Kept], *, window: UUID | None, now: datetime) -> frozenset[str]:
    """Return the nodes that a lease (of `window`, or of none) must not count on."""
    return frozenset(
        name
        for one in kept
        if one.window != window and one.starts_at - AHEAD <= now
        for name in one.nodes
    )


def open_to(kept: Iterable[Kept], *, window: UUID | None, now: datetime) -> list[str]:
    """Return the reservations that a lease is submitted with: its own, or all still to come."""
    if window is not None:
        return [one.name for one in kept if one.window == window]
    return [one.name for one in kept if now < one.starts_at - AHEAD]


def minutes_of(
    kept: Iterable[Kept], *, window: UUID | None, mode: Windows, now: datetime
) -> int | None:
    """Return the time limit of a lease of a window that is held; None: it needs none.

    Slurm's scheduler plans waiting jobs onto the nodes of a reservation from its end on, and
    starts nothing there that might last for longer.
    """
    if mode is not Windows.HOLD or window is None:
        return None
    ends = [one.ends_at for one in kept if one.window == window]
    # Less two, which Slurm may count on top when it compares.
    return max((ends[0] - now) // _MINUTE - 2, 1) if ends else None


def _by_model(amounts: Iterable[tuple[str, int]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for model, gpus in amounts:
        found[model] += gpus
    return found
