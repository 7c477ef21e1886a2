"""How many replicas a deployment shall have: from its load as it is now, and nothing else.

It grows at once, to what the outstanding tokens need, or by one when first tokens come late and all
replicas are up. It shrinks one at a time, each after a minute in which one fewer would have done
with room to spare: what makes it shrink can therefore not make it grow again. Without a request for
its idle time it goes to its minimum in one step, which may be none.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sublet.models.deployment import Scaling

SETTLE: Final = timedelta(seconds=60)  # that fewer must have done, before there are fewer
# Of its targets, what one fewer may be loaded to: between this and all of it nothing changes.
COMFORT: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What all gateways together have of a deployment now."""

    requests: int = 0  # that run or wait
    outstanding_tokens: int = 0  # that they may still need
    first_token_ms: int | None = None  # that nine of ten waited lately; None: too few to say
    asked_at: datetime | None = None  # when somebody asked last


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    target: int  # replicas
    fewer_since: datetime | None = None  # since when fewer would do


def scale(
    before: Scale,
    scaling: Scaling,
    load: Load,
    *,
    ready: int,
    now: datetime,
    worth: int | None = None,
) -> Scale:
    """Return how many replicas there shall be.

    Args:
        before: what this said last.
        scaling: the bounds, and what one replica shall have to do.
        load: now.
        ready: replicas that take requests.
        now: the present instant.
        worth: replicas that earn more than leases would on their GPUs; None: not known. Below the
            minimum it says nothing: that is kept whatever it earns.
    """
    most = scaling.max_replicas
    if worth is not None:
        most = max(scaling.min_replicas, min(most, worth))
    if _idle(scaling, load, now):
        return Scale(target=scaling.min_replicas)
    least = min(most, max(scaling.min_replicas, 1))  # somebody asks
    target = max(least, min(most, before.target))
    needed = -(-load.outstanding_tokens // scaling.outstanding_tokens)
    late = load.first_token_ms is not None and load.first_token_ms > scaling.first_token_ms
    if late and load.requests and ready >= target:
        needed = max(needed, target + 1)
    if needed > target:
        return Scale(target=min(most, needed))
    if target == least or not _one_fewer_would_do(target, scaling, load):
        return Scale(target=target)
    since = before.fewer_since or now
    if now - since < SETTLE:
        return Scale(target=target, fewer_since=since)
    return Scale(target=target - 1, fewer_since=now)


def _idle(scaling: Scaling, load: Load, now: datetime) -> bool:
    if load.requests:
        return False
    if load.asked_at is None:
        return True
    return now - load.asked_at >= timedelta(seconds=scaling.idle_seconds)


def _one_fewer_would_do(target: int, scaling: Scaling, load: Load) -> bool:
    room = COMFORT * (target - 1) * scaling.outstanding_tokens
    first = load.first_token_ms
    return load.outstanding_tokens <= room and (
        first is None or first <= COMFORT * scaling.first_token_ms
    )
