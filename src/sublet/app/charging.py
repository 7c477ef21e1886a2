"""Charging what leases have used: together where that is possible, and each block once."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from sublet.core.clock import Clock
from sublet.core.db import Database, Tx
from sublet.core.errors import Unavailable, Unpaid
from sublet.leases import blocks, store
from sublet.leases.lease import Lease, LeaseId, State
from sublet.metering import lease_meter

log = logging.getLogger(__name__)

_ASK_AGAIN: Final = timedelta(minutes=1)
_LOOK_EVERY: Final = timedelta(seconds=1)

Each = Callable[[Sequence[Lease], Callable[[Lease], None]], None]


class Charging:
    """Knows what it has charged, so that a pass asks the database for what is new alone."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        # In which state each lease was charged last, and for how many whole blocks.
        self._charged: dict[LeaseId, tuple[State, int]] = {}
        self._unpaid: dict[LeaseId, datetime] = {}  # not asked for again before then
        self._looked_at: datetime | None = None  # None: something may be left to settle

    def forget(self) -> None:
        """Take nothing for known."""
        self._charged.clear()
        self._looked_at = None

    def list_unsettled(self, tx: Tx) -> list[Lease]:
        """Return what an earlier process, or an error of ours, has left to settle."""
        now = self._clock.now()
        if self._looked_at is not None and now < self._looked_at + _LOOK_EVERY:
            return []
        self._looked_at = now
        return store.list_unsettled(tx)

    def charge(self, seen: Sequence[tuple[Lease, datetime]], *, each: Each) -> set[LeaseId]:
        """Charge the minutes that went by since the last time, of all these leases, together.

        Args:
            seen: leases, and until when the engine is known to have run each.
            each: does something with each of those that must be charged by themselves.

        Returns:
            which those were.

        Raises:
            Unavailable: the database did not answer.
        """
        looked_at, self._looked_at = self._looked_at, None
        due = []
        for lease, seen_until in seen:
            running = lease.state is State.RUNNING
            over = blocks.over(lease, seen_until=seen_until) if running else -1
            known = self._charged.get(lease.id, (lease.state, 0))
            if (lease.state, over) != known and not self._is_unpaid(lease):
                due.append((lease, seen_until))
                self._charged[lease.id] = lease.state, over
        try:
            apart = lease_meter.settle_together(due, db=self._db, now=self._clock.now())
        except Unavailable:
            for lease, _ in due:
                self._charged.pop(lease.id, None)
            raise
        until = {lease.id: seen_until for lease, seen_until in due}
        for lease in apart:
            del self._charged[lease.id]
        each(apart, lambda lease: self.settle(lease, seen_until=until[lease.id]))
        for lease, _ in due:
            if lease.state is State.ENDED:
                self._charged.pop(lease.id, None)
        if not apart:
            self._looked_at = looked_at
        return {lease.id for lease in apart}

    def settle(self, lease: Lease, *, seen_until: datetime) -> None:
        """Charge what is left of one lease, by itself."""
        now = self._clock.now()
        if self._is_unpaid(lease):
            return
        try:
            lease_meter.settle_blocks(lease, db=self._db, seen_until=seen_until, now=now)
            self._unpaid.pop(lease.id, None)
        except Unpaid as error:
            # Only where somebody resolved its hold by hand. It stays owed, and is asked for again.
            self._unpaid[lease.id] = now + _ASK_AGAIN
            log.warning("lease.owes", extra={"lease": lease.id, "detail": str(error)})

    def _is_unpaid(self, lease: Lease) -> bool:
        now = self._clock.now()
        return now < self._unpaid.get(lease.id, now)
