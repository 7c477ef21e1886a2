"""One control plane leads; the others wait, and take over from one that died or stands still.

Who leads holds an advisory lock in PostgreSQL, which ends with its connection, and about once
a second counts a beat. When the beats stand still, a waiting one deposes the leader: it counts
the epoch up, which every transaction of the loop checks first, and ends the leader's
connections, so that what had passed the check is undone. Only then it leads itself. Whoever
was merely asleep finds on waking that nothing it does is accepted any more.
"""

import fcntl
import logging
import os
import signal
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import dict_row

from sublet.core.clock import Beat, Clock, SystemClock, beat_of
from sublet.core.db import Tx, load_queries
from sublet.core.errors import Misconfigured, Unavailable
from sublet.core.failpoint import failpoint
from sublet.core.ids import new_id
from sublet.engine.shim import write_durably
from sublet.leases import store as leases
from sublet.ledger import store as ledger

log = logging.getLogger(__name__)

QUERIES: Final = load_queries("sublet.app")
LOCK: Final = 7_355_608_002
_BEAT_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.25
# Longer than any step of a leader that lives; much shorter than the fence of a lease.
STALE_SECONDS: Final = 15.0
_END_MS: Final = 5000  # for its connections to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Who leads, as it says itself."""

    epoch: int
    beat: int
    instance: UUID
    engine: UUID
    place: str
    seen_at: datetime  # of its last beat, by its clock
    boot: str
    steady_seconds: float

    def clock_now(self) -> datetime | None:
        """Return what its clock says now, if that can be known here."""
        beat = Beat(instant=self.seen_at, boot=self.boot, steady_seconds=self.steady_seconds)
        return beat.now()


class Leadership:
    """One process's part in it. Sync, and for one thread at a time."""

    def __init__(
        self,
        url: str,
        *,
        engine: UUID,
        place: str,
        clock: Clock,
        instance: UUID | None = None,
    ) -> None:
        """Be nobody yet.

        Args:
            url: a database; a pooler in transaction mode would lose the lock.
            engine: what this control plane's leases would run on.
            place: where that is, for people.
            clock: for the beats' times.
            instance: of this run.
        """
        self.instance = instance or new_id()
        self.epoch = 0  # of our last time, 0 before the first
        self._url = url
        self.engine = engine
        self._place = place
        self._clock = clock
        self._connection: Connection[dict[str, Any]] | None = None
        self._leads = False
        self._next = 0.0  # of the monotonic clock: when to beat or look again
        self._seen: tuple[int, int] | None = None  # the leader's epoch and beat …
        self._since = 0.0  # … and since when they stand

    @property
    def name(self) -> str:
        """What PostgreSQL calls this process's connections."""
        return name_of(self.instance)

    def hold(self) -> bool:
        """Return whether we lead, trying to if we do not.

        Raises:
            Unavailable: the database did not answer; somebody else may lead by now.
        """
        try:
            if self._leads:
                return self._keep()
            if time.monotonic() < self._next:
                return False
            self._next = time.monotonic() + _LOOK_SECONDS
            return self._take()
        except psycopg.Error as error:
            self.release()
            raise Unavailable(f"the database did not answer: {error}") from error

    def check(self, tx: Tx) -> None:
        """Refuse what is begun by one that leads no more. The first thing in each transaction.

        Raises:
            Unavailable: another control plane leads.
        """
        row = tx.execute(QUERIES["get_epoch"]).fetchone()
        if row is None or row["epoch"] != self.epoch:
            raise Unavailable("another control plane leads by now; this one does nothing more")

    def leader(self) -> Leader | None:
        """Return who leads, or led last.

        Raises:
            Unavailable: the database did not answer.
        """
        try:
            return self._leader(self._connect())
        except psycopg.Error as error:
            self.release()
            raise Unavailable(f"the database did not answer: {error}") from error

    def look(self) -> UUID | None:
        """Watch the leader, without wanting to lead; depose one that stands still.

        Returns:
            the instance that was deposed now, if one was.

        Raises:
            Unavailable: the database did not answer.
        """
        try:
            return self._depose_if_stale(self._connect())
        except psycopg.Error as error:
            self.release()
            raise Unavailable(f"the database did not answer: {error}") from error

    def close(self) -> None:
        """Lead no more."""
        self.release()

    def release(self) -> None:
        self._leads = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ---- leading

    def _keep(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return True
        self._next = now + _BEAT_SECONDS
        row = self._connect().execute(QUERIES["beat"], {"epoch": self.epoch} | self._times())
        if row.rowcount:
            return True
        log.warning("control.deposed", extra={"epoch": self.epoch})
        self.release()
        return False

    def _take(self) -> bool:
        connection = self._connect()
        row = connection.execute(QUERIES["try_leader_lock"], {"key": LOCK}).fetchone()
        assert row is not None
        if not row["ours"]:
            self._depose_if_stale(connection)
            return False
        before = self._leader(connection)
        if before is not None:
            self._check_engine(connection, before)
            if not self.epoch:
                self._resume_clock(connection, before)
        failpoint("control.lead.locked")
        taken = connection.execute(
            QUERIES["take_leadership"],
            {
                "instance": self.instance,
                "engine": self.engine,
                "place": self._place,
            }
            | self._times(),
        ).fetchone()
        assert taken is not None
        self.epoch = taken["epoch"]
        self._leads = True
        failpoint("control.lead.taken")
        log.info("control.leads", extra={"epoch": self.epoch, "place": self._place})
        return True

    def _times(self) -> dict[str, object]:
        beat = beat_of(self._clock)
        return {
            "now": beat.instant, "boot": beat.boot, "steady_seconds": beat.steady_seconds
        }  # fmt: skip

    def _resume_clock(self, connection: Connection[dict[str, Any]], before: Leader) -> None:
        """Go by the clock of the one before us while there are leases or holds that do."""
        if not isinstance(self._clock, SystemClock):
            return
        if not leases.list_live(connection) and not ledger.any_held(connection):
            return
        # Where that cannot be known, at least nothing goes back.
        instant = before.clock_now() or max(before.seen_at, self._clock.now())
        self._clock.set(instant)

    def _check_engine(self, connection: Connection[dict[str, Any]], before: Leader) -> None:
        """Refuse to lead over leases that run on an engine which is not ours.

        They would look lost to us and be settled, while they run on elsewhere. Once the fence
        of each is over, nothing of theirs runs there any more, and we may.

        Raises:
            Misconfigured: says where they run.
        """
        if before.engine == self.engine:
            return
        fence = leases.last_fence(connection)
        if fence is not None and self._clock.now() < fence:
            self.release()
            raise Misconfigured(
                f"leases of this database may run on {before.place} until"
                f" {fence.isoformat(timespec='seconds')}: start the control plane there, or wait"
                " until then"
            )

    # ---- waiting

    def _depose_if_stale(self, connection: Connection[dict[str, Any]]) -> UUID | None:
        found = self._leader(connection)
        now = time.monotonic()
        if found is None or found.instance == self.instance:
            return None
        if self._seen != (found.epoch, found.beat):
            if self._seen is None:
                log.info("control.waits", extra={"leader": found.place, "epoch": found.epoch})
            self._seen, self._since = (found.epoch, found.beat), now
            return None
        if now < self._since + STALE_SECONDS:
            return None
        # First nothing new is accepted of it, then what it had begun is undone.
        connection.execute(QUERIES["depose"], {"epoch": found.epoch})
        failpoint("control.depose.counted")
        ended = connection.execute(
            QUERIES["end_connections"], {"name": name_of(found.instance), "wait_ms": _END_MS}
        ).fetchall()
        log.warning(
            "control.deposes",
            extra={
                "leader": found.place,
                "stood_still_seconds": round(now - self._since),
                "connections_ended": len(ended),
            },
        )
        self._seen = None
        if not all(row["ended"] for row in ended):
            raise Unavailable("the connections of the leader that stands still do not end")
        return found.instance

    def _leader(self, connection: Connection[dict[str, Any]]) -> Leader | None:
        row = connection.execute(QUERIES["get_leader"]).fetchone()
        return None if row is None else Leader(**row)

    def _connect(self) -> Connection[dict[str, Any]]:
        if self._connection is None:
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=5,
                application_name=self.name,
                row_factory=dict_row,
            )
        return self._connection


