"""Re-deriving the ledger from its transfers alone."""

from datetime import datetime, timedelta
from typing import Final

from sublet.core.audit import Findings
from sublet.core.db import Tx
from sublet.ledger.store import QUERIES

RECORDS: Final = (
    "transfer", "pool_event", "internal_job_event", "price", "lease_event", "usage", "charge",
    "idempotency_key", "seal",
)  # fmt: skip
# The sweeper runs every second; a hold this long past its time has been forgotten.
_OVERDUE: Final = timedelta(minutes=1)
_COUNTERS: Final = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")


def audit(tx: Tx, findings: Findings, *, now: datetime) -> None:
    """Check that no money was lost or made, none overspent, and that the past stands."""
    counted = tx.execute(QUERIES["count_transfers"]).fetchone()
    assert counted is not None
    for what, number in counted.items():
        findings.count("money", what, number)
    for row in tx.execute(QUERIES["trial_balance"]).fetchall():
        findings.check(
            not row["posted_difference"] and not row["pending_difference"],
            "money",
            f"{row['currency']} debits and credits differ by {row['posted_difference']} nanos"
            f" posted, {row['pending_difference']} pending",
        )
    for row in tx.execute(QUERIES["rederive_accounts"]).fetchall():
        for name in _COUNTERS:
            findings.check(
                row[name] == row[f"derived_{name}"],
                "money",
                f"account {row['code']} says {name} {row[name]},"
                f" its transfers say {row[f'derived_{name}']}",
            )
    for row in tx.execute(QUERIES["find_wrong_resolutions"]).fetchall():
        findings.check(
            False, "money", f"transfer {row['id']} does not fit hold {row['pending_id']}"
        )
    findings.count("no_overspend", "prepaid_accounts", _prepaid(tx))
    for row in tx.execute(QUERIES["find_overspent_moments"]).fetchall():
        findings.check(
            False,
            "no_overspend",
            f"account {row['code']} stood at {row['available']} nanos after transfer"
            f" number {row['sequence']}",
        )
    findings.count("no_overspend", "open_holds", counted["open_holds"])
    for row in tx.execute(QUERIES["find_wrong_open_holds"]).fetchall():
        findings.check(False, "no_overspend", f"hold {row['id']} is {row['problem']}")
    for row in tx.execute(QUERIES["find_overdue_holds"], {"before": now - _OVERDUE}).fetchall():
        findings.check(
            False,
            "no_overspend",
            f"hold {row['transfer_id']} of {row['holder']} should have expired"
            f" at {row['expires_at'].isoformat()}",
        )
    findings.count("past_stands", "guarded_tables", len(RECORDS))
    missing = tx.execute(QUERIES["find_missing_guards"], {"tables": list(RECORDS)}).fetchall()
    for row in missing:
        findings.check(False, "past_stands", f"table {row['name']} is not guarded against change")


def _prepaid(tx: Tx) -> int:
    row = tx.execute("SELECT count(*) AS number FROM account WHERE prepaid").fetchone()
    assert row is not None
    return int(row["number"])
