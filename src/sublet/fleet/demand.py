"""Internal demand over time, as the planner learns it: the worst of every five minutes.

The loop looks many times a second; what is kept is one sample a pool and slot. A slot in
which nobody looked has no sample, and nothing makes one up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from sublet.fleet.pool import Demand

SLOT: Final = timedelta(minutes=5)
# A crash forgets at most this much of what was seen.
_KEEP_EVERY: Final = timedelta(minutes=1)
_NONE: Final = Demand(running=0, pending=0)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The worst that was seen of a pool in one slot, in GPUs."""

    pool: str
    slot: datetime  # its start
    gpus: int  # fewest healthy
    running: int  # most held by internal jobs
    pending: int  # most waited for by them

    def joined(self, other: "Sample") -> "Sample":
        """Return the worst of both looks at the same slot."""
        assert (self.pool, self.slot) == (other.pool, other.slot), (self, other)
        return replace(
            self,
            gpus=min(self.gpus, other.gpus),
            running=max(self.running, other.running),
            pending=max(self.pending, other.pending),
        )


def slot_of(instant: datetime) -> datetime:
    """Return the start of the slot that holds `instant`."""
    return _EPOCH + (instant - _EPOCH) // SLOT * SLOT


class Sampler:
    """Gathers looks into samples. Keeping one twice is harmless: the store joins them."""

    def __init__(self) -> None:
        self._samples: dict[str, Sample] = {}
        self._kept_at: datetime | None = None

    def look(
        self, gpus: Mapping[str, int], demands: Mapping[str, Demand], *, now: datetime
    ) -> list[Sample]:
        """Take in how the pools stand at `now`; return the samples to keep, if it is time.

        Args:
            gpus: healthy GPUs by pool.
            demands: of the cluster's queue; those of other pools are not ours to plan for.
            now: when this was seen.
        """
        slot = slot_of(now)
        over = [sample for sample in self._samples.values() if sample.slot != slot]
        for sample in over:
            del self._samples[sample.pool]
        for pool, healthy in gpus.items():
            demand = demands.get(pool, _NONE)
            seen = Sample(
                pool=pool, slot=slot, gpus=healthy, running=demand.running, pending=demand.pending
            )
            before = self._samples.get(pool)
            self._samples[pool] = seen if before is None else before.joined(seen)
        if self._kept_at is not None and now < self._kept_at + _KEEP_EVERY:
            return over
        self._kept_at = now
        return [*over, *self._samples.values()]
