"""FOCUS exports: each nano of each invoice once, in the words of the specification."""

import csv
import io
import re
import subprocess
from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
from focus_data_toolkit.model.validator import lint_focus_1_4_structure
from focus_data_toolkit.validate.bundle import validate_dataset_bundle
from tests.core.databases import fresh
from tests.invoices.shop import BEGIN, NOW, OCTOBER, SEPTEMBER, VAT, Shop, at

from sublet.core.db import Database
from sublet.core.money import NANOS, Money, Rate
from sublet.finance.focus.columns import DECIMALS, Dataset, Form, Version, columns_of
from sublet.finance.focus.export import export
from sublet.invoices import service, store
from sublet.leases import contracts
from sublet.market import store as market
from sublet.tenants.tenant import Tenant

pytestmark = pytest.mark.real
NAMES = {
    Dataset.COST_AND_USAGE: "Cost and Usage",
    Dataset.CONTRACT_COMMITMENT: "Contract Commitment",
    Dataset.BILLING_PERIOD: "Billing Period",
    Dataset.INVOICE_DETAIL: "Invoice Detail",
}
Rows = list[dict[str, str]]


class Bills:
    """A shop with a tenant of everything: tokens, leases, a contract with a ramp, credits, notes."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.acme = acme = shop.tenant(usd=100_000, jurisdiction="DE", time_zone="America/New_York")
        pool = shop.pool()
        for day in (3, 4, 30):
            shop.use(acme, 1_001 * day, at(9, day))
        shop.lease(acme, pool, at(9, 5), 3_601)
        signed = shop.sign(
            acme, pool, at(9, 10), [(2, 4, "2.10"), (3, 8, "2.05")], minimum_usd=2_000
        )
        shop.pass_days(at(9, 9), at(9, 10))
        with shop.db.transaction() as tx:
            (first, _) = contracts.steps_of(tx, signed.id)
        shop.draw(acme, first, at(9, 10, 13), 7_201, gpus=3)
        shop.pass_days(at(9, 11), at(9, 16))
        shop.credit(acme, first, at(9, 11), 1_234_567_891)
        self.september = shop.issue(acme, SEPTEMBER, now=at(10, 2))
        with shop.db.transaction() as tx:
            self.note = service.correct(
                tx,
                self.september.number,
                Money(7 * NANOS + 1),
                why="slow",
                id_=uuid4(),
                now=at(10, 3),
            )
        shop.use(acme, 77, at(9, 29))  # told late
        shop.use(acme, 5_000, at(10, 20))
        self.october = shop.issue(acme, OCTOBER)
        shop.use(acme, 123, at(11, 1))
        self.contract = signed

    def rows(
        self, dataset: Dataset, month: date, *, version: Version = Version.V1_4,
        tenant: Tenant | None = None,
    ) -> Rows:  # fmt: skip
        return read(self.shop.db, dataset, month, version=version, tenant=tenant or self.acme)


def read(
    db: Database, dataset: Dataset, month: date, *, tenant: Tenant, version: Version = Version.V1_4
) -> Rows:
    text = write(db, dataset, month, Form.CSV, version=version, tenant=tenant).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def write(
    db: Database, dataset: Dataset, month: date, form: Form, *, tenant: Tenant,
    version: Version = Version.V1_4,
) -> bytes:  # fmt: skip
    with db.transaction() as tx:
        return b"".join(
            export(
                tx, dataset, version, form, month=month, seller="Example Compute",
                tenant_id=tenant.id, now=NOW,
            )
        )  # fmt: skip


@pytest.fixture(scope="module")
def shop(postgres_url: str, template: str) -> Iterator[Shop]:
    with fresh(postgres_url, template) as db:
        with db.transaction() as tx:
            rate = Rate(nanos=1_234_567, per=1_000)
            price = market.set_price(tx, "model:gemma:output", rate, now=BEGIN)
            store.add_tax(tx, VAT, now=BEGIN)
        yield Shop(db=db, price=price)


@pytest.fixture(scope="module")
def bills(shop: Shop) -> Bills:
    return Bills(shop)


def billed(rows: Rows) -> dict[str, int]:
    """Return what each invoice adds up to, in nanos; under "" what is on none."""
    sums: dict[str, Decimal] = {}
    for row in rows:
        sums[row["InvoiceId"]] = sums.get(row["InvoiceId"], Decimal(0)) + Decimal(row["BilledCost"])
    return {label: int(amount * NANOS) for label, amount in sums.items()}


def test_costs_of_an_invoice_are_its_total_to_the_nano(bills: Bills) -> None:
    september = bills.rows(Dataset.COST_AND_USAGE, date(2026, 9, 1))
    october = bills.rows(Dataset.COST_AND_USAGE, date(2026, 10, 1))
    november = bills.rows(Dataset.COST_AND_USAGE, date(2026, 11, 1))
    assert billed(september) == {bills.september.label: bills.september.totals.total}
    assert billed(october) == {
        bills.october.label: bills.october.totals.total,
        bills.note.label: bills.note.totals.total,
    }
    assert billed(november) == {"": round(123 * 1_234_567 / 1_000)}
    late = [row for row in october if row["ChargePeriodStart"] == "2026-09-29T12:00:00Z"]
    assert [row["ConsumedQuantity"] for row in late] == ["0.000077"], "it is on the next invoice"
    assert {row["BillingPeriodStart"] for row in late} == {"2026-10-01T04:00:00Z"}


def test_a_contract_is_committed_to_and_its_use_and_disuse_add_up(bills: Bills) -> None:
    rows = [
        row
        for row in bills.rows(Dataset.COST_AND_USAGE, date(2026, 9, 1))
        if row["ServiceName"] == "Reserved GPUs" and row["ChargeCategory"] == "Usage"
    ]
    assert {row["CapacityReservationStatus"] for row in rows} == {"Used", "Unused"}
    used = [row for row in rows if row["CapacityReservationStatus"] == "Used"]
    assert [row["PricingQuantity"] for row in used] == ["6.000833333"]  # 3 GPUs for 7,201 s
    whole = sum(Decimal(row["PricingQuantity"]) for row in rows)
    assert abs(whole - (2 * 24 * 4 + 3 * 24 * 8)) < Decimal("1e-6")
    nanos = sum(Decimal(row["BilledCost"]) for row in rows) * NANOS
    assert nanos == 2 * 24 * 4 * 2_100_000_000 + 3 * 24 * 8 * 2_050_000_000
    commitments = bills.rows(Dataset.CONTRACT_COMMITMENT, date(2026, 9, 1))
    assert [(row["ContractCommitmentCategory"], row["ContractCommitmentCost"]) for row in commitments] == [
        ("Usage", "403.2"), ("Spend", "2000"), ("Usage", "1180.8"),
    ]  # fmt: skip
    (minimum,) = (
        row
        for row in bills.rows(Dataset.COST_AND_USAGE, date(2026, 9, 1))
        if row["ChargeCategory"] == "Purchase"
    )
    assert Decimal(minimum["BilledCost"]) == Decimal(2_000) - Decimal("403.2") - Decimal("1180.8")
    assert f"{bills.contract.id}/minimum" in minimum["ContractApplied"]


def plainly(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a row in one form, whatever it was read from."""
    told = {name: "" if value is None else value for name, value in sorted(row.items())}
    return [
        (
            name,
            f"{Decimal(value).normalize():f}" if name in DECIMALS and value != "" else str(value),
        )
        for name, value in told.items()
    ]


