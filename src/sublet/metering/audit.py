"""Checking from the record that every use was charged once, and only what was used."""

from datetime import datetime, timedelta
from typing import Final

from sublet.core.audit import Findings
from sublet.core.db import Tx
from sublet.metering.store import QUERIES

LAW: Final = "charged_once"
# How long after a lease's end its last minute may still be on its way into the ledger.
_SETTLING: Final = timedelta(seconds=30)


def audit(tx: Tx, findings: Findings, *, now: datetime) -> None:
    counted = tx.execute(QUERIES["count_records"]).fetchone()
    assert counted is not None
    for what, number in counted.items():
        findings.count(LAW, what, number)
    # Shown, and no difference: what a killed gateway had not handed over was never charged.
    gaps = tx.execute(QUERIES["count_gaps"], {}).fetchone()
    assert gaps is not None
    findings.count(LAW, "reports_that_never_came", gaps["missing"])
    for row in tx.execute(QUERIES["find_wrong_charges"]).fetchall():
        findings.check(
            False, LAW,
            f"charge {row['usage_id']} is {row['amount_nanos']} nanos for {row['quantity']} of"
            f" {row['sku']} at {row['nanos']} per {row['per']}",
        )  # fmt: skip
    for row in tx.execute(QUERIES["find_charges_off_their_transfer"]).fetchall():
        findings.check(
            False, LAW,
            f"transfer {row['id']} moved {row['amount_nanos']} nanos, its charges add up to"
            f" {row['charged_nanos']}, or are another tenant's",
        )  # fmt: skip
    for row in tx.execute(QUERIES["find_uncharged_transfers"]).fetchall():
        findings.check(
            False, LAW,
            f"transfer {row['id']} moved {row['amount_nanos']} nanos for {row['reason']}"
            " and no charge explains it",
        )  # fmt: skip
    for row in tx.execute(QUERIES["find_uncharged_usages"]).fetchall():
        findings.check(False, LAW, f"usage {row['id']} of {row['source']} is not charged in full")
    for row in tx.execute(QUERIES["find_strays"]).fetchall():
        findings.check(
            False, LAW, f"{row['record']} {row['id']} names a {row['missing']} that is not there"
        )
    for row in tx.execute(QUERIES["find_twice_charged_requests"]).fetchall():
        findings.check(False, LAW, f"request {row['request_id']} was charged {row['times']} times")
    leases = tx.execute(QUERIES["check_lease_seconds"], {"settled_by": now - _SETTLING}).fetchall()
    findings.count(LAW, "ended_leases", len(leases))
    for row in leases:
        findings.check(
            row["billed_gpu_seconds"] == row["usable_gpu_seconds"],
            LAW,
            f"lease {row['id']} was usable for {row['usable_gpu_seconds']} GPU-seconds and"
            f" {row['billed_gpu_seconds']} were billed",
        )
        findings.check(
            row["open_holds"] == 0,
            "no_overspend",
            f"lease {row['id']} has ended and still holds money",
        )
