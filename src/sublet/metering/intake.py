"""Taking in reports by the thousand: usages once each, and their charges beside them.

    stage ──► add_usages ──► (the caller moves the money) ──► add_charges

All in the caller's transaction. The lines go into a temporary table as they are; two
statements then write the records, however many there are.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from sublet.core.db import Tx
from sublet.metering.report import Report
from sublet.metering.store import QUERIES


def stage(tx: Tx, reports: Sequence[Report]) -> None:
    """Bring the lines to the database; they are gone with the transaction."""
    tx.execute("SET LOCAL client_min_messages = warning")  # not a word that it exists
    tx.execute(QUERIES["create_incoming"])
    with tx.cursor().copy(QUERIES["copy_incoming"]) as copy:
        copy.write(b"".join(report.line for report in reports))


def add_usages(tx: Tx, reports: Sequence[Report], *, now: datetime) -> set[UUID]:
    """Record what is staged; return the ids of those that were not there before."""
    added = tx.execute(QUERIES["add_usages"], {"now": now})
    if added.rowcount == len(reports):
        return {report.id for report in reports}
    return {row["id"] for row in added.fetchall()}


def add_charges(
    tx: Tx, new: set[UUID], *, staged: int, transfers: Mapping[UUID, UUID], now: datetime
) -> None:
    """Record the charges of the `new` usages.

    Args:
        tx: has staged them.
        new: what `add_usages` returned.
        staged: how many lines are staged.
        transfers: {tenant: the transfer that moved the money of its charges}.
        now: when it is recorded.
    """
    if not new:
        return
    row = {
        "now": now,
        "tenants": list(transfers),
        "transfers": list(transfers.values()),
        "only": None if len(new) == staged else list(new),
    }
    tx.execute(QUERIES["add_charges"], row)