def test_parquet_says_what_csv_says_with_exact_decimals(bills: Bills) -> None:
    for dataset in Dataset:
        found = pq.read_table(
            io.BytesIO(
                write(bills.shop.db, dataset, date(2026, 9, 1), Form.PARQUET, tenant=bills.acme)
            )
        )
        rows = bills.rows(dataset, date(2026, 9, 1))
        assert tuple(found.column_names) == columns_of(dataset, Version.V1_4)
        assert found.num_rows == len(rows) > 0
        told = found.to_pylist()
        kinds = {type(row[name]) for row in told for name in DECIMALS if name in row}
        assert kinds <= {Decimal, type(None)}
        # As they stream out: no order is promised.
        assert sorted(map(plainly, told)) == sorted(map(plainly, rows))


def test_the_toolkit_of_focus_1_4_finds_nothing_wrong(bills: Bills) -> None:
    conditions = ["SupportsMultiplePricingCategories", "SupportsUnitPricing"]
    for month in (date(2026, 9, 1), date(2026, 10, 1), date(2026, 11, 1)):
        bundle: dict[str, Sequence[dict[str, str]]] = {}
        for dataset, name in NAMES.items():
            rows = bills.rows(dataset, month)
            bundle[name] = rows
            if rows:
                report = lint_focus_1_4_structure(name, rows, supported_conditions=conditions)
                assert report.violations == (), (month, report.violations[:5])
        if month == date(2026, 11, 1):  # nothing is invoiced yet
            continue
        found = validate_dataset_bundle(
            bundle, invoice_detail_authoritative=True, rounding_tolerance=Decimal(0)
        )
        assert [d for d in found.diagnostics if d.is_failure] == [], found.format()
        assert found.warnings == [], found.format()


