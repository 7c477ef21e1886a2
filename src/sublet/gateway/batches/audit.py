"""Checking from the record that every line of a batch was charged once, if it was answered."""

from typing import Final

from sublet.core.audit import Findings, Progress
from sublet.core.db import Tx
from sublet.gateway.batches.store import QUERIES

WEIGHT: Final = 1.0  # of all steps, as `Progress` counts
LAW: Final = "batches"


def audit(tx: Tx, findings: Findings, *, progress: Progress | None = None) -> None:
    """Check each batch that has ended against what was charged for it.

    A line has one number, and of one source and number there is one use: so as many uses as
    answered lines is one for each.
    """
    progress = progress or Progress()
    progress.begin("every line of every batch, charged once if it was answered", weight=1)
    batches = lines = 0
    for row in tx.execute(QUERIES["audit_ended"]):
        batches += 1
        lines += row["total"]
        ended = row["answered"] + row["refused"] + row["expired"] + row["cancelled"]
        findings.check(
            ended == row["total"],
            LAW,
            f"batch {row['batch_id']} has {row['total']} lines, of which {ended} have ended",
        )
        findings.check(
            row["charged"] == row["answered"],
            LAW,
            f"batch {row['batch_id']} answered {row['answered']} lines, and {row['charged']} were"
            " charged",
        )
        findings.check(
            not row["strange"], LAW, f"batch {row['batch_id']} was charged to somebody else"
        )
    for row in tx.execute(QUERIES["audit_going"]):
        findings.check(
            False,
            LAW,
            f"line {row['sequence']} of {row['source']} is {row['state']}, and was charged",
        )
    for row in tx.execute(QUERIES["audit_strays"]):
        findings.check(False, LAW, f"{row['uses']} uses are of {row['source']}, which there is not")
    findings.count(LAW, "batches", batches)
    findings.count(LAW, "lines", lines)
    progress.end()
