"""Invoices and what they need, in the database."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

from psycopg.types.json import Json
from pydantic_core import to_jsonable_python

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Invalid, NotFound
from sublet.core.money import Money
from sublet.invoices.invoice import Invoice, Kind, Line, Profile, State, Tax, Totals

QUERIES = load_queries("sublet.invoices")


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """How far an invoice looked into each record, and until when."""

    charge: int
    credit: int
    transfer: int
    starts_at: datetime | None = None
    ends_at: datetime | None = None  # None: nothing was billed before


def put_profile(tx: Tx, profile: Profile) -> None:
    nanos = None if profile.threshold is None else profile.threshold.nanos
    row = {k: v for k, v in asdict(profile).items() if k != "threshold"}
    tx.execute(QUERIES["put_profile"], row | {"threshold_nanos": nanos})


def find_profile(tx: Tx, tenant_id: UUID) -> Profile | None:
    row = one(tx, QUERIES["get_profile"], {"tenant_id": tenant_id})
    if row is None:
        return None
    nanos = row.pop("threshold_nanos")
    return Profile(**row, threshold=None if nanos is None else Money(int(nanos)))


def add_tax(tx: Tx, tax: Tax, *, now: datetime) -> None:
    """Raises Invalid: it overlaps another rate of its jurisdiction."""
    for other in list_taxes(tx):
        if (
            other.jurisdiction == tax.jurisdiction
            and (other.valid_until is None or tax.valid_from < other.valid_until)
            and (tax.valid_until is None or other.valid_from < tax.valid_until)
        ):
            until = "on" if other.valid_until is None else f"to {other.valid_until}"
            raise Invalid(
                f"{tax.jurisdiction} has a rate from {other.valid_from} {until} already, and rates"
                " of one jurisdiction must not overlap"
            )
    row = asdict(tax) | {"percent": percent_text(tax), "now": now}
    tx.execute(QUERIES["insert_tax"], row)


def list_taxes(tx: Tx) -> list[Tax]:
    return [
        Tax(**row | {"percent": Fraction(row["percent"])})
        for row in tx.execute(QUERIES["list_taxes"])
    ]


def add_exchange_rate(
    tx: Tx, currency: str, day: date, unit_nanos: int, source: str, *, now: datetime
) -> None:
    """Keep what one USD was in `currency` on a day.

    Raises:
        Invalid: there is another rate of that day.
    """
    row = {"currency": currency, "day": day, "unit_nanos": unit_nanos, "source": source, "now": now}
    if (
        one(tx, QUERIES["insert_exchange_rate"], row) is None
        and find_exchange_rate(tx, currency, day) != unit_nanos
    ):
        raise Invalid(f"there is another rate of {currency} for {day}, and records stand")


def find_exchange_rate(tx: Tx, currency: str, day: date) -> int | None:
    row = one(tx, QUERIES["get_exchange_rate"], {"currency": currency, "day": day})
    return None if row is None else int(row["unit_nanos"])


def lock_numbers(tx: Tx) -> int:
    """Return the next number; nobody else gets one until the transaction ends."""
    tx.execute(QUERIES["lock_numbers"])
    row = one(tx, QUERIES["next_number"], {})
    assert row is not None
    return int(row["number"])


def get_marks(tx: Tx) -> Marks:
    row = one(tx, QUERIES["get_marks"], {})
    assert row is not None
    return Marks(
        charge=row["charge_mark"], credit=row["credit_mark"], transfer=row["transfer_mark"]
    )


def list_standing(tx: Tx, tenant_id: UUID) -> list[tuple[UUID, Marks]]:
    """Return the tenant's invoices that were not voided, the latest first."""
    return [
        (
            row["id"],
            Marks(charge=row["charge_mark"], credit=row["credit_mark"],
                  transfer=row["transfer_mark"], starts_at=row["starts_at"],
                  ends_at=row["ends_at"]),
        )
        for row in tx.execute(QUERIES["list_last"], {"tenant_id": tenant_id})
    ]  # fmt: skip


