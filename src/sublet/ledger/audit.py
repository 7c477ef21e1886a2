"""Re-deriving the ledger from its transfers alone."""

from datetime import datetime, timedelta
from typing import Any, Final

from sublet.core.audit import Findings, Progress, new_seed
from sublet.core.db import Tx
from sublet.ledger.store import QUERIES

RECORDS: Final = (
    "transfer", "pool_event", "internal_job_event", "price", "lease_event", "usage", "charge",
    "credit",
    "idempotency_key", "seal", "pool_cost", "floor_exception", "asset_lot", "asset_change",
    "notice_scale", "contract_delivery", "contract_break", "coming_capacity",
    "tax_rate", "exchange_rate", "invoice", "invoice_event", "tagging",
    "budget_alert", "dunning_event", "person_change",
    "supplier_price", "purchase",
    "tuning_checkpoint", "batch_end",
)  # fmt: skip
WEIGHT: Final = 20.0  # of all steps, as `Progress` counts
# The sweeper runs every second; a hold this long past its time has been forgotten.
_OVERDUE: Final = timedelta(minutes=1)
_COUNTERS: Final = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
# Replayed in one go, between two words of how far it is.
_STRETCHES: Final = 500


def audit(tx: Tx, findings: Findings, *, now: datetime, progress: Progress | None = None) -> None:
    """Check that no money was lost or made, none overspent, and that the past stands."""
    progress = progress or Progress()
    progress.begin("accounts and their guards", weight=1)
    counted = tx.execute(QUERIES["count_accounts"]).fetchone()
    assert counted is not None
    for row in tx.execute(QUERIES["trial_balance"]).fetchall():
        findings.check(
            not row["posted_difference"] and not row["pending_difference"],
            "money",
            f"{row['currency']} debits and credits differ by {row['posted_difference']} nanos"
            f" posted, {row['pending_difference']} pending",
        )
    findings.count("past_stands", "guarded_tables", len(RECORDS))
    missing = tx.execute(QUERIES["find_missing_guards"], {"tables": list(RECORDS)}).fetchall()
    for row in missing:
        findings.check(False, "past_stands", f"table {row['name']} is not guarded against change")
    progress.begin("every transfer, and what each account says", weight=17)
    transfers, stretches = _replay(tx, findings)
    findings.count("money", "transfers", transfers)
    findings.count("money", "accounts", counted["accounts"])
    findings.count("money", "open_holds", counted["open_holds"])
    findings.count("no_overspend", "prepaid_accounts", counted["prepaid_accounts"])
    findings.count("no_overspend", "open_holds", counted["open_holds"])
    progress.begin("moments at which a wallet was nearly empty", weight=2)
    for done in range(0, len(stretches), _STRETCHES):
        progress.reach(done / len(stretches))
        _check_moments(tx, stretches[done : done + _STRETCHES], findings)
    for row in tx.execute(QUERIES["find_overdue_holds"], {"before": now - _OVERDUE}).fetchall():
        findings.check(
            False,
            "no_overspend",
            f"hold {row['transfer_id']} of {row['holder']} should have expired"
            f" at {row['expires_at'].isoformat()}",
        )
    progress.end()


def _replay(tx: Tx, findings: Findings) -> tuple[int, list[dict[str, Any]]]:
    """Check every account and hold; return how many transfers there are, and what to replay."""
    transfers, wrong, all_open = 0, 0, True
    stretches = []
    for row in tx.execute(QUERIES["replay_transfers"], {"seed": new_seed()}):
        match row["kind"]:
            case "total":
                transfers, wrong, all_open = row["transfers"], row["wrong"], row["all_open"]
            case "account":
                for name in _COUNTERS:
                    findings.check(
                        row[name] == row[f"derived_{name}"],
                        "money",
                        f"account {row['code']} says {name} {row[name]},"
                        f" its transfers say {row[f'derived_{name}']}",
                    )
            case _:
                stretches.append(row)
    if wrong:
        for row in tx.execute(QUERIES["find_wrong_resolutions"]).fetchall():
            findings.check(
                False, "money", f"transfer {row['id']} does not fit hold {row['pending_id']}"
            )
    if not all_open:
        found = tx.execute(QUERIES["find_wrong_open_holds"]).fetchall()
        for row in found:
            findings.check(False, "no_overspend", f"hold {row['id']} is {row['problem']}")
        findings.check(
            bool(found or wrong), "no_overspend", "open holds are not those that nothing resolved"
        )
    return transfers, stretches


def _check_moments(tx: Tx, stretches: list[dict[str, Any]], findings: Findings) -> None:
    given = {
        "codes": [row["code"] for row in stretches],
        "accounts": [row["account"] for row in stretches],
        "stretches": [row["stretch"] for row in stretches],
        "began_with": [row["began_with"] for row in stretches],
    }
    for row in tx.execute(QUERIES["find_overspent_moments"], given).fetchall():
        findings.check(
            False,
            "no_overspend",
            f"account {row['code']} stood at {row['available']} nanos after transfer"
            f" number {row['sequence']}",
        )
