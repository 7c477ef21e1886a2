"""Which leases need something now. Of ten thousand that run, hardly any does in a tenth of a second."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sublet.core.errors import Unavailable
from sublet.engine.port import Engine, Phase
from sublet.leases import blocks
from sublet.leases.lease import Lease, LeaseId, State

_BLOCK = timedelta(seconds=blocks.BLOCK_SECONDS)


class Attention:
    """Knows of each running lease until when only its engine can have news of it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._quiet_until: dict[LeaseId, datetime] = {}

    def rest(self, lease: Lease, *, seen_until: datetime) -> None:
        """Leave a lease that runs alone: its fence stands, and what was used of it is charged.

        Until a block is over, the next one is to be held, or it ends.
        """
        if lease.state is not State.RUNNING or lease.running_at is None:
            self._quiet_until.pop(lease.id, None)
            return
        over = blocks.over(lease, seen_until=seen_until)
        until = lease.running_at + (over + 1) * _BLOCK
        if lease.ends_at is not None:
            until = min(until, lease.ends_at)
        if lease.paid_until is not None and lease.paid_until != lease.ends_at:
            until = min(until, lease.paid_until - blocks.AHEAD)
        self._quiet_until[lease.id] = until

    def forget(self) -> None:
        """Look at all of them again."""
        self._quiet_until.clear()

    def look(self, live: Sequence[Lease], *, now: datetime) -> tuple[list[Lease], bool]:
        """Return the leases that need something, in the order given, and whether any is odd.

        Odd is one of which the engine does not say that it runs, or that is not to run on: what it
        holds is not what is stored.
        """
        needing = []
        odd = False
        observe, quiet_until = self._engine.observe, self._quiet_until
        for lease in live:
            if lease.state is State.RUNNING and lease.release_asked is None:
                try:
                    seen = observe(lease.id)
                except Unavailable:
                    odd = True
                    needing.append(lease)
                    continue
                if seen.phase is Phase.RUNNING and seen.reclaimed_at is None:
                    until = quiet_until.get(lease.id)
                    if until is None or now >= until:
                        needing.append(lease)
                    continue
            odd = True
            needing.append(lease)
        return needing, odd