def collect_lines(
    tx: Tx, tenant_id: UUID, *, before: Marks, marks: Marks, ends_at: datetime
) -> list[Line]:
    """Return what no earlier invoice has, up to `marks` and before `ends_at`."""
    row = {
        "tenant_id": tenant_id, "ends_at": ends_at, "revenue": f"tenant:{tenant_id}:revenue",
        "charge_mark": marks.charge, "credit_mark": marks.credit, "transfer_mark": marks.transfer,
        "old_charge_mark": before.charge, "old_credit_mark": before.credit,
        "old_transfer_mark": before.transfer,
        "before": before.ends_at or datetime.min.replace(tzinfo=ends_at.tzinfo),
    }  # fmt: skip
    if before.ends_at is None:
        row |= {"old_charge_mark": -1, "old_credit_mark": -1, "old_transfer_mark": -1,
                "before": ends_at}  # fmt: skip
    lines = [
        Line(
            what="usage", sku=found["sku"], pool=found["pool"], tier=found["tier"],
            model=found["model"], key=found["key"], tags=found["tags"], quantity=int(found["quantity"]),
            rate_nanos=int(found["rate_nanos"]), rate_per=int(found["rate_per"]),
            amount_nanos=int(found["amount_nanos"]),
        )
        for found in tx.execute(QUERIES["list_charge_lines"], row)
    ]  # fmt: skip
    for found in tx.execute(QUERIES["list_credit_lines"], row):
        evidence = (
            f"{found['gpus']} GPUs, promised until {found['promised_until']:%Y-%m-%d %H:%M:%SZ},"
            f" taken back {found['happened_at']:%Y-%m-%d %H:%M:%SZ}, record {found['transfer_id']}"
        )
        lines.append(_plain("credit", -int(found["amount_nanos"]), evidence, found))
    for found in tx.execute(QUERIES["list_other_lines"], row):
        what = found["reason"] if found["reason"] in {"minimum", "resale"} else "correction"
        lines.append(_plain(what, int(found["amount_nanos"]), f"record {found['id']}", {}))
    return lines


def insert(
    tx: Tx,
    invoice: Invoice,
    lines: Sequence[Line],
    *,
    marks: Marks,
    profile: Profile,
    tax: Tax | None,
) -> None:
    row = {
        "id": invoice.id, "number": invoice.number, "kind": invoice.kind,
        "corrects": invoice.corrects, "tenant_id": invoice.tenant_id,
        "starts_at": invoice.starts_at, "ends_at": invoice.ends_at, "charge_mark": marks.charge,
        "credit_mark": marks.credit, "transfer_mark": marks.transfer,
        "net_nanos": invoice.totals.net, "tax_nanos": invoice.totals.tax,
        "rounding_nanos": invoice.totals.rounding, "prepaid_nanos": invoice.prepaid_nanos,
        "currency": invoice.currency, "unit_nanos": invoice.unit_nanos,
        "profile": Json(to_jsonable_python(asdict(profile))),
        "tax": None if tax is None else Json({"name": tax.name, "jurisdiction": tax.jurisdiction,
                                              "percent": percent_text(tax)}),
        "lines": Json([asdict(line) for line in lines]),
        "issued_at": invoice.issued_at, "due_on": invoice.due_on,
    }  # fmt: skip
    tx.execute(QUERIES["insert_invoice"], row)
    add_event(tx, invoice.id, State.ISSUED, "", now=invoice.issued_at)


def add_event(tx: Tx, invoice_id: UUID, state: State, detail: str, *, now: datetime) -> None:
    row = {"invoice_id": invoice_id, "state": state, "detail": detail, "now": now}
    tx.execute(QUERIES["insert_event"], row)


def list_invoices(
    tx: Tx, tenant_id: UUID | None, *, number: int | None = None, id_: UUID | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return rows, newest first; `read_invoice` makes invoices of them."""
    row = {"tenant_id": tenant_id, "number": number, "id": id_, "limit": limit}
    return tx.execute(QUERIES["list_invoices"], row).fetchall()


def get_row(
    tx: Tx, *, number: int | None = None, id_: UUID | None = None, tenant_id: UUID | None = None
) -> dict[str, Any]:
    """Raises NotFound: there is no such invoice, or it is another tenant's."""
    rows = list_invoices(tx, tenant_id, number=number, id_=id_, limit=1)
    if not rows:
        raise NotFound(f"there is no invoice {id_ if number is None else number}")
    return rows[0]


def corrected_nanos(tx: Tx, invoice_id: UUID) -> int:
    """Return what credit notes of an invoice add up to: nothing, or less."""
    row = one(tx, QUERIES["sum_corrections"], {"id": invoice_id})
    assert row is not None
    return int(row["net_nanos"])


def read_invoice(row: Mapping[str, Any]) -> Invoice:
    return Invoice(
        id=row["id"],
        number=row["number"],
        kind=Kind(row["kind"]),
        corrects=row["corrects"],
        tenant_id=row["tenant_id"],
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        totals=Totals(
            net=int(row["net_nanos"]),
            tax=int(row["tax_nanos"]),
            rounding=int(row["rounding_nanos"]),
        ),
        prepaid_nanos=int(row["prepaid_nanos"]),
        currency=row["currency"],
        unit_nanos=int(row["unit_nanos"]),
        issued_at=row["happened_at"],
        due_on=row["due_on"],
        state=State(row["state"]),
    )


def read_lines(row: Mapping[str, Any]) -> list[Line]:
    return [Line(**line) for line in row["lines"]]


def percent_text(tax: Tax) -> str:
    """Write a rate exactly; it has at most six decimals."""
    return f"{Decimal(tax.percent.numerator) / tax.percent.denominator:f}"


def _plain(what: str, nanos: int, note: str, found: Mapping[str, Any]) -> Line:
    return Line(
        what=what, sku="", pool=found.get("pool") or "", tier=found.get("tier") or "", model="",
        key="", quantity=0, rate_nanos=0, rate_per=1, amount_nanos=nanos, note=note,
    )  # fmt: skip
