"""What a deployment costs and earns, and so whether models or leases get the same GPUs.

    revenue per GPU-hour = tokens/s * price * load          measured, over the time looked at
    cost per million tokens = GPU-hours * cost of one / tokens
    break-even load = the load at which the two meet, revenue growing with the load
    token floor = cost of a GPU-hour * GPUs / tokens that they make in it

Money is in nanos; loads and shares are of 1. What was not measured is None, never a guess.

Source of the floor: the spread of cost with load in arXiv 2606.11690, and the rule of
docs/operate/models.md.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil, floor
from typing import Final

# A replica is judged by what it earned in such a time, and not before it was up for as long.
WINDOW: Final = timedelta(minutes=10)
# What is there is let go only when leases would pay clearly more, so that it does not come and go.
_STAYS: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was measured of a deployment over some time."""

    gpus: int  # of one replica
    gpu_hours: float
    requests: int
    input_tokens: int
    output_tokens: int
    revenue_nanos: int
    tokens_per_second: float | None  # output, of one replica with its slots full


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a GPU-hour of the deployment's pool is worth, in nanos; None: nobody said."""

    rental_nanos: int | None  # what a lease of its tier costs
    cost_nanos: int | None  # what it costs its owner, all in
    bid_nanos: int | None  # what who may come later would pay
    output_nanos: float | None  # list price of one output token

    @property
    def basis_nanos(self) -> int | None:
        """What one hour is taken to cost: what it costs, else what it would rent for."""
        return self.rental_nanos if self.cost_nanos is None else self.cost_nanos


@dataclass(frozen=True, slots=True, kw_only=True)
class Economics:
    load: float | None  # share of what its replicas could have made that they made
    cost_nanos: float | None
    cost_nanos_per_million: float | None  # of all tokens, at this load
    revenue_nanos_per_gpu_hour: float | None
    full_nanos_per_gpu_hour: float | None  # revenue at a load of 1
    margin: float | None  # share of the revenue that is left
    break_even_load: float | None
    floor_nanos_per_million: float | None  # of output tokens, at a load of 1
    floor_today_nanos_per_million: float | None  # the same at this load


def weigh(seen: Seen, rates: Rates) -> Economics:
    """Return what a deployment costs and earns."""
    hours, basis = seen.gpu_hours, rates.basis_nanos
    makes = _makes(seen)
    load = None
    if makes and hours > 0:
        load = min(1.0, seen.output_tokens / (makes * hours))
    cost = None if basis is None or hours <= 0 else basis * hours
    tokens = seen.input_tokens + seen.output_tokens
    revenue = seen.revenue_nanos / hours if hours > 0 else None
    full = full_nanos(seen, rates)
    least = None if basis is None or not makes else basis / makes * 1e6
    return Economics(
        load=load,
        cost_nanos=cost,
        cost_nanos_per_million=None if cost is None or not tokens else cost / tokens * 1e6,
        revenue_nanos_per_gpu_hour=revenue,
        full_nanos_per_gpu_hour=full,
        margin=None if cost is None or not seen.revenue_nanos else 1 - cost / seen.revenue_nanos,
        break_even_load=None if basis is None or not full else basis / full,
        floor_nanos_per_million=least,
        floor_today_nanos_per_million=None if least is None or not load else least / load,
    )


def full_nanos(seen: Seen, rates: Rates) -> float | None:
    """Return what a GPU-hour would earn at a load of 1: with the mix that was seen, if any was."""
    makes = _makes(seen)
    if not makes:
        return None
    if seen.output_tokens and seen.revenue_nanos:
        return seen.revenue_nanos / seen.output_tokens * makes
    return None if rates.output_nanos is None else rates.output_nanos * makes


def token_floor(*, cost_nanos: int, gpus: int, tokens_per_second: float) -> int:
    """Return the least price of a million output tokens, in nanos: what they cost at a load of 1."""
    return ceil(cost_nanos * gpus / (tokens_per_second * 3600) * 1e6)


def worth(
    seen: Seen,
    rates: Rates,
    *,
    replicas: int,
    newest_ready_at: datetime | None,
    now: datetime,
) -> int | None:
    """Return how many replicas earn more than leases would pay for their GPUs.

    Args:
        seen: over the last `WINDOW`.
        rates: now.
        replicas: that there are.
        newest_ready_at: when the last of them was ready; None: one is not yet.
        now: the present instant.

    Returns:
        None: nobody bids, so as many as there is load for.
    """
    bid = (rates.bid_nanos or 0) * seen.gpus
    if bid <= 0:
        return None
    full = full_nanos(seen, rates)
    if full is not None and full * seen.gpus < bid * _STAYS:
        return 0  # not even when it is full
    if not replicas:
        # One is worth a try where it could pay; how many more, what it earns will say.
        return None if full is None or full * seen.gpus >= bid else 0
    if newest_ready_at is None or now - newest_ready_at < WINDOW:
        return replicas  # too new to be judged, or to have another beside it
    earned = seen.revenue_nanos * (timedelta(hours=1) / WINDOW)
    if earned >= bid * replicas:
        return replicas + 1  # added where there is load for it, when these are paid for
    return min(replicas, floor(earned / (bid * _STAYS)))


def _makes(seen: Seen) -> float | None:
    """Return how many output tokens one GPU makes in an hour with all slots at work."""
    if seen.tokens_per_second is None:
        return None
    return seen.tokens_per_second * 3600 / seen.gpus
