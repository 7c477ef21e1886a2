"""Which documents and open charges a month holds, read from the records."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx, load_queries, one
from sublet.core.money import NANOS
from sublet.invoices.invoice import Invoice, Kind, Line, Totals, midnight, month_of, zone
from sublet.invoices.invoice import State as InvoiceState

QUERIES: Final = load_queries("sublet.finance.focus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Which charges of a tenant: what an invoice took, or what no invoice has yet."""

    tenant_id: UUID
    starts_at: datetime | str  # '-infinity': whatever came late, too
    ends_at: datetime
    mark: int
    credit_mark: int
    old_mark: int = -1  # before these marks and this instant …
    old_credit_mark: int = -1
    old_transfer_mark: int = -1
    before: datetime | str = "-infinity"  # … it is on an earlier invoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """An invoice, a credit note, or what is on none of them yet, in one billing period."""

    invoice: Invoice | None
    state_since: datetime | None
    tenant_id: UUID
    tenant: str
    period: tuple[datetime, datetime]
    terms_days: int
    tax_name: str
    span: Span | None  # None: a credit note has no charges of its own
    corrected: str | None = None  # the label of the invoice that a credit note is for

    @property
    def label(self) -> str | None:
        return None if self.invoice is None else self.invoice.label

    @property
    def is_void(self) -> bool:
        return self.invoice is not None and self.invoice.state is InvoiceState.VOID


def list_documents(tx: Tx, month: date, *, tenant_id: UUID | None, now: datetime) -> list[Document]:
    """Return what a month holds: invoices and credit notes, then of each tenant what is open.

    A month is the tenant's, by its time zone. An invoice is of the month in which its period ends, a credit
    note of the one in which it was issued. What is on no invoice yet is of the month in which it
    happened; if that was billed already, of the next one: a month that is billed does not change.
    """
    first, after = month_of(month)
    rows = tx.execute(QUERIES["list_documents"], {"tenant_id": tenant_id}).fetchall()
    labels = {row["id"]: _invoice(row).label for row in rows}
    standing: dict[UUID, dict[str, Any]] = {}  # the latest of each tenant
    found: list[Document] = []
    for row in rows:
        invoice = _invoice(row)
        here = zone(row["time_zone"])
        note = invoice.kind is Kind.CREDIT_NOTE
        last = standing.get(row["tenant_id"])
        at = invoice.issued_at if note else invoice.ends_at - timedelta(microseconds=1)
        if first <= at.astimezone(here).date() < after:
            found.append(
                Document(
                    invoice=invoice, state_since=row["since"], tenant_id=row["tenant_id"],
                    tenant=row["tenant"], period=_period(first, after, row["time_zone"]),
                    terms_days=int(row["terms_days"]), tax_name=(row["tax"] or {}).get("name", ""),
                    span=None if note else _span(row, last),
                    corrected=labels.get(row["corrects"]),
                )
            )  # fmt: skip
        if not note and invoice.state is not InvoiceState.VOID:
            standing[row["tenant_id"]] = row
    for row in tx.execute(QUERIES["list_customers"], {"tenant_id": tenant_id}):
        period = _period(first, after, row["time_zone"])
        last = standing.get(row["id"])
        if period[0] < now and (last is None or last["ends_at"] < period[1]):
            found.append(
                Document(
                    invoice=None, state_since=None, tenant_id=row["id"], tenant=row["name"],
                    period=period, terms_days=0, tax_name="",
                    span=_open_span(row["id"], period, last),
                )
            )  # fmt: skip
    return found


def lines_of(tx: Tx, document: Document) -> list[Line]:
    """Return the lines of an invoice as they stand in it, then its tax and its rounding."""
    assert document.invoice is not None
    row = one(tx, QUERIES["get_lines"], {"id": document.invoice.id})
    assert row is not None
    lines = [Line(**line) for line in row["lines"]]
    totals = document.invoice.totals
    more = (("tax", totals.tax, document.tax_name), ("rounding", totals.rounding, ""))
    return lines + [plain(what, nanos, note) for what, nanos, note in more if nanos]


def open_lines(tx: Tx, document: Document) -> Iterator[tuple[Line, datetime, UUID]]:
    """Yield minimums, shares and corrections that are on no invoice yet, when, and their transfers."""
    assert document.span is not None
    row = parameters(document.span) | {"old_mark": document.span.old_transfer_mark}
    for found in tx.execute(QUERIES["list_open_movements"], row):
        what = found["reason"] if found["reason"] in {"minimum", "resale"} else "correction"
        line = plain(what, int(found["amount_nanos"]), f"record {found['id']}")
        yield line, found["happened_at"], found["id"]


def list_credits(tx: Tx, span: Span) -> list[dict[str, Any]]:
    row = parameters(span) | {"mark": span.credit_mark, "old_mark": span.old_credit_mark}
    return tx.execute(QUERIES["list_credits"], row).fetchall()


def parameters(span: Span) -> dict[str, Any]:
    return {
        "tenant_id": span.tenant_id, "starts_at": span.starts_at, "ends_at": span.ends_at,
        "mark": span.mark, "old_mark": span.old_mark, "before": span.before,
    }  # fmt: skip


def plain(what: str, nanos: int, note: str = "", *, pool: str = "", tier: str = "") -> Line:
    return Line(
        what=what, sku="", pool=pool, tier=tier, model="", key="", quantity=0, rate_nanos=0,
        rate_per=1, amount_nanos=nanos, note=note,
    )  # fmt: skip


def _span(row: dict[str, Any], last: dict[str, Any] | None) -> Span:
    old = {} if last is None else _before(last)
    return Span(
        tenant_id=row["tenant_id"], starts_at="-infinity", ends_at=row["ends_at"],
        mark=row["charge_mark"], credit_mark=row["credit_mark"], **old,
    )  # fmt: skip


def _open_span(
    tenant_id: UUID, period: tuple[datetime, datetime], last: dict[str, Any] | None
) -> Span:
    starts_at: datetime | str = period[0]
    old: dict[str, Any] = {}
    if last is not None:
        old = _before(last)
        if last["ends_at"] >= period[0]:
            starts_at = "-infinity"
    return Span(
        tenant_id=tenant_id, starts_at=starts_at, ends_at=period[1], mark=1 << 62,
        credit_mark=1 << 62, **old,
    )  # fmt: skip


def _before(last: dict[str, Any]) -> dict[str, Any]:
    return {
        "old_mark": last["charge_mark"], "old_credit_mark": last["credit_mark"],
        "old_transfer_mark": last["transfer_mark"], "before": last["ends_at"],
    }  # fmt: skip


def _period(first: date, after: date, zone_name: str) -> tuple[datetime, datetime]:
    return midnight(first, zone_name), midnight(after, zone_name)


def _invoice(row: dict[str, Any]) -> Invoice:
    return Invoice(
        id=row["id"], number=row["number"], kind=Kind(row["kind"]), corrects=row["corrects"],
        tenant_id=row["tenant_id"], starts_at=row["starts_at"], ends_at=row["ends_at"],
        totals=Totals(
            net=int(row["net_nanos"]), tax=int(row["tax_nanos"]), rounding=int(row["rounding_nanos"])
        ),
        prepaid_nanos=0, currency="USD", unit_nanos=NANOS, issued_at=row["happened_at"],
        due_on=row["due_on"], state=InvoiceState(row["state"]),
    )  # fmt: skip
