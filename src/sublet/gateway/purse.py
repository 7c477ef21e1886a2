"""A tenant's money in one gateway's hands: held once in the ledger, given out many times here.

    wallet ──hold──► purse ──┬── free        may be given to the next request
                             ├── committed   given to requests that run
                             ├── spent       used by requests that ended, not yet handed over
                             └── leaving     on its way back to the wallet

They add up to what is held. Giving and taking back is arithmetic in memory, so a busy
tenant costs the database a few holds a second, however many requests it sends. Pure: no clock,
no database; times are seconds that only go forward.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar
from uuid import UUID

from sublet.gateway.grant import Grant, Need

# The ledger's hold lives for fifteen minutes and a request for ten: this long a purse may still
# be given from when the database is away and it cannot be renewed.
USABLE_SECONDS: Final = 270.0
RENEW_SECONDS: Final = 120.0
IDLE_SECONDS: Final = 60.0  # then what is free goes back to the wallet
_GROWTH: Final = 2
_AHEAD: Final = 16  # times what was asked, the first time a tenant comes back soon

W = TypeVar("W")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A hold in the ledger that backs a purse."""

    id: UUID
    nanos: int


@dataclass(slots=True)
class Purse(Generic[W]):
    """`W` is what waits for money: a request and whom to tell."""

    tenant_id: UUID
    idle_seconds: float = IDLE_SECONDS
    hold_id: UUID | None = None  # the ledger's; None: nothing is held
    held: int = 0  # nanos, as are all below
    committed: int = 0
    spent: int = 0
    leaving: int = 0  # on its way back to the wallet
    keep: int = 0  # how much to have free: grows while requests come
    held_at: float = 0.0  # when the hold was made
    used_at: float = 0.0  # when it last gave
    refilled_at: float = float("-inf")
    busy: bool = False  # the database works on its hold: nobody else may
    closed: bool = False  # … and nothing may be given meanwhile
    waiting: deque[W] = field(default_factory=deque)

    @property
    def free(self) -> int:
        return max(0, self.held - self.committed - self.spent - self.leaving)

    @property
    def unused(self) -> bool:
        """Is there nothing in it that anybody asked for, or will?"""
        return not (self.busy or self.waiting or self.committed or self.spent)

    def take(self, need: Need, *, now: float) -> Grant | None:
        """Give what `need` may cost, if it is there; who waits already comes first."""
        if self.closed or self.waiting or now - self.held_at > USABLE_SECONDS:
            return None
        amount = need.most
        if amount.nanos > self.free:
            return None
        return self.give(need.grant(amount), now=now)

    def give(self, grant: Grant, *, now: float) -> Grant:
        """Note that a request has this, and runs."""
        self.committed += grant.amount.nanos
        self.used_at = now
        return grant

    def end(self, grant: Grant, *, used: int) -> None:
        """Note that a request ended, which used so many nanos of its grant."""
        assert 0 <= used <= grant.amount.nanos, (used, grant)
        self.committed -= grant.amount.nanos
        self.spent += used

    def expect(self, asked: int, *, now: float) -> int:
        """Return how much more to hold than the `asked` nanos: nothing for who comes rarely."""
        if now - self.refilled_at < self.idle_seconds:
            self.keep = max(self.keep * _GROWTH, asked * _AHEAD)
        else:
            self.keep = 0
        self.refilled_at = now
        return self.keep

    def surplus(self, *, now: float) -> int:
        """Return what is free and need not be kept, at a moment when the hold is made anew."""
        if now - self.used_at > self.idle_seconds:
            self.keep = 0
        return max(0, self.free - self.keep)

    def stays(self, spent: int, *, now: float) -> bool:
        """Say whether its hold is to be left as it is when `spent` nanos are paid for.

        They are then paid from the wallet beside it, which costs the ledger one transfer instead
        of the two of a hold that is resolved and made anew.
        """
        young = self.hold_id is not None and now - self.held_at <= RENEW_SECONDS
        return young and self.surplus(now=now) + spent <= self.keep

    @property
    def backing(self) -> Held | None:
        return None if self.hold_id is None else Held(id=self.hold_id, nanos=self.held)

    def rehold(self, backing: Held | None, *, at: float) -> None:
        """Note what the ledger holds for it, and since when."""
        self.hold_id = None if backing is None else backing.id
        self.held = 0 if backing is None else backing.nanos
        self.held_at = at
        self.leaving = 0
        self.busy = self.closed = False
