"""How long internal jobs waited for GPUs that leases held: the first law, as a figure.

A job's wait begins when it is submitted, or when it first fits beside the internal jobs before it:
what it waits for other internal jobs is none of our business. It ends when so many GPUs are
verified free, which the cluster then gives it.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sublet.engine.port import InternalJob

_KEPT: Final = 10_000  # waits of each pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Of one pool, in seconds."""

    jobs: int
    p50: float
    p99: float
    most: float


class InternalWaits:
    """Watches each pool's queue, and keeps the waits of the last jobs. Safe between threads."""

    def __init__(self) -> None:
        # Of jobs in the queue: since when each waits for leases; None: it waits for other jobs.
        self._queued: dict[str, dict[UUID, datetime | None]] = {}
        self._served: dict[str, set[UUID]] = {}
        self._waits: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def look(
        self, pool: str, jobs: Sequence[InternalJob], *, gpus: int, leased: int, now: datetime
    ) -> None:
        """Take in how a pool stands.

        Args:
            pool: its name.
            jobs: its internal jobs, in any order.
            gpus: healthy.
            leased: that leases hold until the engine shows them empty.
            now: the present instant.
        """
        before, served = self._queued.get(pool, {}), self._served.setdefault(pool, set())
        running = sum(job.gpus for job in jobs if job.running)
        queued: dict[UUID, datetime | None] = {}
        ahead = 0
        for job in sorted(jobs, key=lambda job: (job.submitted_at, job.id)):
            if job.running and (since := before.get(job.id)) is not None:
                self._note(pool, job.id, since, job.started_at or now)
            if not job.pending:
                continue
            ahead += job.gpus
            since = before.get(job.id)
            if since is None and running + ahead <= gpus:
                since = now if job.id in before else job.submitted_at
            queued[job.id] = since
            if since is not None and running + leased + ahead <= gpus:
                self._note(pool, job.id, since, now)
        self._queued[pool] = queued
        served &= {job.id for job in jobs}

    def _note(self, pool: str, job: UUID, since: datetime, until: datetime) -> None:
        if job in self._served[pool]:
            return
        self._served[pool].add(job)
        with self._lock:
            waits = self._waits.setdefault(pool, deque(maxlen=_KEPT))
            waits.append(max((until - since).total_seconds(), 0.0))

    def by_pool(self) -> dict[str, Waits]:
        """Return the waits of the jobs seen since this process began, by pool."""
        with self._lock:
            kept = {pool: sorted(waits) for pool, waits in self._waits.items()}
        return {
            pool: Waits(
                jobs=len(waits),
                p50=waits[(len(waits) - 1) // 2],
                p99=waits[(len(waits) * 99 + 99) // 100 - 1],
                most=waits[-1],
            )
            for pool, waits in kept.items()
        }