def test_a_month_that_is_billed_does_not_change_when_more_is_told(bills: Bills) -> None:
    before = bills.rows(Dataset.COST_AND_USAGE, date(2026, 9, 1))
    bills.shop.use(bills.acme, 3, at(9, 1))
    bills.shop.use(bills.acme, 3, at(10, 1))
    assert bills.rows(Dataset.COST_AND_USAGE, date(2026, 9, 1)) == before
    assert billed(bills.rows(Dataset.COST_AND_USAGE, date(2026, 11, 1))).keys() == {""}
    (period,) = bills.rows(Dataset.BILLING_PERIOD, date(2026, 9, 1))
    assert (period["BillingPeriodStatus"], period["BillingPeriodStart"]) == (
        "Closed", "2026-09-01T04:00:00Z",
    )  # fmt: skip


VALIDATOR = Path(__file__).parents[2] / ".focus-validator"  # made by scripts/focus-validator
SUPPORTED = (
    "ACCOUNT_NAMING_SUPPORTED", "CAPACITY_RESERVATION_SUPPORTED",
    "MULTIPLE_PRICING_CATEGORIES_SUPPORTED", "NEGOTIATED_PRICING_SUPPORTED",
    "PUBLIC_PRICE_LIST_SUPPORTED", "USAGE_MEASUREMENT_SUPPORTED", "UNIT_PRICING_SUPPORTED",
    "SUB_ACCOUNT_SUPPORTED", "BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED",
    "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED",
)  # fmt: skip
# What the validator says "fails" and does not: each rule has a condition, and it looks at all rows.
ALLOWED = {
    "CapacityReservationStatus-C-003-C": "must be null where there is no reservation: it is there",
    "CapacityReservationStatus-C-004-C": "must be told of reservations: it is null of other rows",
    "EffectiveCost-C-005-C": "0 of purchases for times to come: a minimum is for a time that is over",
    "InvoiceId-C-004-C": "must be null of what is on no invoice: these rows are on invoices",
}
# Rules that say no more than that one of those above failed.
PARENTS = {"CapacityReservationStatus-C-000-C", "CapacityReservationStatus-C-002-C"}


@pytest.mark.skipif(not (VALIDATOR / "ready").exists(), reason="needs scripts/focus-validator")
def test_the_finops_foundation_s_validator_of_1_2_finds_what_is_reviewed_and_no_more(
    bills: Bills, folder: Path
) -> None:
    months = (date(2026, 9, 1), date(2026, 10, 1))
    rows = [
        row
        for month in months
        for row in bills.rows(Dataset.COST_AND_USAGE, month, version=Version.V1_2)
    ]
    path = folder / "bills.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns_of(Dataset.COST_AND_USAGE, Version.V1_2))
        writer.writeheader()
        writer.writerows(rows)
    (packages,) = VALIDATOR.glob("lib/*/site-packages")
    found = subprocess.run(
        [
            VALIDATOR / "bin" / "focus-validator", "--data-file", path, "--validate-version", "1.2.0.1",
            "--block-download", "--applicability-criteria", ",".join(SUPPORTED),
        ],
        cwd=packages,  # it opens a list of currencies by a relative path
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    failed = set(re.findall(r"^❌ (\S+): FAIL", found.stdout, re.MULTILINE))
    (passed,) = re.findall(r"Pass: (\d+)", found.stdout)
    assert int(passed) > 250, found.stdout[-2_000:]
    assert failed == ALLOWED.keys() | PARENTS
