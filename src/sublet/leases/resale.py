"""Unused GPUs of a reserved window, back on sale: at a limit price, or paused for any price.

What they bring is shared: a part of what is paid for the seconds in which somebody used them goes
to the window's tenant, who has paid for the window already; the rest is the house's. They are lent
interruptibly only, so that they can be taken back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final
from uuid import UUID

from sublet.core.errors import Invalid, Refused
from sublet.core.money import Money, Rate
from sublet.leases.lease import Lease
from sublet.leases.reservation import Reservation

# Of what is paid for the seconds used. Who says a price takes the risk that nobody pays it.
SOLD_PERCENT: Final = 80
PAUSED_PERCENT: Final = 50
_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resale:
    """GPUs of a window that its tenant does not use."""

    id: UUID
    reservation_id: UUID
    gpus: int
    limit: Rate | None  # the least price; None: paused
    share_percent: int
    listed_at: datetime
    ended_at: datetime | None = None  # taken back

    def end(self, window: Reservation) -> datetime:
        """Return until when they are on sale."""
        return window.ends_at if self.ended_at is None else min(self.ended_at, window.ends_at)

    def takes(self, rate: Rate) -> bool:
        """Say whether a price is not below its limit."""
        limit = self.limit
        return limit is None or rate.nanos * limit.per >= limit.nanos * rate.per


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """What of a resale nobody uses yet."""

    resale: Resale
    gpus: int


def check(resale: Resale, window: Reservation, *, drawn: int, listed: int, now: datetime) -> None:
    """Hold a new resale to what its window has left.

    Args:
        resale: as asked for.
        window: of which it is.
        drawn: GPUs of leases on the window.
        listed: GPUs of it that are on sale already.
        now: the present instant.

    Raises:
        Invalid: fewer than one GPU, or a price of nothing.
        Refused: the window does not last now, or its GPUs are in use or on sale already.
    """
    if resale.gpus < 1:
        raise Invalid(f"gpus must be at least 1, not {resale.gpus}")
    if resale.limit is not None and resale.limit.nanos <= 0:
        raise Invalid("a limit price is more than zero; to let them go for any price, pause them")
    if not window.starts_at <= now < window.ends_at:
        when = "has not begun" if now < window.starts_at else "is over"
        raise Refused(f"reservation {window.id} {when}: only what runs unused can be sold")
    left = window.gpus - window.lost_gpus - drawn - listed
    if resale.gpus > left:
        raise Refused(
            f"{resale.gpus} GPUs were offered and reservation {window.id} has {max(left, 0)} that"
            f" are neither in use ({drawn}) nor on sale already ({listed})"
        )


def take(free: Sequence[Free], *, gpus: int, rate: Rate) -> list[Free] | None:
    """Choose whose GPUs a lease takes: the lowest limits first, then who offered first.

    Args:
        free: what is on sale in its pool.
        gpus: how many it needs beyond what the operator itself has to lend.
        rate: what it pays.

    Returns:
        of whom, and how many; None where so many are not on sale at this price.
    """
    taken: list[Free] = []
    for one in sorted(free, key=_order):
        if gpus and one.gpus and one.resale.takes(rate):
            taken.append(Free(resale=one.resale, gpus=min(one.gpus, gpus)))
            gpus -= taken[-1].gpus
    return None if gpus else taken


def _order(one: Free) -> tuple[Fraction, datetime, UUID]:
    limit = one.resale.limit
    least = Fraction(0) if limit is None else Fraction(limit.nanos, limit.per)
    return least, one.resale.listed_at, one.resale.id


def used_seconds(lease: Lease, resale: Resale, window: Reservation, *, now: datetime) -> int:
    """Return for how many whole seconds a lease was usable while its GPUs were on sale."""
    if lease.running_at is None:
        return 0
    start = max(lease.running_at, window.starts_at, resale.listed_at)
    end = min(now if lease.stopped_at is None else lease.stopped_at, resale.end(window))
    return max((end - start) // _SECOND, 0)


def is_over(lease: Lease, resale: Resale, window: Reservation, *, now: datetime) -> bool:
    """Say whether no more seconds will be added."""
    stopped = lease.stopped_at is not None or lease.end_reason is not None
    return stopped or now >= resale.end(window)


def share(rate: Rate, *, gpus: int, seconds: int, percent: int) -> Money:
    """Return the seller's part of what is paid for GPUs, rounded once."""
    part = Rate(nanos=rate.nanos * percent, per=rate.per * 100, currency=rate.currency)
    return part.charge(gpus * seconds)
