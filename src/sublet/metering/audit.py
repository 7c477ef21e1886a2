"""Checking from the record that every use was charged once, and only what was used.

Usages, charges and transfers are each read once, and their fingerprints compared (see
`new_seed`). Where two differ, the records are joined, which takes far longer, to name each that
is wrong.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString
from uuid import UUID

from sublet.core.audit import Findings, Progress, new_seed
from sublet.core.db import Tx
from sublet.core.ids import derived_id
from sublet.leases import contracts, resales
from sublet.leases import store as leases
from sublet.leases.contract import bill, total
from sublet.leases.lease import State
from sublet.leases.reservation import broken_credit
from sublet.market import scales
from sublet.market import service as pricing
from sublet.market import store as market
from sublet.market.price import Tier
from sublet.metering.credits import list_credits
from sublet.metering.lease_meter import credit_id, credit_of
from sublet.metering.resale_meter import share_id, share_of
from sublet.metering.reservation_meter import given_back_id, minimum_id
from sublet.metering.store import QUERIES

LAW: Final = "charged_once"
WEIGHT: Final = 34.0  # of all steps, as `Progress` counts
# How long after a lease's end its last minute may still be on its way into the ledger.
_SETTLING: Final = timedelta(seconds=30)


def audit(tx: Tx, findings: Findings, *, now: datetime, progress: Progress | None = None) -> None:
    progress = progress or Progress()
    seed = {"seed": new_seed()}
    progress.begin("each line of each charge, at its price", weight=17)
    lines = _one(tx, QUERIES["sum_lines"], seed)
    progress.begin("charges", weight=3)
    charges = _one(tx, QUERIES["sum_charges"], seed)
    progress.begin("usages", weight=4)
    usages = _one(tx, QUERIES["sum_usages"], seed)
    progress.begin("money that moved for use", weight=3)
    moved = _one(tx, QUERIES["sum_moved"], seed)
    findings.count(LAW, "usages", usages["usages"])
    findings.count(LAW, "charges", charges["charges"])
    strays = usages["strays"] > 0
    if charges["unused"]:
        strays = strays or _one(tx, QUERIES["count_charges_for_nothing"])["number"] > 0
    if charges["unpaid"]:
        strays = strays or _one(tx, QUERIES["count_unpaid_strays"])["number"] > 0
    for ok, queries, what in (
        (
            not lines["wrong"] and lines["amounts"] == charges["amounts"],
            (QUERIES["find_wrong_charges"], QUERIES["find_strays"]),
            "charges and their lines do not agree",
        ),
        (
            charges["transfers"] == moved["transfers"],
            (
                QUERIES["find_charges_off_their_transfer"],
                QUERIES["find_uncharged_transfers"],
                QUERIES["find_strays"],
            ),
            "charges and transfers do not agree",
        ),
        (
            usages["quantities"] == lines["quantities"],
            (QUERIES["find_uncharged_usages"], QUERIES["find_strays"]),
            "usages and charges do not agree",
        ),
        (not strays, (QUERIES["find_strays"],), "usages or charges name what is not there"),
    ):
        if not ok:
            _name(tx, findings, queries, what)
    progress.begin("requests, each charged once", weight=5)
    # Shown, and no difference: what a killed gateway had not handed over was never charged.
    findings.count(LAW, "reports_that_never_came", _one(tx, QUERIES["count_gaps"])["missing"])
    for row in tx.execute(QUERIES["find_twice_charged_requests"]).fetchall():
        findings.check(False, LAW, f"request {row['request_id']} was charged {row['times']} times")
    progress.begin("the seconds of leases", weight=2)
    settled = {"settled_by": now - _SETTLING}
    findings.count(LAW, "ended_leases", _one(tx, QUERIES["count_ended_leases"], settled)["number"])
    for row in tx.execute(QUERIES["find_wrong_lease_seconds"], settled).fetchall():
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
    _audit_resales(tx, findings, now=now)
    sales, below_floor = pricing.check_sales(tx)
    findings.count(LAW, "sales_held_to_floors", sales)
    for sentence in below_floor:
        findings.check(False, LAW, sentence)
    priced, off_scale = scales.check_notices(tx)
    findings.count(LAW, "sales_by_notice", priced)
    for sentence in off_scale:
        findings.check(False, LAW, sentence)
    findings.count(LAW, "reservations", _one(tx, QUERIES["count_reservations"])["number"])
    for row in tx.execute(QUERIES["find_wrong_reservations"]).fetchall():
        findings.check(
            row["reserved_gpu_seconds"] == row["billed_gpu_seconds"],
            LAW,
            f"reservation {row['id']} is over, was for {row['reserved_gpu_seconds']} GPU-seconds"
            f" and {row['billed_gpu_seconds']} were billed",
        )
        findings.check(
            row["open_holds"] == 0,
            "no_overspend",
            f"reservation {row['id']} is over and still holds money",
        )
    progress.end()


_MOST_CREDITS: Final = 10_000_000
# How each query's rows are told to people.
_SENTENCES: Final[Mapping[LiteralString, Callable[[Mapping[str, Any]], str]]] = {
    QUERIES["find_wrong_charges"]: lambda row: (
        f"charge {row['usage_id']} is {row['amount_nanos']} nanos for {row['quantity']} of"
        f" {row['sku']} at {row['nanos']} per {row['per']}"
    ),
    QUERIES["find_charges_off_their_transfer"]: lambda row: (
        f"transfer {row['id']} moved {row['amount_nanos']} nanos, its charges add up to"
        f" {row['charged_nanos']}, or are another tenant's"
    ),
    QUERIES["find_uncharged_transfers"]: lambda row: (
        f"transfer {row['id']} moved {row['amount_nanos']} nanos for {row['reason']}"
        " and no charge explains it"
    ),
    QUERIES["find_uncharged_usages"]: lambda row: (
        f"usage {row['id']} of {row['source']} is not charged in full"
    ),
    QUERIES["find_strays"]: lambda row: (
        f"{row['record']} {row['id']} names a {row['missing']} that is not there"
    ),
}


def _name(tx: Tx, findings: Findings, queries: tuple[LiteralString, ...], what: str) -> None:
    """Find each record that is wrong, and say so; `what` is said if none can be found."""
    known = {difference.what for difference in findings.differences}
    found = [_SENTENCES[query](row) for query in queries for row in tx.execute(query).fetchall()]
    for sentence in found or [what]:
        findings.check(sentence in known, LAW, sentence)


def _one(tx: Tx, query: LiteralString, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    row = tx.execute(query, given or {}).fetchone()
    assert row is not None, query
    return row


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
    _audit_windows(tx, findings, given, settled_by=settled_by)
    _audit_contracts(tx, findings)
    _audit_given_back(tx, findings)
    for id_, credit in given.items():
        findings.check(
            False,
            LAW,
            f"credit {id_} gave {credit['amount_nanos']} nanos to {credit['to_code']}"
            " and no reclaimed lease explains it",
        )


def _audit_resales(tx: Tx, findings: Findings, *, now: datetime) -> None:
    """Whoever put GPUs of a window back on sale got its share of each use, once."""
    given = {row["id"]: row for row in tx.execute(QUERIES["list_shares"]).fetchall()}
    findings.count(LAW, "resale_shares", len(given))
    for found in resales.list_uses(tx, unpaid=False):
        got = given.pop(share_id(found), None)
        due = share_of(tx, found, now=now).nanos if found.paid else 0
        owner = f"tenant:{found.window.tenant_id}"
        findings.check(
            (0 if got is None else int(got["amount_nanos"])) == due
            and (got is None or got["to_code"] == f"{owner}:wallet"),
            LAW,
            f"lease {found.lease.id} used GPUs of resale {found.resale.id}: {due} nanos were due to"
            f" {owner}, and that is not what it got",
        )
    for id_, row in given.items():
        findings.check(
            False,
            LAW,
            f"transfer {id_} gave {row['amount_nanos']} nanos to {row['to_code']} for a resale"
            " and no lease explains it",
        )


def _audit_windows(
    tx: Tx, findings: Findings, given: dict[UUID, dict[str, Any]], *, settled_by: datetime
) -> None:
    """Each broken window was credited what its record says is due, and each is on record."""
    for record in list_credits(tx, None, limit=_MOST_CREDITS):
        if record["reservation_id"] is None:
            continue
        credit = given.pop(record["transfer_id"], None)
        due = broken_credit(
            market.get_price(tx, record["price_id"]).rate,
            gpus=record["gpus"],
            percent=record["percent"],
            broken_at=record["happened_at"],
            until=record["promised_until"],
        )
        owner = f"tenant:{record['tenant_id']}"
        findings.check(
            credit is not None
            and (credit["amount_nanos"], credit["from_code"], credit["to_code"])
            == (due.nanos, f"{owner}:revenue", f"{owner}:wallet"),
            LAW,
            f"reservation {record['reservation_id']} was broken and {due.nanos} nanos were due to"
            f" {owner}: credit {record['transfer_id']} is not that",
        )
    for row in tx.execute(QUERIES["find_uncredited_windows"], {"settled_by": settled_by}):
        findings.check(
            False, LAW, f"lease {row['id']} gave way within its reserved window, uncredited"
        )


def _audit_contracts(tx: Tx, findings: Findings) -> None:
    """Contracts that are closed were charged what their bill says, minimum included."""
    closed = [found for found in contracts.list_of(tx, None) if found.closed]
    findings.count(LAW, "contracts", len(closed))
    for found in closed:
        row = {"id": found.id, "minimum": minimum_id(found.id)}
        charged = int(_one(tx, QUERIES["sum_contract"], row)["nanos"])
        lines = bill(found, datetime.min.replace(tzinfo=UTC), found.ends_at)
        due = total([line for line in lines if not line.is_given_back]).nanos
        findings.check(
            charged == due,
            LAW,
            f"contract {found.id} is over, {due} nanos were due for it and {charged} were charged",
        )


def _audit_given_back(tx: Tx, findings: Findings) -> None:
    """Each contract was credited for what was late or taken back, as recorded, and nothing else."""
    given = {
        row["transfer_id"]: row
        for row in list_credits(tx, None, limit=_MOST_CREDITS)
        if row["reservation_id"] is not None
    }
    for found in contracts.list_of(tx, None):
        steps = contracts.steps_of(tx, found.id)
        for line in bill(found, datetime.min.replace(tzinfo=UTC), found.ends_at):
            if not line.is_given_back:
                continue
            assert line.place is not None
            step = steps[line.place]
            credit = given.pop(given_back_id(step.id, line), None)
            if credit is None and not found.closed:
                continue  # its day is not charged yet
            how = "was late with" if line.broken is None else "was broken by"
            findings.check(
                credit is not None and credit["amount_nanos"] == -line.amount.nanos,
                LAW,
                f"contract {found.id} {how} {line.gpus} GPUs from {line.begins_at} on,"
                f" {-line.amount.nanos} nanos were not due for it and were not credited",
            )
    for id_, row in given.items():
        # What else is given for a window is for having waited since then, or for a lease of it.
        waited = derived_id(row["reservation_id"], "credit", row["happened_at"].isoformat())
        gone = row["lease_id"]
        findings.check(
            id_ == (waited if gone is None else credit_id(gone)),
            LAW,
            f"credit {id_} gave {row['amount_nanos']} nanos for reservation {row['reservation_id']}"
            " and nothing that was late or taken back explains it",
        )
