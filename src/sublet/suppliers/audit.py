"""Checking from the record that purchases cost what they say, and that this is owed, once."""

from typing import Any, Final

from sublet.core.audit import Findings, Progress
from sublet.core.db import Tx
from sublet.core.money import Money
from sublet.suppliers.store import QUERIES, rates_of
from sublet.suppliers.usage import KINDS, Used

WEIGHT: Final = 2.0  # of all steps, as `Progress` counts
LAW: Final = "purchases"


def audit(tx: Tx, findings: Findings, *, progress: Progress | None = None) -> None:
    """Check each purchase against its price, and all of them against the ledger."""
    progress = progress or Progress()
    progress.begin("every purchase, at its supplier's price", weight=1)
    purchases = 0
    for row in tx.execute(QUERIES["audit_purchases"]):
        purchases += 1
        wrong = _wrong(row)
        findings.check(wrong is None, LAW, f"purchase {row['id']} of {row['supplier']} {wrong}")
    findings.count(LAW, "purchases", purchases)
    progress.begin("what is owed to suppliers", weight=1)
    for row in tx.execute(QUERIES["audit_transfers"]):
        bought = None if row["bought"] is None else Money(int(row["bought"]))
        moved = None if row["moved"] is None else Money(int(row["moved"]))
        findings.check(
            False,
            LAW,
            f"transfer {row['id']} moved {moved} from {row['debit']} to {row['credit']}; its"
            f" purchases of {row['supplier']} cost {bought}",
        )
    progress.end()


def _wrong(row: dict[str, Any]) -> str | None:
    if row["priced_supplier"] is None:
        return "names no price"
    named = row["priced_supplier"], row["priced_model"], row["priced_tier"]
    if named != (row["supplier"], row["model"], row["tier"]):
        return f"is {row['model']} in tier {row['tier']}, and names the price of {named[1:]}"
    if row["priced_at"] > row["happened_at"]:
        return "names a price that did not hold yet"
    used = Used(**{kind: row[f"{kind}_tokens"] for kind in KINDS})
    cost = rates_of(row | {"id": 0, "tier": row["tier"], "happened_at": row["priced_at"]}).cost(
        used
    )
    if cost.nanos != row["amount_nanos"]:
        return f"says {Money(int(row['amount_nanos']))}, and its tokens cost {cost}"
    if (row["transfer_id"] is None) != (cost.nanos == 0):
        return "moved no money" if cost.nanos else "moved money for nothing"
    return None
