"""The terms that a lease is sold on: its notice, how long it is firm, and what it must pay."""

from datetime import datetime, timedelta
from typing import Final

from sublet.core.errors import Invalid, Refused
from sublet.core.money import Rate
from sublet.fleet.pool import Pool
from sublet.market.price import Tier, is_below, least_rate
from sublet.planner.firm import Room

SHORTEST_NOTICE: Final = timedelta(seconds=10)


def longest_notice(pool: Pool) -> timedelta:
    return timedelta(seconds=pool.policy.notice_seconds)


def notice_of(pool: Pool, asked: timedelta | None) -> timedelta:
    """Return the notice that a lease of `pool` gets; the longest if none was asked for.

    Raises:
        Invalid: shorter than anybody could act on, or longer than an internal job may wait.
    """
    longest = longest_notice(pool)
    if asked is None or asked == longest:
        return longest
    if not SHORTEST_NOTICE <= asked <= longest:
        raise Invalid(
            f"notice_seconds: pool {pool.name} sells notices of"
            f" {_seconds(min(SHORTEST_NOTICE, longest))} to {_seconds(longest)} seconds,"
            f" not {_seconds(asked)}"
        )
    return asked


def check_quiet(pool: Pool, *, now: datetime, firm: timedelta) -> None:
    """Raises Refused: it is quiet now, or would be before a promise ends."""
    quiet = pool.policy.quiet
    if quiet is None:
        return
    if not quiet.wait(now):
        raise Refused(f"pool {pool.name} sells nothing new in its quiet hours, {quiet} UTC")
    if firm and quiet.meet(now, now + firm):
        raise Refused(
            f"pool {pool.name} promises nothing of its quiet hours, {quiet} UTC;"
            f" {Tier.INTERRUPTIBLE} leases can be had until {now + quiet.wait(now):%H:%M}"
        )


def check_firm(pool: Pool, *, gpus: int, firm: timedelta, room: Room, sellable: int) -> None:
    """Raises Refused: the plan does not hold it; says what would be possible instead."""
    if gpus <= room.gpus:
        return
    fewer = f"{min(room.gpus, sellable)} {Tier.ON_DEMAND}, or " if room.gpus else ""
    raise Refused(
        f"not firm: {gpus} of {pool.name} were asked for {_seconds(firm)} seconds and"
        f" {room.gpus} can be promised: {room.why};"
        f" possible now: {fewer}{min(gpus, sellable)} {Tier.INTERRUPTIBLE}"
    )


def check_price(pool: Pool, rate: Rate, *, bid: Rate | None) -> None:
    """Raises Refused: the price is below the pool's floor, or below what it is worth now."""
    least = least_rate(floor=pool.policy.floor, bid=bid)
    if least is not None and is_below(rate, least):
        raise Refused(
            f"pool {pool.name} is sold for {least.charge(3600)} a GPU-hour or more now,"
            f" and this would pay {rate.charge(3600)}"
        )


def _seconds(length: timedelta) -> int:
    return int(length.total_seconds())
