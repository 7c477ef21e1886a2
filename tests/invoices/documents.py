"""Invoices as documents, with whatever a test wants in them, and no database."""

from dataclasses import asdict
from datetime import UTC, date, datetime
from fractions import Fraction
from typing import Any
from uuid import UUID

from sublet.core.money import NANOS
from sublet.invoices.document import as_document
from sublet.invoices.invoice import Kind, Line, State, Tax, add_up
from sublet.invoices.ubl import Seller

SELLER = Seller(
    name="Example Compute Ltd, 1 Mill Lane, Leeds", country="GB", tax_id="GB123456789",
    endpoint="9932:GB123456789",
)  # fmt: skip
VAT = Tax(
    jurisdiction="GB", name="VAT", percent=Fraction(20), valid_from=date(2026, 1, 1),
    valid_until=None,
)  # fmt: skip
BUYER = {
    "legal_name": "Acme GmbH", "address": "Hauptstraße 2\n10115 Berlin", "tax_id": "DE136695976",
    "email": "", "country": "DE", "endpoint": "9930:DE136695976", "reference": "PO 4711",
    "time_zone": "Europe/Berlin",
}  # fmt: skip
TOKENS = Line(
    what="usage", sku="model:gemma:output", pool="", tier="", model="gemma", key="research",
    quantity=1_234_567_891, rate_nanos=600, rate_per=1_000, amount_nanos=740_740_735,
    tags='{"team": "search"}',
)  # fmt: skip
GPUS = Line(
    what="usage", sku="lease:h200:on_demand", pool="h200", tier="on_demand", model="", key="",
    quantity=8 * 3_600 * 31 + 7, rate_nanos=2_500_000_000, rate_per=3_600,
    amount_nanos=620_004_861_111,
)  # fmt: skip
CREDIT = Line(
    what="credit", sku="", pool="h200", tier="on_demand", model="", key="", quantity=0,
    rate_nanos=0, rate_per=1, amount_nanos=-31_250_000_000,
    note="lease 7f3a was taken back 45 minutes before its time",
)  # fmt: skip


def a_document(
    *lines: Line,
    tax: Tax | None = VAT,
    kind: Kind = Kind.INVOICE,
    state: State = State.ISSUED,
    prepaid: int = 0,
    currency: str = "USD",
    unit_nanos: int = NANOS,
    **buyer: str,
) -> dict[str, Any]:
    """Return what the API would show of it."""
    totals = add_up(lines, tax)
    number = 12 if kind is Kind.INVOICE else 13
    row = {
        "id": UUID(int=number), "number": number, "kind": kind,
        "corrects": None if kind is Kind.INVOICE else UUID(int=12), "tenant_id": UUID(int=7),
        "starts_at": datetime(2026, 9, 30, 22, tzinfo=UTC),
        "ends_at": datetime(2026, 10, 31, 23, tzinfo=UTC), "net_nanos": totals.net,
        "tax_nanos": totals.tax, "rounding_nanos": totals.rounding, "prepaid_nanos": prepaid,
        "currency": currency, "unit_nanos": unit_nanos,
        "happened_at": datetime(2026, 11, 2, 9, tzinfo=UTC), "due_on": date(2026, 11, 16),
        "state": state, "profile": BUYER | buyer,
        "tax": None if tax is None
        else {"name": tax.name, "jurisdiction": tax.jurisdiction, "percent": f"{float(tax.percent):g}"},
        "lines": [asdict(line) for line in lines],
    }  # fmt: skip
    return as_document(row, seller=SELLER.name)
