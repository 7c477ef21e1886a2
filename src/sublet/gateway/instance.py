"""One run of one gateway process, which alone bears its name while it lives.

That it is alone makes one thing safe: every hold that an earlier run of this name left open
belongs to nobody, and its money is returned at once. A lock in Postgres, held by a
connection that ends with the process, makes it true.
"""

import hashlib
import re
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import Connection

from sublet.core.clock import Beat, Clock, SystemClock
from sublet.core.db import Database, Tx, load_queries
from sublet.core.errors import Conflict, Misconfigured, Unavailable
from sublet.core.ids import new_id
from sublet.ledger import store as ledger
from sublet.ledger.batch import void_many
from sublet.tenants.limits import sweep_budgets

QUERIES: Final = load_queries("sublet.gateway")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SWEEP: Final = 100  # holds returned in one transaction


@dataclass(slots=True)
class Instance:
    """Sync: runs in the spool's threads, one call at a time."""

    name: str
    url: str
    clock: Clock
    id: UUID = field(default_factory=new_id)
    _lock: Connection[Any] | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise Misconfigured(
                f"a gateway's name has letters, digits, '.', '_' and '-', not {self.name!r}"
            )

    @property
    def holder(self) -> str:
        """Who resolves the holds of this run."""
        return f"gateway:{self.name}:{self.id}"

    def start(self, db: Database, *, wait_seconds: float) -> None:
        """Take the name: from now on `sweep` is safe.

        Raises:
            Misconfigured: another process bears this name and goes on living.
            Unavailable: the database did not answer.
        """
        until = time.monotonic() + wait_seconds
        while not self._take_name():
            if time.monotonic() >= until:
                raise Misconfigured(
                    f"another gateway named {self.name!r} is running on this database:"
                    " stop it, or give this one another name"
                )
            time.sleep(0.1)
        with db.transaction() as tx:
            tx.execute(
                QUERIES["insert_instance"],
                {"instance": self.id, "name": self.name, "now": self.clock.now()},
            )
        self.beat()  # which sets the clock before any money is held by it

    def beat(self) -> bool:
        """Say that this run lives.

        Returns:
            False when the name is another's now: this run must end.

        Raises:
            Unavailable: the database did not answer; nothing is decided by that.
        """
        if not self._take_name():
            return False
        assert self._lock is not None
        try:
            self._lock.execute(
                QUERIES["touch_instance"], {"instance": self.id, "now": self.clock.now()}
            )
            self._follow_clock(self._lock)
        except psycopg.OperationalError as error:
            self._drop()
            raise Unavailable(f"the database did not answer: {error}") from error
        return True

    def stop(self) -> None:
        """Give the name back."""
        self._drop()

    def _take_name(self) -> bool:
        if self._lock is not None:
            return True
        digest = hashlib.sha256(f"sublet gateway {self.name}".encode()).digest()
        key = int.from_bytes(digest[:8], "big", signed=True)
        try:
            connection = psycopg.connect(self.url, autocommit=True, connect_timeout=5)
            row = connection.execute(QUERIES["try_name"], {"key": key}).fetchone()
        except psycopg.OperationalError as error:
            raise Unavailable(f"the database did not answer: {error}") from error
        assert row is not None
        if not row[0]:
            connection.close()
            return False
        self._lock = connection
        return True

    def _follow_clock(self, connection: Connection[Any]) -> None:
        """Go by the control plane's clock, by which holds expire, if it is on this machine.

        Its own may have been started before the machine's was set, and ours after.
        """
        row = connection.execute(QUERIES["get_clock"]).fetchone()
        if row is not None and isinstance(self.clock, SystemClock):
            instant, boot, steady = row
            theirs = Beat(instant=instant, boot=boot, steady_seconds=steady).now()
            if theirs is not None:
                self.clock.set(theirs)

    def has_company(self, tx: Tx, *, now: datetime) -> bool:
        """Say whether other gateways live on this database."""
        row = tx.execute(QUERIES["has_company"], {"instance": self.id, "now": now}).fetchone()
        assert row is not None
        return bool(row["there"])

    def sweep(self, db: Database) -> int:
        """Return what earlier runs of this name held, before this one holds anything.

        Returns:
            how many holds that were.
        """
        with db.transaction() as tx:
            sweep_budgets(tx, f"gateway:{self.name}:", now=self.clock.now())
            left = [hold.id for hold in ledger.holds_of(tx, f"gateway:{self.name}:")]
        for start in range(0, len(left), _SWEEP):
            with db.transaction() as tx:
                outcomes = void_many(tx, left[start : start + _SWEEP], now=self.clock.now())
            for outcome in outcomes:
                # A conflict: it expired meanwhile, so its money is back already.
                if outcome is not None and not isinstance(outcome, Conflict):
                    raise outcome
        return len(left)

    def _drop(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
