"""An invoice as a document: JSON for programs, PDF for people. What it says is in the record."""

import json
from collections.abc import Mapping
from datetime import timedelta
from fractions import Fraction
from importlib import resources
from typing import Any, Final

from sublet.core.money import NANOS, Money
from sublet.invoices.invoice import Line, describe, zone
from sublet.invoices.store import read_invoice, read_lines

_HOUR: Final = 3_600
_MILLION: Final = 1_000_000
_OF_BUYER: Final = (
    "legal_name", "address", "tax_id", "email", "country", "endpoint", "reference",
)  # fmt: skip


def as_document(row: Mapping[str, Any], *, seller: str) -> dict[str, Any]:
    """Return everything that an invoice says; amounts are strings, of USD unless they say so.

    Args:
        row: of `store.list_invoices`.
        seller: who issues it.
    """
    invoice, lines = read_invoice(row), read_lines(row)
    profile, tax = row["profile"], row["tax"]
    here = zone(profile["time_zone"])
    document: dict[str, Any] = {
        "id": str(invoice.id),
        "number": invoice.label,
        "kind": invoice.kind.value,
        "corrects": None if invoice.corrects is None else str(invoice.corrects),
        "state": invoice.state.value,
        "seller": seller,
        # Some of it was not asked for once: older invoices know nothing of it.
        "buyer": {name: profile.get(name, "") for name in _OF_BUYER},
        "tenant_id": str(invoice.tenant_id),
        "from": invoice.starts_at.astimezone(here).date().isoformat(),
        "to": (invoice.ends_at - timedelta(microseconds=1)).astimezone(here).date().isoformat(),
        "time_zone": profile["time_zone"],
        "issued_on": invoice.issued_at.astimezone(here).date().isoformat(),
        "due_on": invoice.due_on.isoformat(),
        "lines": [_line(line) for line in lines],
        "net_usd": _exact(invoice.totals.net),
        "tax": None
        if tax is None
        else {"name": tax["name"], "percent": tax["percent"], "usd": _exact(invoice.totals.tax)},
        "rounding_usd": _exact(invoice.totals.rounding),
        "total_usd": _cents(invoice.totals.total),
        "paid_from_balance_usd": _exact(invoice.prepaid_nanos),
        "due_usd": _cents(invoice.payable_nanos),
    }
    if invoice.currency != "USD":
        total = round(Fraction(invoice.totals.total * invoice.unit_nanos, NANOS * NANOS) * 100)
        document["in_currency"] = {
            "currency": invoice.currency,
            "per_usd": _exact(invoice.unit_nanos),
            "total": f"{'-' if total < 0 else ''}{abs(total) // 100}.{abs(total) % 100:02d}",
        }
    return document


def as_pdf(document: Mapping[str, Any]) -> bytes:
    """Typeset what `as_document` returned; the same document makes the same bytes."""
    import typst  # noqa: PLC0415 -- slow to load

    template = resources.files("sublet.invoices") / "invoice.typ"
    made = typst.compile(
        template.read_bytes(), sys_inputs={"invoice": json.dumps(document)}, timestamp=0
    )
    assert isinstance(made, bytes)
    return made


def _line(line: Line) -> dict[str, Any]:
    tokens = bool(line.model)
    per, unit = (_MILLION, "million tokens") if tokens else (_HOUR, "GPU-hours")
    document: dict[str, Any] = {
        "what": line.what,
        "description": describe(line),
        "sku": line.sku or None,
        "pool": line.pool or None,
        "tier": line.tier or None,
        "model": line.model or None,
        "key": line.key or None,
        "tags": json.loads(line.tags) if line.tags else {},
        "quantity": None,
        "unit": None,
        "unit_price_usd": None,
        "amount_usd": _exact(line.amount_nanos),
    }
    if line.what == "usage":
        price = Fraction(line.rate_nanos * per, line.rate_per)
        document |= {
            "quantity": _number(Fraction(line.quantity, per)),
            "unit": unit,
            "unit_price_usd": _exact(int(price))
            if price.denominator == 1
            else _number(price / NANOS),
        }
    return document


def _exact(nanos: int) -> str:
    return str(Money(nanos)).removesuffix(" USD")


def _cents(nanos: int) -> str:
    cents = nanos * 100 // NANOS
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02d}"


def _number(value: Fraction) -> str:
    """Write a quantity with at most nine decimals."""
    return f"{float(value):.9f}".rstrip("0").rstrip(".")
