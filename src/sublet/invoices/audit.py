"""Checking from the record that invoices bill what was used, once, and are numbered without a gap."""

from typing import Final

from sublet.core.audit import Findings, Progress
from sublet.core.db import Tx
from sublet.core.money import Money
from sublet.invoices.store import QUERIES

WEIGHT: Final = 2.0  # of all steps, as `Progress` counts
LAW: Final = "invoices"


def audit(tx: Tx, findings: Findings, *, progress: Progress | None = None) -> None:
    """Check every invoice against its lines, and each tenant's against charges and the ledger."""
    progress = progress or Progress()
    progress.begin("every invoice", weight=1)
    number = 0
    for row in tx.execute(QUERIES["audit_invoices"]):
        number += 1
        what = f"invoice {row['number']}"
        findings.check(
            row["number"] == number, LAW, f"{what} follows number {number - 1}: there is a gap"
        )
        number = row["number"]
        findings.check(
            row["lines_nanos"] == row["net_nanos"],
            LAW,
            f"{what} says {Money(int(row['net_nanos']))}, and its lines"
            f" {Money(int(row['lines_nanos']))}",
        )
        findings.check(row["issued"] == 1, LAW, f"{what} has no record of its issue")
    findings.count(LAW, "invoices", number)
    progress.begin("what invoices bill, and what was used", weight=1)
    for row in tx.execute(QUERIES["audit_coverage"]):
        findings.check(
            row["billed"] == row["used"],
            LAW,
            f"tenant {row['tenant_id']} was billed {Money(int(row['billed']))}, and used"
            f" {Money(int(row['used']))}",
        )
    progress.end()
