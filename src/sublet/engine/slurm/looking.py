"""Looking at the cluster: one query for all jobs, now and then one for the nodes.

A controller that answers slowly is asked less often, so that we never take more than a tenth of
its time; and JSON is given up for columns where it is not offered, not known, or takes long.
"""

import logging
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.errors import Refused, Unavailable
from sublet.engine.slurm import accounts, reading, view
from sublet.engine.slurm.accounts import Accounted
from sublet.engine.slurm.commands import Slurm
from sublet.engine.slurm.pieces import Unknown
from sublet.engine.slurm.reading import SlurmJob, SlurmNode
from sublet.engine.slurm.rest import Rest
from sublet.engine.slurm.settings import Format

log = logging.getLogger(__name__)

_SHORTEST_SECONDS: Final = 0.1
_YOUNG_SECONDS: Final = 0.5  # in a long pass over many leases, the last of them are looked at anew
_NODES_SECONDS: Final = 2.0
_CONFIG_SECONDS: Final = 60.0
_BACK_OFF: Final = 10.0  # times as long as a look took, until the next one
# Whoever writes JSON loads and prints for longer than all else takes: what is more than so many
# times what the command needs to start at all is given up for columns, and so is what is slow.
_JSON_STARTS: Final = 4.0
_JSON_SECONDS: Final = 0.5
_CLOCKS_APART: Final = timedelta(seconds=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What seldom changes."""

    name: str
    version: str
    grace_seconds: float  # of the partition that leases run in
    accounting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The cluster at one instant."""

    at: datetime
    began: float  # on the monotonic clock
    jobs: Sequence[SlurmJob]
    nodes: Sequence[SlurmNode]
    leases: Mapping[UUID, Sequence[SlurmJob]] = field(default_factory=dict)


class Looker:
    def __init__(self, slurm: Slurm, *, clock: Clock) -> None:
        self._slurm = slurm
        self._clock = clock
        self._lock = threading.Lock()
        self._last: Look | None = None
        self._nodes: Sequence[SlurmNode] = ()
        self._nodes_at = 0.0
        self._nodes_took = 0.0
        self._configured_at = 0.0
        self._period = _SHORTEST_SECONDS
        self._start_seconds = 0.0  # of a command that asks nobody: no load on the controller
        # The quickest of three is the controller's own; the others met something on this machine.
        self._took: deque[float] = deque(maxlen=3)
        self._rest = None if slurm.settings.rest is None else Rest(slurm.settings)
        self._json = slurm.settings.format is not Format.TEXT
        self._accounting = False
        self.blocks: Mapping[str, str] = {}  # of nodes, where the cluster has a topology
        self.ahead = timedelta(0)  # by how much Slurm's clock is ahead of ours

    def due(self) -> bool:
        return self._last is None or time.monotonic() >= self._last.began + self._period

    def look(self, *, fresh: bool = False) -> Look:
        """Return the last look while it is young enough, else a new one.

        Raises:
            Unavailable: Slurm did not answer, or in words that we do not know.
        """
        last = self._last
        asked = time.monotonic()
        if (
            last is not None
            and not fresh
            and asked < last.began + max(_YOUNG_SECONDS, 3 * self._period)
        ):
            return last
        with self._lock:
            last = self._last
            if last is not None and last.began >= asked:
                return last  # somebody else looked while we waited
            self._last = self._now()
            return self._last

    def _now(self) -> Look:
        if time.monotonic() >= self._configured_at + _CONFIG_SECONDS:
            self.cluster()
        at, began = self._clock.now(), time.monotonic()
        jobs = [job.earlier(self.ahead) for job in self._jobs()]
        took = time.monotonic() - began
        if time.monotonic() >= self._nodes_at + max(_NODES_SECONDS, _BACK_OFF * self._nodes_took):
            self._look_at_nodes()
        most = self._slurm.settings.longest_period_seconds
        self._took.append(took)
        asking = max(min(self._took) - self._start_seconds, 0.0)
        self._period = min(max(_SHORTEST_SECONDS, _BACK_OFF * asking), most)
        leases: dict[UUID, list[SlurmJob]] = defaultdict(list)
        for job in jobs:
            if (id_ := view.lease_of(job)) is not None:
                leases[id_].append(job)
        return Look(at=at, began=began, jobs=jobs, nodes=self._nodes, leases=leases)

    def _jobs(self) -> list[SlurmJob]:
        if self._rest is not None:
            try:
                return self._rest.jobs()
            except Unknown as error:
                self._leave_rest(error)
        if self._json:
            began = time.monotonic()
            try:
                jobs = reading.read_jobs_json(self._slurm.run("squeue", "--json"))
            except (Unknown, Refused) as error:
                if self._slurm.settings.format is Format.JSON:
                    raise Unavailable(f"squeue --json: {error}") from error
                log.warning("slurm.no_json", extra={"detail": str(error)[:300]})
                self._json = False
            else:
                most = min(_JSON_SECONDS, max(_JSON_STARTS * self._start_seconds, 0.02))
                slow = time.monotonic() - began > most
                if slow and self._slurm.settings.format is Format.AUTO:
                    log.info("slurm.json_is_slow", extra={"jobs": len(jobs)})
                    self._json = False
                return jobs
        try:
            text = self._slurm.run("squeue", "-h", "-a", "-t", "all", "-O", reading.job_format())
            return reading.read_jobs(text)
        except Unknown as error:
            raise reading.unavailable(error) from error
        except Refused as error:
            raise Unavailable(str(error)) from error

    def _look_at_nodes(self) -> None:
        began = time.monotonic()
        partition = self._slurm.settings.partition
        try:
            if self._rest is not None:
                self._nodes = self._rest.nodes(partition)
                self._note_nodes(began)
                return
        except Unknown as error:
            self._leave_rest(error)
        try:
            text = self._slurm.run("sinfo", "-h", "-N", "-p", partition, "-O",
                                   reading.node_format())  # fmt: skip
            self._nodes = reading.read_nodes(text)
        except Unknown as error:
            raise reading.unavailable(error) from error
        except Refused as error:
            raise Unavailable(str(error)) from error
        self._note_nodes(began)

    def _note_nodes(self, began: float) -> None:
        self._nodes_at = time.monotonic()
        self._nodes_took = self._nodes_at - began

    def _leave_rest(self, error: Unknown) -> None:
        """Go on by commands: slurmrestd is of a version that we do not know.

        Raises:
            Unavailable: JSON is insisted on.
        """
        if self._slurm.settings.format is Format.JSON:
            raise Unavailable(f"slurmrestd speaks as we do not know: {error}") from error
        log.warning("slurm.no_rest", extra={"detail": str(error)[:300]})
        self._rest = None

    def cluster(self) -> Cluster:
        """Read what seldom changes, and compare the clocks.

        Raises:
            Unavailable: Slurm did not answer, or has no such partition.
        """
        if self._rest is None:
            began = time.monotonic()
            with suppress(Refused):
                self._slurm.run("squeue", "--version")
            took = time.monotonic() - began
            self._start_seconds = min(self._start_seconds or took, took)
        asked = self._clock.now()
        text = self._slurm.run("scontrol", "show", "config")
        answered = self._clock.now()
        config = settings_of(text)
        if (told := re.search(r"data as of (\S+)", text)) is not None:
            self._compare(datetime.fromisoformat(told[1]).replace(tzinfo=UTC), asked, answered)
        partition = self._slurm.settings.partition
        try:
            shown = self._slurm.run("scontrol", "-o", "show", "partition", partition)
        except Refused:
            raise Unavailable(
                f"Slurm has no partition {partition!r}: `sublet engine slurm plan` says what to add"
            ) from None
        grace = re.search(r"GraceTime=(\d+)", shown)
        self.blocks = self._topology(config.get("TopologyPlugin", ""))
        self._accounting = "none" not in config.get("AccountingStorageType", "none")
        self._configured_at = time.monotonic()
        return Cluster(
            name=config.get("ClusterName", "cluster"),
            version=config.get("SLURM_VERSION", ""),
            grace_seconds=float(grace[1]) if grace else 0.0,
            accounting=self._accounting,
        )

    def _topology(self, plugin: str) -> Mapping[str, str]:
        """Return the block of each node. Without it victims are chosen as if there were none."""
        if plugin in {"", "topology/none", "topology/default", "topology/flat"}:
            return {}
        try:
            return reading.read_topology(self._slurm.run("scontrol", "show", "topology"))
        except Refused as error:
            log.warning("slurm.no_topology", extra={"detail": str(error)[:300]})
            return {}

    def _compare(self, told: datetime, asked: datetime, answered: datetime) -> None:
        """Say by how much Slurm's clock is ahead. Its answer is cut to whole seconds."""
        ahead = told + timedelta(seconds=0.5) - (asked + (answered - asked) / 2)
        if abs(ahead - self.ahead) < _CLOCKS_APART:
            return
        self.ahead = timedelta(seconds=round(ahead.total_seconds()))
        if abs(self.ahead) < _CLOCKS_APART:
            self.ahead = timedelta(0)
        log.warning("slurm.clocks_apart", extra={"ahead_seconds": self.ahead.total_seconds()})

    def account(self, key: str) -> Accounted | None:
        """Return what accounting knows of the last run of a job that has ended; None: nothing.

        A job that was put back into the queue has a row for each of its runs.
        """
        if not self._accounting:
            return None
        fields = ",".join(accounts.ACCOUNTED)
        try:
            text = self._slurm.run("sacct", "-n", "-P", "-X", "-D", "-j", key, "-o", fields)
            rows = accounts.read_accounted(text)
            ended = [row for row in rows if row.key == key and row.ended_at is not None]
            # One that is cancelled before it runs again has a row of no time for that.
            found = [row for row in ended if row.elapsed_seconds] or ended
        except (Unavailable, Refused, Unknown) as error:
            log.warning("slurm.no_accounting", extra={"job": key, "detail": str(error)[:300]})
            return None
        return found[-1].earlier(self.ahead) if found else None


def settings_of(text: str) -> dict[str, str]:
    """Read `scontrol show config`."""
    found = re.findall(r"^(\w+)\s+=\s*(.*?)\s*$", text, re.MULTILINE)
    return dict(found)
