"""Every lease that has not ended, kept in memory: read whole once, then only what was written since.

The database says which rows were written by transactions that had not ended at the last look, and
how many leases are live. Should that count be another than ours, all of them are read anew; so
nothing depends on being told of every change.
"""

from collections import Counter
from collections.abc import Mapping
from uuid import UUID

from sublet.core.db import Tx
from sublet.leases import store
from sublet.leases.lease import HOLDING, Lease, LeaseId


class Live:
    """As of the last look."""

    def __init__(self) -> None:
        self._leases: dict[UUID, Lease] = {}
        self._in_order: list[Lease] | None = None  # None: to be sorted again
        self._held: Counter[str] | None = None
        self._since: str | None = None  # None: all must be read
        self.shape = 0  # counts changes of who is live, in which state, and asked to leave

    @property
    def by_id(self) -> Mapping[UUID, Lease]:
        return self._leases

    def look(self, tx: Tx) -> list[Lease]:
        """Return every lease that has not ended, oldest first."""
        changes = store.list_changed(tx, since=self._since)
        for lease in changes.leases:
            before = self._leases.get(lease.id)
            self._leases[lease.id] = lease
            if before is None or _shape(before) != _shape(lease):
                self._reshaped()
        if changes.leases:
            self._in_order = None
        self._since = changes.horizon
        if len(self._leases) != changes.live:
            self.forget()
            return self.look(tx)
        if self._in_order is None:
            leases = self._leases.values()
            self._in_order = sorted(leases, key=lambda one: (one.requested_at, one.id))
        return self._in_order

    def drop(self, lease_id: LeaseId) -> None:
        """Take in that a lease has ended."""
        if self._leases.pop(lease_id, None) is not None:
            self._in_order = None
            self._reshaped()

    def forget(self) -> None:
        """Take nothing for known."""
        self._leases.clear()
        self._since = self._in_order = None
        self._reshaped()

    def held(self) -> Mapping[str, int]:
        """Return how many GPUs of each pool leases hold, until the engine shows them empty."""
        if self._held is None:
            self._held = Counter()
            for lease in self._leases.values():
                if lease.state in HOLDING:
                    self._held[lease.pool] += lease.gpus
        return self._held

    def _reshaped(self) -> None:
        self._held = None
        self.shape += 1


def _shape(lease: Lease) -> tuple[object, ...]:
    return lease.state, lease.release_asked
