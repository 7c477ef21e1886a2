"""An invoice for other programs: UBL 2.1, as Peppol BIS Billing 3.0 and EN 16931 have it.

That standard knows cents only, and wants each line, each sum and the tax in them. So lines are
rounded to cents so that they add up to the net amount in cents (the largest remainders go up), the
tax is worked out of that, and what is left to the invoice's own total, a cent at most, is said as
its rounding (BT-114). Quantities and prices keep all their digits.

    sum of lines + tax = with tax;   with tax - paid already + rounding = due
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final
from xml.etree import ElementTree as ET

from sublet.core.errors import Conflict, Invalid

_UBL: Final = "urn:oasis:names:specification:ubl:schema:xsd:"
_CAC, _CBC = f"{_UBL}CommonAggregateComponents-2", f"{_UBL}CommonBasicComponents-2"
_SPECIFICATION: Final = "urn:cen.eu:en16931:2017#compliant#urn:fdc:peppol.eu:2017:poacc:billing:3.0"
_PROCESS: Final = "urn:fdc:peppol.eu:2017:poacc:billing:01:1.0"
_ENDPOINT: Final = re.compile(r"([0-9]{4}):(\S{1,50})")
_CENT: Final = Fraction(1, 100)
_HOURS, _ONES = "HUR", "C62"  # units of UN/ECE recommendation 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Seller:
    """Who issues, as the settings have it."""

    name: str
    country: str  # of two letters
    tax_id: str  # for value added tax; "" where there is none
    endpoint: str  # in the network, such as 0088:7300010000001


def as_ubl(
    document: Mapping[str, Any], seller: Seller, *, corrects: Mapping[str, Any] | None
) -> bytes:
    """Write an invoice or a credit note as XML; the same document makes the same bytes.

    Args:
        document: of `document.as_document`.
        seller: who issues it.
        corrects: the document that a credit note corrects.

    Raises:
        Invalid: the standard wants what nobody said; names all of it, and where to say it.
        Conflict: it is void.
    """
    if document["state"] == "void":
        raise Conflict(f"{document['number']} is void: there is nothing to send")
    _check(document, seller)
    return _Writer(document, seller, corrects).write()


def _check(document: Mapping[str, Any], seller: Seller) -> None:
    buyer = document["buyer"]
    lacking = [
        what
        for there, what in (
            (re.fullmatch("[A-Z]{2}", seller.country), "SUBLET_SELLER_COUNTRY, such as GB"),
            (_ENDPOINT.fullmatch(seller.endpoint), "SUBLET_SELLER_ENDPOINT, such as 0088:7300010000001"),
            (document["tax"] is None or seller.tax_id, "SUBLET_SELLER_TAX_ID, since tax is charged"),
            (buyer["country"], "the tenant's country (`sublet invoice address … --country GB`)"),
            (_ENDPOINT.fullmatch(buyer["endpoint"]),
             "the tenant's address in the network (… --endpoint 0088:7300010000001)"),
        )
        if not there
    ]  # fmt: skip
    if lacking:
        raise Invalid(f"{document['number']} cannot be an e-invoice yet; say {'; '.join(lacking)}")


class _Writer:
    def __init__(
        self, document: Mapping[str, Any], seller: Seller, corrects: Mapping[str, Any] | None
    ) -> None:
        self._document, self._seller, self._corrects = document, seller, corrects
        self._credit = document["kind"] == "credit_note"
        self._sign = -1 if self._credit else 1  # a credit note says what comes back as more than 0
        self._amounts = in_cents([Fraction(line["amount_usd"]) for line in document["lines"]])
        self._net = sum(self._amounts, Fraction(0))
        tax = document["tax"]
        self._percent = None if tax is None else Fraction(tax["percent"])
        self._tax = Fraction(0) if self._percent is None else cents(self._net * self._percent / 100)
        self._total = Fraction(document["total_usd"])

    def write(self) -> bytes:
        name = "CreditNote" if self._credit else "Invoice"
        # Prefixes are the module's own; ElementTree keeps one table of them for everybody.
        root = ET.Element(
            name,
            {"xmlns": f"{_UBL}{name}-2", "xmlns:cac": _CAC, "xmlns:cbc": _CBC},
        )
        self._head(root)
        self._party(root, "cac:AccountingSupplierParty", self._seller_party())
        self._party(root, "cac:AccountingCustomerParty", self._buyer_party())
        if not self._credit and Fraction(self._document["due_usd"]) > 0:
            terms = _add(root, "cac:PaymentTerms")
            _add(terms, "cbc:Note", f"Pay by {self._document['due_on']}, and name {self._number}")
        self._taxes(root)
        self._sums(root)
        for number, (line, amount) in enumerate(
            zip(self._document["lines"], self._amounts, strict=True), start=1
        ):
            self._line(root, number, line, amount)
        ET.indent(root)
        text = ET.tostring(root, encoding="unicode")
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()

    @property
    def _number(self) -> str:
        return str(self._document["number"])

    def _head(self, root: ET.Element) -> None:
        document = self._document
        _add(root, "cbc:CustomizationID", _SPECIFICATION)
        _add(root, "cbc:ProfileID", _PROCESS)
        _add(root, "cbc:ID", self._number)
        _add(root, "cbc:IssueDate", document["issued_on"])
        if self._credit:
            _add(root, "cbc:CreditNoteTypeCode", "381")
        else:
            _add(root, "cbc:DueDate", document["due_on"])
            _add(root, "cbc:InvoiceTypeCode", "380")
        _add(root, "cbc:Note", "Amounts are exact to a billionth of a dollar in the PDF")
        _add(root, "cbc:DocumentCurrencyCode", "USD")
        if self._tax_currency is not None:
            _add(root, "cbc:TaxCurrencyCode", self._tax_currency["currency"])
        _add(root, "cbc:BuyerReference", document["buyer"]["reference"] or document["tenant_id"])
        period = _add(root, "cac:InvoicePeriod")
        _add(period, "cbc:StartDate", document["from"])
        _add(period, "cbc:EndDate", document["to"])
        if self._corrects is not None:
            reference = _add(_add(root, "cac:BillingReference"), "cac:InvoiceDocumentReference")
            _add(reference, "cbc:ID", self._corrects["number"])
            _add(reference, "cbc:IssueDate", self._corrects["issued_on"])

    @property
    def _tax_currency(self) -> Mapping[str, str] | None:
        """Return in which currency the tax must be told as well: the buyer's."""
        found: Mapping[str, str] | None = self._document.get("in_currency")
        return None if self._percent is None else found

    # ── parties ──────────────────────────────────────────────────────────────────────────

    def _seller_party(self) -> "_Party":
        name, _, address = self._seller.name.partition(",")
        return _Party(
            name=name.strip(), address=[part.strip() for part in address.split(",") if part.strip()],
            country=self._seller.country, endpoint=self._seller.endpoint,
            tax_id=self._seller.tax_id if self._percent is not None else "",
            registration=self._seller.endpoint.partition(":")[2],
        )  # fmt: skip

    def _buyer_party(self) -> "_Party":
        buyer = self._document["buyer"]
        return _Party(
            name=buyer["legal_name"],
            address=[part for part in buyer["address"].split("\n") if part.strip()],
            country=buyer["country"], endpoint=buyer["endpoint"],
            tax_id=buyer["tax_id"] if self._percent is not None else "", registration="",
        )  # fmt: skip

    def _party(self, root: ET.Element, role: str, said: "_Party") -> None:
        party = _add(_add(root, role), "cac:Party")
        scheme, _, value = said.endpoint.partition(":")
        _add(party, "cbc:EndpointID", value, schemeID=scheme)
        _add(_add(party, "cac:PartyName"), "cbc:Name", said.name)
        address = _add(party, "cac:PostalAddress")
        for name, part in zip(
            ("cbc:StreetName", "cbc:AdditionalStreetName"), said.address, strict=False
        ):
            _add(address, name, part)
        if rest := ", ".join(said.address[2:]):
            _add(_add(address, "cac:AddressLine"), "cbc:Line", rest)
        _add(_add(address, "cac:Country"), "cbc:IdentificationCode", said.country)
        if said.tax_id:
            scheme_of = _add(party, "cac:PartyTaxScheme")
            _add(scheme_of, "cbc:CompanyID", said.tax_id)
            _add(_add(scheme_of, "cac:TaxScheme"), "cbc:ID", "VAT")
        legal = _add(party, "cac:PartyLegalEntity")
        _add(legal, "cbc:RegistrationName", said.name)
        if said.registration:
            _add(legal, "cbc:CompanyID", said.registration)

    # ── money ────────────────────────────────────────────────────────────────────────────

    def _money(
        self, parent: ET.Element, name: str, amount: Fraction, currency: str = "USD"
    ) -> None:
        _add(parent, name, _decimal(amount * self._sign, 2), currencyID=currency)

    def _taxes(self, root: ET.Element) -> None:
        total = _add(root, "cac:TaxTotal")
        self._money(total, "cbc:TaxAmount", self._tax)
        part = _add(total, "cac:TaxSubtotal")
        self._money(part, "cbc:TaxableAmount", self._net)
        self._money(part, "cbc:TaxAmount", self._tax)
        category = self._category(part, "cac:TaxCategory")
        if self._percent is None:
            place = list(category).index(category.find("cac:TaxScheme"))  # type: ignore[arg-type]
            for name, value in (
                ("cbc:TaxExemptionReason", "Not subject to VAT"),
                ("cbc:TaxExemptionReasonCode", "VATEX-EU-O"),
            ):
                element = ET.Element(name)
                element.text = value
                category.insert(place, element)
        if (other := self._tax_currency) is not None:
            again = _add(root, "cac:TaxTotal")
            theirs = cents(self._tax * Fraction(other["per_usd"]))
            self._money(again, "cbc:TaxAmount", theirs, other["currency"])

    def _category(self, parent: ET.Element, name: str) -> ET.Element:
        """Say under which of the categories of value added tax it is: standard, zero or none."""
        category = _add(parent, name)
        if self._percent is None:
            _add(category, "cbc:ID", "O")
        else:
            _add(category, "cbc:ID", "S" if self._percent else "Z")
            _add(category, "cbc:Percent", _decimal(self._percent))
        _add(_add(category, "cac:TaxScheme"), "cbc:ID", "VAT")
        return category

    def _sums(self, root: ET.Element) -> None:
        due = Fraction(self._document["due_usd"])
        with_tax = self._net + self._tax
        sums = _add(root, "cac:LegalMonetaryTotal")
        self._money(sums, "cbc:LineExtensionAmount", self._net)
        self._money(sums, "cbc:TaxExclusiveAmount", self._net)
        self._money(sums, "cbc:TaxInclusiveAmount", with_tax)
        if self._total != due:
            self._money(sums, "cbc:PrepaidAmount", self._total - due)
        if self._total != with_tax:
            self._money(sums, "cbc:PayableRoundingAmount", self._total - with_tax)
        self._money(sums, "cbc:PayableAmount", due)

    def _line(
        self, root: ET.Element, number: int, line: Mapping[str, Any], amount: Fraction
    ) -> None:
        found = _add(root, "cac:CreditNoteLine" if self._credit else "cac:InvoiceLine")
        _add(found, "cbc:ID", str(number))
        if line["quantity"] is None:
            # A price is never below nothing, so what comes back is a quantity of less than nothing.
            exact = Fraction(line["amount_usd"]) * self._sign
            quantity, price, unit = Fraction(-1 if exact < 0 else 1), abs(exact), _ONES
        else:
            quantity = Fraction(line["quantity"]) * self._sign
            price = Fraction(line["unit_price_usd"])
            unit = _HOURS if line["unit"] == "GPU-hours" else _ONES
        name = "cbc:CreditedQuantity" if self._credit else "cbc:InvoicedQuantity"
        _add(found, name, _decimal(quantity), unitCode=unit)
        self._money(found, "cbc:LineExtensionAmount", amount)
        item = _add(found, "cac:Item")
        if line["unit"] is not None and unit == _ONES:
            _add(item, "cbc:Description", f"in {line['unit']}")
        _add(item, "cbc:Name", str(line["description"]))
        if line["sku"]:
            _add(_add(item, "cac:SellersItemIdentification"), "cbc:ID", line["sku"])
        self._category(item, "cac:ClassifiedTaxCategory")
        for key, value in {"key": line["key"], **line["tags"]}.items():
            if value:
                more = _add(item, "cac:AdditionalItemProperty")
                _add(more, "cbc:Name", key)
                _add(more, "cbc:Value", value)
        _add(_add(found, "cac:Price"), "cbc:PriceAmount", _decimal(price), currencyID="USD")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Party:
    name: str
    address: Sequence[str]
    country: str
    endpoint: str
    tax_id: str
    registration: str


def in_cents(amounts: Sequence[Fraction]) -> list[Fraction]:
    """Round amounts to cents, each up or down, so that they add up to their sum in cents."""
    floors = [amount // _CENT for amount in amounts]
    missing = cents(sum(amounts, Fraction(0))) // _CENT - sum(floors)
    by_rest = sorted(
        range(len(amounts)), key=lambda place: (floors[place] - amounts[place] / _CENT, place)
    )
    for place in by_rest[:missing]:
        floors[place] += 1
    return [floor * _CENT for floor in floors]


def cents(amount: Fraction) -> Fraction:
    """Round to a cent, half away from nothing, as the standard's own sums do."""
    whole = (abs(amount) / _CENT + Fraction(1, 2)) // 1
    return (-whole if amount < 0 else whole) * _CENT


def _decimal(value: Fraction, places: int = 0) -> str:
    """Write a number that has an end, with at least so many places."""
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    assert Fraction(exact) == value, value
    text = f"{exact:f}"
    whole, _, rest = text.partition(".")
    rest = rest.rstrip("0").ljust(places, "0")
    return f"{whole}.{rest}" if rest else whole


def _add(parent: ET.Element, name: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, name, attributes)
    element.text = text
    return element
