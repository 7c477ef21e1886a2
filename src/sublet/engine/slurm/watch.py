"""Internal jobs from one look to the next: which began to wait, started, ended or vanished.

Slurm forgets a job some minutes after its end (MinJobAge), runs one job several times, and lets
a waiting one wait for something else in between. The port knows only jobs that wait, run and
end once. So each wait-and-run is a job of its own here, and none is ever left without an end.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from sublet.core.ids import derived_id
from sublet.engine.port import InternalJob
from sublet.engine.shim import write_durably
from sublet.engine.slurm.reading import SlurmJob
from sublet.engine.slurm.view import Demand

_LISTED: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """One wait-and-run of a job that is under way."""

    job: InternalJob
    restarts: int


@dataclass(slots=True)
class Watch:
    """What was under way at the last look. Written to disk, so that a restart misses no end."""

    cluster: str
    under_way: dict[str, Followed] = field(default_factory=dict)
    ended: list[InternalJob] = field(default_factory=list)
    times: dict[str, int] = field(default_factory=dict)  # how often a key came back
    elsewhere: set[str] = field(default_factory=set)  # keys that waited for something else
    order: dict[UUID, tuple[int, ...]] = field(default_factory=dict)  # of equal instants
    saved: Mapping[str, Followed] = field(default_factory=dict)

    def look(
        self, demand: Iterable[Demand], jobs: Sequence[SlurmJob], *, now: datetime
    ) -> list[InternalJob]:
        """Return the internal jobs that wait, run, or ended not long ago; oldest first."""
        wanted = {found.job.key: found for found in demand}
        by_key = {job.key: job for job in jobs}
        for key in [key for key in self.under_way if not self._goes_on(key, wanted.get(key))]:
            self._end(key, by_key.get(key), now=now)
        for key, found in wanted.items():
            self.under_way[key] = self._follow(key, found, now=now)
        self.elsewhere = {job.key for job in jobs if job.waits and job.key not in wanted}
        self.ended = [job for job in self.ended if (job.exited_at or now) > now - _LISTED]
        self.order = {job.id: self.order[job.id] for job in self.ended} | {
            followed.job.id: _numbers(key) for key, followed in self.under_way.items()
        }
        here = [followed.job for followed in self.under_way.values()]
        return sorted([*here, *self.ended], key=lambda job: (job.submitted_at, self.order[job.id]))

    def _goes_on(self, key: str, found: Demand | None) -> bool:
        if found is None:
            return False
        before = self.under_way[key]
        requeued = before.restarts != found.job.restarts or (
            before.job.started_at is not None and found.waits
        )
        return not requeued

    def _follow(self, key: str, found: Demand, *, now: datetime) -> Followed:
        job = found.job
        started_at = None if found.waits else job.started_at or now
        before = self.under_way.get(key)
        if before is not None:
            # What it was given may differ from what it asked for.
            told = before.job
            now_is = (found.gpu_model, found.gpus, started_at)
            if now_is == (told.gpu_model, told.gpus, told.started_at):
                return before
            changed = replace(
                told, gpu_model=found.gpu_model, gpus=found.gpus, started_at=started_at
            )
            return replace(before, job=changed)
        since = max(job.submitted_at, job.eligible_at or job.submitted_at)
        if key in self.elsewhere or self.times.get(key):
            since = max(since, now)  # it did not wait for GPUs until now
        if started_at is not None:
            since = min(since, started_at)
        number = self.times.get(key, 0)
        return Followed(
            job=InternalJob(
                id=internal_id(self.cluster, key, job.submitted_at, number),
                name=job.name[:200] or "job",
                gpu_model=found.gpu_model,
                gpus=found.gpus,
                submitted_at=since,
                started_at=started_at,
            ),
            restarts=job.restarts,
        )

    def _end(self, key: str, now_is: SlurmJob | None, *, now: datetime) -> None:
        before = self.under_way.pop(key)
        self.times[key] = self.times.get(key, 0) + 1
        self.order[before.job.id] = _numbers(key)
        job, ended_at, code = before.job, now, None
        if now_is is not None and now_is.ended and now_is.restarts == before.restarts:
            ended_at, code = now_is.ended_at or now, now_is.exit_code
            if job.started_at is None and now_is.started_at is not None and now_is.nodes:
                job = replace(job, started_at=now_is.started_at)
        ended_at = max(ended_at, job.started_at or job.submitted_at)
        cancelled = job.started_at is None
        self.ended.append(replace(job, exited_at=ended_at, exit_code=code, cancelled=cancelled))

    # ---- on disk

    def save(self, path: Path) -> None:
        """Write what is under way, if it changed. Raises OSError: the disk is full or gone."""
        if self.under_way == self.saved:
            return
        rows = {
            key: {
                "id": str(followed.job.id),
                "name": followed.job.name,
                "gpu_model": followed.job.gpu_model,
                "gpus": followed.job.gpus,
                "submitted_at": followed.job.submitted_at.isoformat(),
                "started_at": followed.job.started_at and followed.job.started_at.isoformat(),
                "restarts": followed.restarts,
            }
            for key, followed in self.under_way.items()
        }
        times = {key: number for key, number in self.times.items() if key in rows}
        document = {"cluster": self.cluster, "jobs": rows, "times": times}
        write_durably(path, json.dumps(document).encode())
        self.saved = dict(self.under_way)


def load(path: Path, cluster: str) -> Watch:
    """Read what `save` wrote; of another cluster, or of none, nothing was under way."""
    watch = Watch(cluster=cluster)
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return watch
    if document["cluster"] != cluster:
        return watch
    for key, row in document["jobs"].items():
        started = row["started_at"]
        job = InternalJob(
            id=UUID(row["id"]),
            name=row["name"],
            gpu_model=row["gpu_model"],
            gpus=row["gpus"],
            submitted_at=datetime.fromisoformat(row["submitted_at"]),
            started_at=None if started is None else datetime.fromisoformat(started),
        )
        watch.under_way[key] = Followed(job=job, restarts=row["restarts"])
    watch.times = {key: int(number) for key, number in document["times"].items()}
    watch.saved = dict(watch.under_way)
    return watch


def _numbers(key: str) -> tuple[int, ...]:
    return tuple(int(part) for part in key.split("_") if part.isdigit())


def internal_id(cluster: str, key: str, submitted_at: datetime, number: int) -> UUID:
    """Return the id of the `number`-th wait-and-run of a job; job numbers alone wrap around."""
    return derived_id("slurm", cluster, key, submitted_at.isoformat(), number)
