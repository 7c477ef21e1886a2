"""Checking from the record that what was trained was charged, once, and nothing else."""

from typing import Any, Final

from sublet.core.audit import Findings, Progress
from sublet.core.db import Tx
from sublet.models.tuning.job import OPEN, State
from sublet.models.tuning.store import QUERIES

WEIGHT: Final = 1.0  # of all steps, as `Progress` counts
LAW: Final = "fine_tuning"
_CHARGED: Final = frozenset({State.SUCCEEDED, State.CANCELLED})


def audit(tx: Tx, findings: Findings, *, progress: Progress | None = None) -> None:
    """Check each job against its checkpoints, its charge and its hold."""
    progress = progress or Progress()
    progress.begin("every fine-tuning job, charged for what its checkpoints hold", weight=1)
    jobs = 0
    for row in tx.execute(QUERIES["audit_tunings"]):
        jobs += 1
        for wrong in _wrong(row):
            findings.check(False, LAW, f"fine-tuning job {row['id']} {wrong}")
    findings.count(LAW, "jobs", jobs)
    for row in tx.execute(QUERIES["audit_checkpoints"]):
        said = f"step {row['step']} of fine-tuning job {row['tuning_id']} trained nothing new"
        findings.check(False, LAW, said)
    for row in tx.execute(QUERIES["audit_stray_usages"]):
        findings.check(False, LAW, f"usage {row['source']} {row['sequence']} is of no such job")
    progress.end()


def _wrong(row: dict[str, Any]) -> list[str]:
    state, trained = State(row["state"]), row["trained"] or 0
    owed = trained if state in _CHARGED else 0
    charged = row["charged_tokens"] or 0
    wrong = []
    if charged != owed:
        wrong.append(f"is {state}, has trained {trained} tokens and was charged {charged}")
    if trained > (row["tokens"] or 0):
        wrong.append(f"has trained {trained} tokens of {row['tokens']}")
    if charged and row["price_ids"] != [row["price_id"]]:
        wrong.append("was charged at another price than it was held at")
    if (row["charged_nanos"] or 0) > (row["held_nanos"] or 0):
        wrong.append(f"was charged {row['charged_nanos']} nanos, and {row['held_nanos']} were held")
    if row["holds"] and state not in OPEN:
        wrong.append(f"is {state} and still holds money")
    if state is State.RUNNING and row["hold_id"] is None:
        wrong.append("runs and holds nothing")
    return wrong
