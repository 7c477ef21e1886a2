"""A quote: a price that is held for whoever asked, for a while."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.errors import Refused
from sublet.core.money import Money
from sublet.market.price import Price, Tier

LIFETIME: Final = timedelta(minutes=10)
LONGEST_LIFETIME: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What was asked for, and for how much it is sold until `expires_at`. It holds no GPUs."""

    id: UUID
    tenant_id: UUID
    pool: str
    gpus: int
    tier: Tier
    notice: timedelta
    max_duration: timedelta  # of a window: its length
    starts_at: datetime | None  # of a window
    price: Price  # what would be paid
    list_price: Price  # what the list says
    made_at: datetime
    expires_at: datetime
    accepted_at: datetime | None = None
    sold: UUID | None = None  # the lease or reservation that it became

    @property
    def most(self) -> Money:
        """What it costs at most, should all of it be used."""
        return self.price.rate.charge_most(self.gpus * (self.max_duration // timedelta(seconds=1)))

    def state(self, now: datetime) -> str:
        if self.accepted_at is not None:
            return "accepted"
        return "open" if now < self.expires_at else "expired"

    def check(self, sold: UUID, *, now: datetime) -> None:
        """Raises Refused: it was accepted before, for something else, or has expired."""
        if self.sold == sold:
            return
        if self.accepted_at is not None:
            raise Refused(
                f"quote {self.id} was accepted at {self.accepted_at:%Y-%m-%d %H:%M:%S} UTC and"
                f" became {self.sold}: a quote is used once; ask for another"
            )
        if now >= self.expires_at:
            raise Refused(
                f"quote {self.id} expired at {self.expires_at:%Y-%m-%d %H:%M:%S} UTC;"
                " ask for another"
            )
