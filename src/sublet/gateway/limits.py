"""How often and how much one key may ask: two buckets that refill by the minute.

A request takes its tokens before it starts, as many as it may use at most, and gives back
what it did not use. Each gateway process counts for itself.
"""

from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from sublet.gateway.failures import Failure, Kind

_PERIOD_SECONDS = 60.0


@dataclass(slots=True)
class Bucket:
    size: int  # refilled in full every minute
    level: float
    at: float  # when `level` was right, on a clock that only goes forward

    def fill(self, now: float) -> None:
        gained = (now - self.at) * self.size / _PERIOD_SECONDS
        self.level = min(float(self.size), self.level + gained)
        self.at = now

    def seconds_until(self, amount: int) -> float:
        return max(0.0, (amount - self.level) * _PERIOD_SECONDS / self.size)


class Standing(NamedTuple):
    """How a key stands with one of its limits."""

    name: str  # "requests" or "tokens"
    size: int  # a minute
    left: int
    full_seconds: float  # until all of it is back


@dataclass(slots=True)
class Pair:
    requests: Bucket
    tokens: Bucket


@dataclass(slots=True, kw_only=True)
class Limiter:
    requests_per_minute: int
    tokens_per_minute: int
    _pairs: dict[UUID, Pair] = field(default_factory=dict)

    def enter(self, key: UUID, *, now: float) -> None:
        """Count one request.

        Raises:
            Failure: there were too many in the last minute.
        """
        bucket = self._pair(key, now).requests
        if bucket.level < 1:
            raise _refusal("requests", bucket, 1)
        bucket.level -= 1

    def reserve(self, key: UUID, tokens: int, *, now: float) -> None:
        """Take what a request may use at most.

        Raises:
            Failure: that many are not left.
        """
        bucket = self._pair(key, now).tokens
        if bucket.level < tokens:
            raise _refusal("tokens", bucket, tokens)
        bucket.level -= tokens

    def give_back(self, key: UUID, tokens: int, *, now: float) -> None:
        """Return what it did not use."""
        bucket = self._pair(key, now).tokens
        bucket.level = min(float(bucket.size), bucket.level + tokens)

    def standing(self, key: UUID, *, now: float) -> list["Standing"]:
        """Say both limits, what is left of each, and when it will be full again."""
        pair = self._pair(key, now)
        return [
            Standing(name, bucket.size, int(bucket.level), bucket.seconds_until(bucket.size))
            for name, bucket in (("requests", pair.requests), ("tokens", pair.tokens))
        ]

    def forget(self, *, now: float) -> None:
        """Drop what is full again: a key that rests costs no memory."""
        for key, pair in list(self._pairs.items()):
            pair.requests.fill(now)
            pair.tokens.fill(now)
            if pair.requests.level >= pair.requests.size and pair.tokens.level >= pair.tokens.size:
                del self._pairs[key]

    def _pair(self, key: UUID, now: float) -> Pair:
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = Pair(
                Bucket(self.requests_per_minute, float(self.requests_per_minute), now),
                Bucket(self.tokens_per_minute, float(self.tokens_per_minute), now),
            )
        pair.requests.fill(now)
        pair.tokens.fill(now)
        return pair


def _refusal(what: str, bucket: Bucket, needed: int) -> Failure:
    if needed > bucket.size:
        return Failure(
            Kind.OVER_LIMIT,
            f"this request may use {needed} {what}, and this key's limit is {bucket.size} a"
            " minute: set a lower max_tokens, or shorten the input",
        )
    wait = max(0.001, bucket.seconds_until(needed))
    return Failure(
        Kind.RATE_LIMITED,
        f"this key's limit is {bucket.size} {what} a minute: {int(bucket.level)} are left and"
        f" this request needs {needed}; retry in {span(wait)}",
        after_seconds=wait,
    )


def span(seconds: float) -> str:
    """Write a span as OpenAI does: 120ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.3g}s"
