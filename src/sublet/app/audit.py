"""`sublet verify`: every room's audit, over one unmoving view of the records."""

from sublet.core import seal
from sublet.core.audit import Findings
from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.leases import audit as leases
from sublet.ledger import audit as ledger
from sublet.metering import audit as metering


def audit(db: Database, *, clock: Clock) -> Findings:
    """Check every law that the records can show; writes nothing.

    Raises:
        Unavailable: the database did not answer.
    """
    findings = Findings()
    with db.transaction() as tx:
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        tx.execute("SELECT 1")  # the view is taken by the first read: nothing in it is after `now`
        now = clock.now()
        leases.audit(tx, findings, now=now)
        ledger.audit(tx, findings, now=now)
        metering.audit(tx, findings, now=now)
        seal.audit(tx, findings)
    return findings
