"""`sublet verify`: every room's audit, over one unmoving view of the records.

Two connections share the view: the seals' hashes are half of the work. Nothing is written and
no writer waits, so it may run at any time, and on a copy that can only be read: a replica, or a
restored dump. How much memory a statement takes is bounded; what does not fit goes to the
database's temporary files.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import sql

from sublet.core import seal
from sublet.core.audit import Findings, Progress
from sublet.core.clock import Clock
from sublet.core.db import Database, Tx, load_queries
from sublet.core.errors import Misconfigured, Unavailable
from sublet.core.migrations import available
from sublet.gateway.batches import audit as batches
from sublet.invoices import audit as invoices
from sublet.leases import audit as leases
from sublet.ledger import audit as ledger
from sublet.metering import audit as metering
from sublet.models.tuning import audit as tunings
from sublet.suppliers import audit as suppliers

QUERIES: Final = load_queries("sublet.app")
_RECORDS_WEIGHT: Final = (
    leases.WEIGHT
    + ledger.WEIGHT
    + metering.WEIGHT
    + invoices.WEIGHT
    + suppliers.WEIGHT
    + tunings.WEIGHT
    + batches.WEIGHT
)
_SEALS_WEIGHT: Final = 50.0

Tell = Callable[[str, float], None]


def audit(db: Database, *, clock: Clock, tell: Tell = lambda _what, _share: None) -> Findings:
    """Check every law that the records can show; writes nothing.

    Args:
        db: needs two connections.
        clock: says until when the records go.
        tell: is told what is looked at and how much is done, from 0 to 1; from either of two
            threads, one at a time.

    Raises:
        Unavailable: the database did not answer, or gave up.
    """
    return _audit(db, lambda _: clock.now(), tell)


def audit_copy(url: str, *, tell: Tell = lambda _what, _share: None) -> Findings:
    """Check the database at `url` as of its last sign of life: it may be a copy, made long ago.

    Raises:
        Misconfigured: it holds no Sublet, or that of another version, or may not be read.
        Unavailable: the database did not answer, or gave up.
    """
    try:
        psycopg.connect(url, connect_timeout=5).close()  # says at once what a pool says late
        with Database(url, connections=2) as db:
            with db.transaction() as tx:
                _check_schema(tx)
            return _audit(db, _last_sign, tell)
    except psycopg.OperationalError as error:
        raise Unavailable(f"the database did not answer: {error}") from error
    except psycopg.ProgrammingError as error:
        raise Misconfigured(f"the database cannot be read: {error}") from error
    except Unavailable as error:
        if isinstance(error.__cause__, psycopg.errors.SerializationFailure):
            raise Unavailable(
                "this replica removed rows that were being read: set hot_standby_feedback = on"
                " there, or pause its replay meanwhile"
            ) from error
        raise


def document(findings: Findings) -> dict[str, Any]:
    """Return what was found as the API and `sublet verify --json` give it."""
    return {
        "differences": [
            {"law": difference.law, "what": difference.what} for difference in findings.differences
        ],
        "laws": findings.counts,
        "seal_head": findings.notes["seal_head"],
        "as_of": findings.notes["as_of"],
    }


def _audit(db: Database, when: Callable[[Tx], datetime], tell: Tell) -> Findings:
    findings, of_seals = Findings(), Findings()
    with db.transaction() as tx, ThreadPoolExecutor(1) as beside:
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        _take_time(tx)
        view = _export(tx)  # the view is taken by now: nothing in it is after `now`
        now = when(tx)
        findings.notes["as_of"] = now.isoformat()
        both = _Both(tell)
        try:
            seals = beside.submit(_check_seals, db, view, of_seals, both.of(1))
            records = Progress(both.of(0))
            leases.audit(tx, findings, now=now, progress=records)
            ledger.audit(tx, findings, now=now, progress=records)
            metering.audit(tx, findings, now=now, progress=records)
            invoices.audit(tx, findings, progress=records)
            suppliers.audit(tx, findings, progress=records)
            tunings.audit(tx, findings, progress=records)
            batches.audit(tx, findings, progress=records)
            seals.result()
        finally:
            both.stop()  # leaving early must not wait for what is left of the seals
    findings.add(of_seals)
    return findings


def _check_seals(db: Database, view: str, findings: Findings, tell: Tell) -> None:
    with db.transaction() as tx:
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        tx.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(view)))
        _take_time(tx)
        progress = Progress(tell)
        progress.begin("seals over the past", weight=_SEALS_WEIGHT)
        seal.audit(tx, findings, reach=progress.reach)
        progress.end()


class _Stopped(Exception):
    """The other one failed."""


class _Both:
    """Puts together how far the two are."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._done = [0.0, 0.0]
        self._what = ["", ""]
        self._lock = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Let whoever tells us more find out that nobody listens."""
        self._stopped = True

    def of(self, which: int) -> Tell:
        def tell(what: str, done: float) -> None:
            if self._stopped:
                raise _Stopped
            with self._lock:
                self._done[which], self._what[which] = done, what
                # Either may be the first of the two to say anything.
                records = self._what[0] if self._done[0] < _RECORDS_WEIGHT else ""
                self._tell(
                    records or self._what[1],
                    sum(self._done) / (_RECORDS_WEIGHT + _SEALS_WEIGHT),
                )

        return tell


def _take_time(tx: Tx) -> None:
    """Let nothing end this transaction early, and bound what its statements take.

    Whoever set these for a role meant requests, not audits. Not every server has all of them.
    """
    tx.execute(QUERIES["set_for_audit"])


def _export(tx: Tx) -> str:
    row = tx.execute("SELECT pg_export_snapshot() AS view").fetchone()
    assert row is not None
    return str(row["view"])


def _last_sign(tx: Tx) -> datetime:
    row = tx.execute(QUERIES["get_last_sign"]).fetchone()
    assert row is not None
    if row["at"] is None:
        raise Misconfigured("this database holds no record yet: there is nothing to verify")
    assert isinstance(row["at"], datetime)
    return row["at"]


def _check_schema(tx: Tx) -> None:
    newest = max(available())
    try:
        row = tx.execute("SELECT max(number) AS newest FROM migration").fetchone()
    except psycopg.errors.UndefinedTable:
        raise Misconfigured("this database holds no Sublet: it has no table `migration`") from None
    found = None if row is None else row["newest"]
    if found != newest:
        raise Misconfigured(
            f"this database is at schema {found}, this Sublet verifies schema {newest}:"
            " use the version that wrote it"
        )
