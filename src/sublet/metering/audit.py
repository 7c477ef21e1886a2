"""Checking from the record that every use was charged once, and only what was used."""

from datetime import datetime, timedelta
from typing import Final

from sublet.core.audit import Findings
from sublet.core.db import Tx
from sublet.leases import store as leases
from sublet.leases.lease import State
from sublet.market import store as market
from sublet.market.price import Tier
from sublet.metering.lease_meter import credit_id, credit_of
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
    ended = tx.execute(QUERIES["check_lease_seconds"], {"settled_by": now - _SETTLING}).fetchall()
    findings.count(LAW, "ended_leases", len(ended))
    for row in ended:
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
    _audit_credits(tx, findings, settled_by=now - _SETTLING)


def _audit_credits(tx: Tx, findings: Findings, *, settled_by: datetime) -> None:
    """Each firm lease that was reclaimed got its last minutes back, once; and nothing else was."""
    given = {row["id"]: row for row in tx.execute(QUERIES["list_credits"]).fetchall()}
    findings.count(LAW, "credits", len(given))
    for lease in leases.list_reclaimed(tx, Tier.ON_DEMAND):
        due = credit_of(lease, market.get_price(tx, lease.price_id).rate)
        credit = given.pop(credit_id(lease.id), None)
        if credit is None:
            over = lease.state is State.ENDED and lease.since < settled_by
            findings.check(
                not (over and due.nanos),
                LAW,
                f"lease {lease.id} was reclaimed and did not get {due.nanos} nanos back",
            )
            continue
        owner = f"tenant:{lease.tenant_id}"
        findings.check(
            (credit["amount_nanos"], credit["from_code"], credit["to_code"])
            == (due.nanos, f"{owner}:revenue", f"{owner}:wallet"),
            LAW,
            f"lease {lease.id} was reclaimed and {due.nanos} nanos were due to {owner}:"
            f" {credit['amount_nanos']} went to {credit['to_code']}",
        )
    for id_, credit in given.items():
        findings.check(
            False,
            LAW,
            f"credit {id_} gave {credit['amount_nanos']} nanos to {credit['to_code']}"
            " and no reclaimed lease explains it",
        )
