"""The terms that a lease is sold on: its notice, how long it is firm, and what it must pay."""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomNow:
    """What of a pool can be sold at an instant, in GPUs."""

    sellable: int
    firm: Room | None  # None: nothing firm was asked for
    own: int  # of `sellable`, what is not of a window whose tenant sells it back

    @property
    def gpus(self) -> int:
        return self.sellable if self.firm is None else min(self.sellable, self.firm.gpus)


def firm_for(pool: Pool, tier: Tier, duration: timedelta) -> timedelta:
    """Return for how long from its start a lease of `tier` is firm."""
    if tier is not Tier.ON_DEMAND:
        return timedelta(0)
    return min(timedelta(seconds=pool.policy.firm_seconds), duration)


def check_nodes(pool: Pool, gpus: int) -> None:
    """Raises Invalid: the pool's leases have their nodes to themselves, and these are parts."""
    if not is_exclusive(pool, gpus) and pool.policy.exclusive:
        raise Invalid(
            f"gpus: a lease of pool {pool.name} has its nodes to itself, so whole nodes are sold:"
            f" a multiple of {pool.node_gpus}, not {gpus}"
        )


def is_exclusive(pool: Pool, gpus: int) -> bool:
    """Say whether so many GPUs have their nodes to themselves, as the pool's policy is now.

    Parts of nodes that were sold under another policy share theirs until they end.
    """
    return pool.policy.exclusive and gpus % pool.node_gpus == 0


def check_room(pool: Pool, *, gpus: int, firm: timedelta, room: RoomNow, now: datetime) -> None:
    """Hold a sale to what there is.

    Raises:
        Invalid: the pool never has so many GPUs.
        Refused: there is no room for it now; says what would be possible instead.
    """
    if gpus > pool.gpus:
        raise Invalid(f"pool {pool.name} has {pool.gpus} GPUs, {gpus} were asked for")
    check_quiet(pool, now=now, firm=firm)
    if gpus > room.sellable:
        raise Refused(
            f"no surplus: {gpus} of {pool.name} were asked for,"
            f" {room.sellable} can be sold now; try again later or ask for fewer"
        )
    if room.firm is not None:
        _check_firm(pool, gpus=gpus, firm=firm, room=room.firm, sellable=room.sellable)


def _check_firm(pool: Pool, *, gpus: int, firm: timedelta, room: Room, sellable: int) -> None:
    """Raises Refused: the plan does not hold it."""
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
