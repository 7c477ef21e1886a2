"""The cluster's queue, and what is worked out of it once for as long as it is the same.

A queue of fifty thousand jobs is read ten times a second, and most of what is read is the very same
as before. Comparing that costs nothing; going through it does.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Self

from sublet.engine.port import InternalJob
from sublet.fleet.pool import Demand, demand_by_pool


class Queue:
    """All jobs, by pool, and what they hold and wait for."""

    def __init__(
        self,
        jobs: Sequence[InternalJob] = (),
        *,
        before: Mapping[str, list[InternalJob]] | None = None,
    ) -> None:
        self.jobs = list(jobs)
        by_pool: dict[str, list[InternalJob]] = defaultdict(list)
        for job in self.jobs:
            by_pool[job.gpu_model].append(job)
        known = before or {}
        self._by_pool = {
            pool: known[pool] if known.get(pool) == those else those
            for pool, those in by_pool.items()
        }
        self.demands: Mapping[str, Demand] = demand_by_pool(self.jobs)

    def next(self, jobs: Sequence[InternalJob]) -> Self:
        """Return the queue of a later look: this very one, if nothing has changed."""
        if self.jobs == jobs:
            return self
        return type(self)(jobs, before=self._by_pool)

    def of(self, pool: str) -> Sequence[InternalJob]:
        """Return the jobs of a pool; the same list, for as long as they are the same."""
        return self._by_pool.get(pool, _NONE)


_NONE: Sequence[InternalJob] = ()