def name_of(instance: UUID) -> str:
    return f"sublet control {instance}"


# ── at the start of a control plane ──────────────────────────────────────────────────────


def id_of_engine(folder: Path) -> UUID:
    """Return the name of the local engine in `folder`, given to it now if it has none."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "id"
    if not file.exists():
        write_durably(file, str(new_id()).encode())
    return UUID(file.read_text(encoding="ascii").strip())


def wait_for_engine(folder: Path, leadership: Leadership) -> IO[str]:
    """Wait until no other control plane has the local engine in `folder`; return our lock on it.

    An engine must know all that runs, so it has one control plane. One that stands still is
    deposed, and killed: it has the same machine as we, and whoever is dead does not wake.
    """
    lock = (folder / "control.lock").open("a+", encoding="ascii")
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            break
        if not told:
            log.info("control.waits_for_engine", extra={"folder": str(folder)})
            told = True
        try:
            if (deposed := leadership.look()) is not None:
                _kill_holder(folder / "control.lock", deposed)
        except Unavailable as error:
            log.warning("control.unavailable", extra={"detail": str(error)})
        time.sleep(_LOOK_SECONDS)
    lock.truncate(0)
    lock.write(f"{os.getpid()} {leadership.instance}\n")
    lock.flush()
    return lock


def wait_to_lead(leadership: Leadership) -> None:
    """Wait until we lead.

    Raises:
        Misconfigured: leases may run on an engine that is not ours.
        Unavailable: the database did not answer.
    """
    while not leadership.hold():
        leader = leadership.leader()
        if leader is not None and leader.engine != leadership.engine:
            raise Misconfigured(
                f"a control plane on {leader.place} leads this database, and its engine is not"
                " ours: stop it first, or give this one a database of its own (DATABASE_URL)"
            )
        time.sleep(_LOOK_SECONDS)


def _kill_holder(lock: Path, instance: UUID) -> None:
    """Kill the process that has this lock, if it is the one that was deposed."""
    pid, _, holder = lock.read_text(encoding="ascii").strip().partition(" ")
    if holder != str(instance):
        return
    try:
        os.kill(int(pid), signal.SIGKILL)
        log.warning("control.killed", extra={"pid": int(pid)})
    except OSError as error:
        log.error(  # noqa: TRY400 -- what it is says enough
            "control.not_killed", extra={"pid": int(pid), "detail": error.strerror}
        )
