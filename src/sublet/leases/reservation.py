"""A reserved window: GPUs promised from one instant to another, and paid, used or not.

Leases are drawn on it while it lasts. Block `k` covers the seconds [3600·k, 3600·(k+1)) after its
start, and never more than the window; all of them are held when it is booked. A step of a contract
is a window, too: its blocks are days, each held a day ahead.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.errors import Invalid, Refused
from sublet.core.money import Money, Rate
from sublet.engine.port import Window
from sublet.fleet.pool import Pool
from sublet.market.price import Tier
from sublet.planner.firm import Promised

BLOCK_SECONDS: Final = 3_600
DAY_SECONDS: Final = 86_400
LONGEST: Final = timedelta(days=31)
FURTHEST: Final = timedelta(days=366)
# A look at the cluster, and the loop's own steps, on top of the notice of whoever is in the way.
SLACK: Final = timedelta(seconds=5)
_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    id: UUID
    tenant_id: UUID
    pool: str
    gpus: int
    starts_at: datetime
    ends_at: datetime  # half-open
    notice: timedelta
    credit_percent: int
    price_id: int
    list_price_id: int
    booked_at: datetime
    has_workload: bool = False  # it starts by itself …
    started: bool = False  # … and did
    lost_gpus: int = 0  # whose promise was broken, and credited
    asked_at: datetime | None = None  # since when GPUs of it were wanted and not free
    ended: bool = False
    contract_id: UUID | None = None  # whose step it is
    block_length: int = BLOCK_SECONDS
    unpaid: bool = False  # the wallet could not hold the next day: nothing is leased meanwhile

    @property
    def seconds(self) -> int:
        return (self.ends_at - self.starts_at) // _SECOND

    @property
    def blocks(self) -> int:
        return -(-self.seconds // self.block_length)

    @property
    def tier(self) -> Tier:
        return Tier.RESERVED if self.contract_id is None else Tier.CONTRACT

    def block_seconds(self, block: int) -> int:
        """Return how many seconds block `block` covers: fewer at the end."""
        return max(min(self.block_length, self.seconds - block * self.block_length), 0)

    def block_end(self, block: int) -> datetime:
        return min(
            self.starts_at + timedelta(seconds=(block + 1) * self.block_length), self.ends_at
        )

    def state(self, now: datetime) -> str:
        if now < self.starts_at:
            return "booked"
        return "active" if now < self.ends_at else "ended"

    def cost(self, rate: Rate) -> Money:
        """What it costs, used or not: each block is rounded by itself."""
        return Money(
            sum(
                rate.charge(self.gpus * self.block_seconds(block)).nanos
                for block in range(self.blocks)
            ),
            rate.currency,
        )

    def check_draw(self, gpus: int, *, drawn: int, listed: int, now: datetime) -> None:
        """Hold a lease on it to what was reserved.

        Args:
            gpus: of the lease.
            drawn: of leases on it that have not ended.
            listed: that its tenant has put back on sale.
            now: the present instant.

        Raises:
            Refused: it has not begun or is over, or has no GPUs left for this.
        """
        if not self.starts_at <= now < self.ends_at:
            when = "has not begun" if now < self.starts_at else "is over"
            raise Refused(
                f"reservation {self.id} {when}: it is from {_text(self.starts_at)}"
                f" until {_text(self.ends_at)}"
            )
        if self.unpaid:
            raise Refused(
                f"the wallet could not pay for the next day of contract {self.contract_id}:"
                " nothing is leased from it until it can"
            )
        free = self.gpus - self.lost_gpus - drawn - listed
        if gpus > free:
            lost = f" and {self.lost_gpus} were taken back and credited" if self.lost_gpus else ""
            lost += f" and {listed} are back on sale: take them back first" if listed else ""
            raise Refused(
                f"{gpus} GPUs were asked for and reservation {self.id} has {max(free, 0)} left:"
                f" {drawn} of {self.gpus} are in use{lost}"
            )


def check_window(pool: Pool, start: datetime, end: datetime, *, gpus: int, now: datetime) -> None:
    """Hold a window to what can be sold at all.

    Raises:
        Invalid: it can never be sold as written.
        Refused: the pool's policy does not sell it.
    """
    if not 1 <= gpus <= 1_000_000:
        raise Invalid(f"gpus must be at least 1, not {gpus}")
    if start.microsecond or end.microsecond:
        raise Invalid("a window starts and ends at a whole second")
    if end <= start:
        raise Invalid(f"the window ends at {_text(end)}, before it starts at {_text(start)}")
    if start < now - _SECOND:
        raise Invalid(f"the window starts at {_text(start)}, which is in the past")
    if end - start > LONGEST:
        raise Invalid(f"a window is at most {LONGEST.days} days long; book several")
    if start > now + FURTHEST:
        raise Invalid(f"a window starts within {FURTHEST.days} days")
    if gpus > pool.gpus:
        raise Invalid(f"pool {pool.name} has {pool.gpus} GPUs, {gpus} were asked for")
    policy = pool.policy
    if not policy.lendable:
        raise Refused(f"the operator sells nothing of pool {pool.name}")
    if policy.quiet is not None and policy.quiet.meet(start, end):
        raise Refused(f"pool {pool.name} promises nothing of its quiet hours, {policy.quiet} UTC")


def of_reservation(found: Reservation) -> Promised:
    return Promised(gpus=found.gpus - found.lost_gpus, start=found.starts_at, end=found.ends_at)


def as_window(found: Reservation) -> Window:
    """Return it as an engine sees it: what is left of its promise."""
    return Window(
        id=found.id,
        gpu_model=found.pool,
        gpus=found.gpus - found.lost_gpus,
        starts_at=found.starts_at,
        ends_at=found.ends_at,
    )


def lead(pool: Pool) -> timedelta:
    """Return how long before a window starts its GPUs must be cleared."""
    return timedelta(seconds=pool.policy.notice_seconds) + SLACK


def broken_credit(
    rate: Rate, *, gpus: int, percent: int, broken_at: datetime, until: datetime
) -> Money:
    """Return what a broken promise is credited with: so many per cent of what was left of it.

    Never more than all of what was left.
    """
    left = rate.charge(gpus * (max(until - broken_at, timedelta(0)) // _SECOND))
    agreed = Rate(nanos=rate.nanos * min(percent, 100), per=rate.per * 100)
    credit = agreed.charge(gpus * (max(until - broken_at, timedelta(0)) // _SECOND))
    return min(credit, left, key=lambda money: money.nanos)


def overdue(reservations: Iterable[Reservation], pool: Pool, now: datetime) -> list[Reservation]:
    """Return those whose tenant waits for GPUs for longer than anybody's notice takes."""
    return [
        found
        for found in reservations
        if found.asked_at is not None
        and now >= found.asked_at + lead(pool)
        and now < found.ends_at
        and found.lost_gpus < found.gpus
    ]


def _text(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
