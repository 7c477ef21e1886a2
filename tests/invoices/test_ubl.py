"""E-invoices, held to the schemas of UBL 2.1 and to every rule of EN 16931 and of Peppol.

The schemas are OASIS's own; the rules are judged by another project than ours, which says when it
did not run one of them.
"""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree as ET

import mockeinvoice
import peppol
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.invoices.documents import CREDIT, GPUS, SELLER, TOKENS, VAT, a_document

from sublet.core.errors import Conflict, Invalid
from sublet.core.money import NANOS
from sublet.invoices.invoice import Kind, Line, State
from sublet.invoices.ubl import as_ubl, cents, in_cents

ZERO = replace(VAT, percent=Fraction(0))
CORRECTION = replace(CREDIT, what="correction", note="of INV-000012: slow on 3 October")
CBC = "{urn:oasis:names:specification:ubl:schema:xsd:CommonBasicComponents-2}"


def judged(document: dict[str, Any], **changes: Any) -> ET.Element:
    """Return the e-invoice once all judges found nothing."""
    corrects = a_document(TOKENS) if document["corrects"] else None
    made = as_ubl(document, replace(SELLER, **changes), corrects=corrects)
    assert peppol.validate_xsd(made) == (True, []), made.decode()
    _, report = mockeinvoice.validate(made)
    assert [str(found) for found in report.findings] == [], made.decode()
    assert report.verdict == "valid", "every rule ran"
    return ET.fromstring(made)  # noqa: S314 -- our own


def amount(root: ET.Element, name: str) -> Decimal | None:
    found = root.find(f".//{CBC}{name}")
    return None if found is None or found.text is None else Decimal(found.text)


@pytest.mark.parametrize(
    "document",
    [
        a_document(TOKENS, GPUS, CREDIT),
        a_document(TOKENS, GPUS, tax=None),
        a_document(TOKENS, GPUS, tax=ZERO),
        a_document(GPUS, currency="EUR", unit_nanos=920_000_000),
        a_document(GPUS, prepaid=600 * NANOS),
        a_document(GPUS, state=State.PAID),
        a_document(CREDIT, TOKENS),  # more comes back than was used
        a_document(TOKENS, tax_id="", reference="", address="Hauptstraße 2\nHof\nTür 3\n10115 Berlin"),
        a_document(replace(TOKENS, key='a < b & "c"', tags='{"übung": "<1>"}')),
        a_document(replace(TOKENS, quantity=1, amount_nanos=1)),
        a_document(CORRECTION, kind=Kind.CREDIT_NOTE, state=State.PAID),
        a_document(CORRECTION, kind=Kind.CREDIT_NOTE, state=State.PAID, tax=None),
    ],
)  # fmt: skip
def test_it_breaks_no_rule_of_those_who_wrote_them(document: dict[str, Any]) -> None:
    judged(document)


def test_the_judges_find_what_is_wrong() -> None:
    made = as_ubl(a_document(GPUS), SELLER, corrects=None)
    for old, new, rule in (
        (b'LineExtensionAmount currencyID="USD">620.00', b'LineExtensionAmount currencyID="USD">620.01',
         "BR-CO-10"),
        (b">124.00<", b">124.05<", "BR-CO-14"),
        (b">S<", b">AA<", "BR-CL-17"), (b">USD<", b">USX<", "BR-CL-04"),
    ):  # fmt: skip
        assert old in made, old
        _, report = mockeinvoice.validate(made.replace(old, new, 1))
        assert rule in {found.code for found in report.failures}
    assert peppol.validate_xsd(made.replace(b"cbc:IssueDate", b"cbc:IssuedOn"))[0] is False


def test_what_is_due_is_what_the_invoice_says() -> None:
    root = judged(a_document(TOKENS, GPUS, CREDIT, prepaid=500 * NANOS))
    # 740740735 + 620004861111 - 31250000000 nanos, and 20 %
    assert amount(root, "TaxExclusiveAmount") == Decimal("589.50")
    assert amount(root, "TaxInclusiveAmount") == Decimal("707.40")
    assert amount(root, "PrepaidAmount") == Decimal("500.00")
    assert amount(root, "PayableRoundingAmount") == Decimal("-0.01"), "707.394723… is 707.39"
    assert amount(root, "PayableAmount") == Decimal("207.39")


def test_a_credit_note_names_what_it_corrects_and_says_what_comes_back() -> None:
    root = judged(a_document(CORRECTION, kind=Kind.CREDIT_NOTE, state=State.PAID))
    assert root.tag.endswith("}CreditNote")
    assert amount(root, "TaxExclusiveAmount") == Decimal("31.25")
    named = [element.text for element in root.iter(f"{CBC}ID")]
    assert named[:2] == ["CN-000013", "INV-000012"]


USES = st.builds(
    lambda quantity, rate, tokens: replace(
        TOKENS if tokens else GPUS, quantity=quantity, rate_nanos=rate,
        amount_nanos=round(Fraction(quantity * rate, 1_000 if tokens else 3_600)),
    ),
    st.integers(1, 10**12), st.integers(1, 10**10), st.booleans(),
)  # fmt: skip
OTHERS = st.builds(
    lambda nanos, what: replace(CREDIT, amount_nanos=nanos, what=what),
    st.integers(-(10**13), 10**13).filter(bool), st.sampled_from(["credit", "minimum", "resale"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(USES | OTHERS, min_size=1, max_size=6),
    st.sampled_from([None, ZERO, VAT, replace(VAT, percent=Fraction("8.875"))]),
    st.integers(0, 10**13),
    st.sampled_from([NANOS, 920_000_000, 157_123_456_789]),
)
def test_whatever_was_used_the_rules_hold_and_the_total_is_the_invoices(
    lines: list[Line], tax: Any, prepaid: int, unit: int
) -> None:
    document = a_document(
        *lines, tax=tax, prepaid=prepaid, unit_nanos=unit,
        currency="USD" if unit == NANOS else "EUR",
    )  # fmt: skip
    root = judged(document)
    with_tax, rounding = amount(root, "TaxInclusiveAmount"), amount(root, "PayableRoundingAmount")
    assert with_tax is not None
    assert with_tax + (rounding or 0) == Decimal(document["total_usd"])
    assert abs(rounding or 0) <= Decimal("0.02")


@given(st.lists(st.fractions(-1000, 1000, max_denominator=10**9), max_size=9))
def test_amounts_in_cents_add_up_and_are_a_cent_off_at_most(amounts: list[Fraction]) -> None:
    rounded = in_cents(amounts)
    assert sum(rounded) == cents(sum(amounts, Fraction(0)))
    assert all(abs(a - b) < Fraction(1, 100) for a, b in zip(amounts, rounded, strict=True))


def test_what_nobody_said_is_named_all_at_once() -> None:
    document = a_document(GPUS, country="", endpoint="")
    with pytest.raises(Invalid) as error:
        as_ubl(document, replace(SELLER, country="", endpoint="x", tax_id=""), corrects=None)
    for named in ("SELLER_COUNTRY", "SELLER_ENDPOINT", "SELLER_TAX_ID", "--country", "--endpoint"):
        assert named in str(error.value)
    with pytest.raises(Conflict, match="is void"):
        as_ubl(a_document(GPUS, state=State.VOID), SELLER, corrects=None)
