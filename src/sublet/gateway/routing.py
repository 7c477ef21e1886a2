"""Which replica a request goes to.

The one with the least of our work outstanding, unless another has this prompt's beginning in its
cache and little more to do. A tier that is sold from idle capacity stays on it, and the best tier
prefers what was promised. One that failed rests, longer each time, and is asked again when it
answers `/health`, or when its rest is over; but it is asked all the same when no other is left.
Pure: no network; times are seconds that only go forward.
"""

import zlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sublet.gateway.ask import Api, Ask
from sublet.models.deployment import Replica

# Sold from what is idle: they run on interruptible leases alone.
IDLE_TIERS: Final = frozenset({"flex", "batch"})
_SLACK: Final = 4  # requests more than the least loaded: a cached prompt is worth so many
_PREFIX: Final = 1024  # characters of a prompt's beginning
_MOST_PREFIXES: Final = 20_000
_FIRST_REST_SECONDS: Final = 0.5
_LONGEST_REST_SECONDS: Final = 30.0


@dataclass(slots=True)
class Routing:
    """Who works on how much, and rests until when."""

    load: Counter[UUID] = field(default_factory=Counter)  # requests of ours, by replica
    _last: OrderedDict[int, UUID] = field(default_factory=OrderedDict)  # by beginning: who had it
    _failures: dict[UUID, int] = field(default_factory=dict)  # in a row
    _rests: dict[UUID, float] = field(default_factory=dict)  # until when

    def pick(
        self, ready: Sequence[Replica], ask: Ask, *, tried: Sequence[Replica], now: float
    ) -> Replica | None:
        """Return whom to ask next; None when all were."""
        left = [replica for replica in ready if replica not in tried] if tried else ready
        left = by_tier(left, ask.service_tier)
        if not left:
            return None
        rests, load = self._rests, self.load
        well = [replica for replica in left if rests.get(replica.id, 0.0) <= now] or left
        beginning = beginning_of(ask)
        # Of equals the same one for the same beginning, at every gateway: rendezvous hashing.
        chosen = min(well, key=lambda it: (load[it.id], zlib.crc32(it.id.bytes, beginning)))
        last = self._last.get(beginning)
        if last is not None and last != chosen.id:
            most = load[chosen.id] + _SLACK
            for replica in well:
                if replica.id == last and load[last] <= most:
                    chosen = replica
        self._last[beginning] = chosen.id
        self._last.move_to_end(beginning)
        if len(self._last) > _MOST_PREFIXES:
            self._last.popitem(last=False)
        return chosen

    def begin(self, replica: Replica) -> None:
        self.load[replica.id] += 1

    def end(self, replica: Replica) -> None:
        self.load[replica.id] -= 1
        if not self.load[replica.id]:
            del self.load[replica.id]

    def failed(self, replica: Replica, *, now: float, seconds: float | None = None) -> None:
        """Let it rest: for as long as it asks, or longer each time."""
        failures = self._failures.get(replica.id, 0)
        if seconds is None:
            self._failures[replica.id] = failures + 1
            seconds = min(_LONGEST_REST_SECONDS, _FIRST_REST_SECONDS * 2 ** min(failures, 10))
        self._rests[replica.id] = max(self._rests.get(replica.id, 0.0), now + seconds)

    def answered(self, replica: Replica) -> None:
        """It is well."""
        if self._rests:
            self._rests.pop(replica.id, None)
            self._failures.pop(replica.id, None)

    def sick(self, ready: Sequence[Replica]) -> list[Replica]:
        """Return who failed and is to be looked at."""
        return [replica for replica in ready if replica.id in self._failures]

    def forget(self, there: set[UUID]) -> None:
        """Drop what is known of replicas that are gone."""
        for id_ in self._rests.keys() - there:
            del self._rests[id_]
            self._failures.pop(id_, None)


def by_tier(ready: Sequence[Replica], tier: str | None) -> Sequence[Replica]:
    """Return those on which a tier may run; of the best tier, those that it prefers."""
    if tier in IDLE_TIERS:
        return [replica for replica in ready if not replica.firm]
    if tier == "priority":
        return [replica for replica in ready if replica.firm] or ready
    return ready


def beginning_of(ask: Ask) -> int:
    """Return a number for how a prompt begins: turns of one conversation share it."""
    if ask.api is Api.COMPLETION:
        said = [str(ask.payload["prompt"])]
    elif ask.api is Api.EMBEDDING:
        said = [str(ask.payload["input"])]
    else:
        messages = ask.payload["messages"]
        assert isinstance(messages, list)
        said = [str(message.get("content")) for message in messages[:2]]
    number = zlib.crc32(ask.model.encode())
    for text in said:
        number = zlib.crc32(text[:_PREFIX].encode(), number)
    return number
