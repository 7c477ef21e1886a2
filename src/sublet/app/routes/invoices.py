"""Invoices: the operator issues them and notes payments, tenants look at their own."""

from dataclasses import asdict
from datetime import date
from fractions import Fraction
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field

from sublet.app.documents import Body, Name, Text, Usd, usd
from sublet.app.http import AnyCaller, Operator, Ours
from sublet.app.idempotency import OneCall
from sublet.core.db import Tx
from sublet.core.errors import Invalid
from sublet.core.ids import new_id
from sublet.core.money import NANOS, Money, parse_amount
from sublet.invoices import dunning, outgoing, service, store
from sublet.invoices.document import as_document, as_pdf
from sublet.invoices.dunning import Action, Step
from sublet.invoices.invoice import Profile, Tax
from sublet.invoices.ubl import Seller, as_ubl
from sublet.tenants import store as tenants
from sublet.tenants.tenant import TenantId

router = APIRouter(prefix="/v1", tags=["invoices"])
_LONG = Field(max_length=1_000)


class ProfileBody(Body):
    legal_name: Name
    address: Annotated[Text, _LONG] = ""
    tax_id: Annotated[Text, Field(max_length=100)] = ""
    jurisdiction: Annotated[Text, Field(max_length=100)] = ""
    currency: Annotated[Text, Field(pattern="^[A-Z]{3}$")] = "USD"
    email: Annotated[Text, Field(max_length=254)] = ""
    terms_days: Annotated[int, Field(ge=0, le=365, strict=True)] = 0
    time_zone: Annotated[Text, Field(max_length=100)] = "UTC"
    threshold_usd: Usd | None = None
    country: Annotated[Text, Field(pattern="^([A-Z]{2})?$", description="For e-invoices")] = ""
    endpoint: Annotated[Text, Field(max_length=60, examples=["0088:7300010000001"])] = ""
    reference: Annotated[Text, Field(max_length=100, description="To be named on e-invoices")] = ""


class NewTax(Body):
    jurisdiction: Name
    name: Name
    percent: Annotated[Text, Field(pattern=r"^[0-9]{1,3}(\.[0-9]{1,6})?$", examples=["19"])]
    valid_from: date
    valid_until: date | None = None


class NewExchangeRate(Body):
    currency: Annotated[Text, Field(pattern="^[A-Z]{3}$")]
    day: date
    per_usd: Annotated[Text, Field(max_length=40, examples=["0.92"])]
    source: Name


class NewInvoice(Body):
    tenant_id: UUID
    start: Annotated[date, Field(alias="from")]
    end: Annotated[date, Field(alias="to")]


class Payment(Body):
    amount_usd: Usd
    reference: Name


class Correction(Body):
    amount_usd: Usd
    why: Name
    id: UUID | None = None


class Voiding(Body):
    why: Name


class CreditLine(Body):
    amount_usd: Annotated[Text, Field(pattern=r"^[0-9]{1,15}(\.[0-9]{1,9})?$")]


class DunningStep(Body):
    days: Annotated[int, Field(ge=0, le=365, strict=True, description="After it was due.")]
    action: Action


class Dunning(Body):
    steps: Annotated[list[DunningStep], Field(max_length=20)]


class Nothing(Body):
    pass


@router.put("/tenants/{tenant_id}/billing")
def set_profile(ours: Ours, _: Operator, tenant_id: UUID, body: ProfileBody) -> dict[str, Any]:
    """Say whom a tenant's invoices are addressed to, and how: currency, tax, terms, time zone."""
    threshold = None if body.threshold_usd is None else parse_amount(body.threshold_usd)
    values = body.model_dump(exclude={"threshold_usd"})
    profile = Profile(tenant_id=tenant_id, threshold=threshold, **values)
    with ours.db.transaction() as tx:
        tenants.get_tenant(tx, TenantId(tenant_id))
        store.put_profile(tx, profile)
    return body.model_dump()


@router.put("/tenants/{tenant_id}/credit-line")
def set_credit_line(ours: Ours, _: Operator, tenant_id: UUID, body: CreditLine) -> dict[str, Any]:
    """Let a tenant use so much before it pays. It can still never use more than that."""
    line = Money(int(Fraction(body.amount_usd) * NANOS))
    with ours.db.transaction() as tx:
        service.set_credit_line(tx, TenantId(tenant_id), line, now=ours.clock.now())
    return {"tenant_id": tenant_id, "credit_line_usd": usd(line)}


@router.post("/taxes", status_code=201)
def add_tax(ours: Ours, _: Operator, once: OneCall, body: NewTax) -> dict[str, Any]:
    """Add a tax rate of a jurisdiction, from one day to another; rates must not overlap."""
    tax = Tax(
        jurisdiction=body.jurisdiction, name=body.name, percent=Fraction(body.percent),
        valid_from=body.valid_from, valid_until=body.valid_until,
    )  # fmt: skip
    if tax.percent > 100 or (tax.valid_until is not None and tax.valid_until <= tax.valid_from):
        raise Invalid("percent, valid_until: a rate is 0 to 100 per cent, and ends after it begins")

    def add(tx: Tx) -> dict[str, Any]:
        store.lock_numbers(tx)
        store.add_tax(tx, tax, now=ours.clock.now())
        return body.model_dump(mode="json")

    return once.run(body, add)


@router.post("/exchange-rates", status_code=201)
def add_exchange_rate(
    ours: Ours, _: Operator, once: OneCall, body: NewExchangeRate
) -> dict[str, Any]:
    """Keep what one USD was in another currency on a day, and who says so."""
    unit = parse_amount(body.per_usd).nanos

    def add(tx: Tx) -> dict[str, Any]:
        now = ours.clock.now()
        store.add_exchange_rate(tx, body.currency, body.day, unit, body.source, now=now)
        return body.model_dump(mode="json")

    return once.run(body, add)


@router.post("/invoices", status_code=201)
def issue_invoice(ours: Ours, _: Operator, once: OneCall, body: NewInvoice) -> dict[str, Any]:
    """Issue a tenant's invoice for whole days of its time zone; the same period is the same one."""

    def issue(tx: Tx) -> dict[str, Any]:
        invoice = service.issue(
            tx, TenantId(body.tenant_id), body.start, body.end, now=ours.clock.now()
        )
        return _show(ours, tx, invoice.number)

    return once.run(body, issue)


@router.get("/invoices/draft")
def draft_invoice(
    ours: Ours,
    _: Operator,
    tenant_id: UUID,
    start: Annotated[date, Query(alias="from")],
    end: Annotated[date, Query(alias="to")],
) -> dict[str, Any]:
    """Show what an invoice would say, were it issued now; nothing is kept."""
    with ours.db.transaction() as tx:
        invoice, lines, _marks, profile = service.draft(
            tx, TenantId(tenant_id), start, end, now=ours.clock.now()
        )
    return {
        "tenant_id": invoice.tenant_id,
        "legal_name": profile.legal_name,
        "lines": len(lines),
        "net_usd": usd(Money(invoice.totals.net)),
        "tax_usd": usd(Money(invoice.totals.tax)),
        "total_usd": usd(Money(invoice.totals.total)),
    }


@router.post("/invoices/run")
def issue_due(ours: Ours, _: Operator, once: OneCall, body: Nothing) -> dict[str, Any]:
    """Issue what is due by now, of every tenant: the month before, and what is over a threshold.

    Then take the steps that are due for what is not paid; see `PUT /v1/dunning`.
    """

    def run(tx: Tx) -> dict[str, Any]:
        numbers, reminded, suspended = [], [], []
        for tenant in tenants.list_tenants(tx):
            invoice = service.issue_due(tx, tenant.id, now=ours.clock.now())
            if invoice is not None:
                numbers.append(invoice.label)
            taken = {step.action for step in service.dun_due(tx, tenant.id, now=ours.clock.now())}
            reminded += [tenant.name] if Action.REMIND in taken else []
            suspended += [tenant.name] if Action.SUSPEND in taken else []
        return {"issued": numbers, "reminded": reminded, "suspended": suspended}

    return once.run(body, run)


@router.put("/dunning")
def set_dunning(ours: Ours, _: Operator, body: Dunning) -> dict[str, Any]:
    """Say what follows so many days after an invoice was due: reminders, a suspension; or nothing.

    A suspended tenant can read and pay, and buys nothing more; its leases end where they are paid to.
    """
    with ours.db.transaction() as tx:
        dunning.set_steps(tx, [Step(days=one.days, action=one.action) for one in body.steps])
    return body.model_dump(mode="json")


@router.get("/dunning")
def show_dunning(ours: Ours, _: Operator) -> dict[str, Any]:
    with ours.db.transaction() as tx:
        return {"steps": [asdict(step) for step in dunning.list_steps(tx)]}


@router.get("/tenants/{tenant_id}/messages")
def list_messages(ours: Ours, _: Operator, tenant_id: UUID) -> dict[str, Any]:
    """List what was sent to a tenant, newest first, and how that went."""
    with ours.db.transaction() as tx:
        tenants.get_tenant(tx, TenantId(tenant_id))
        rows = outgoing.list_of(tx, tenant_id)
    names = ("made_at", "channel", "target", "subject", "attempts", "outcome", "detail")
    return {"items": [{name: row[name] for name in names} for row in rows]}


@router.get("/invoices")
def list_invoices(
    ours: Ours, found: AnyCaller, limit: Annotated[int, Query(ge=1, le=1_000)] = 100
) -> dict[str, Any]:
    """List your invoices, newest first; the operator sees everybody's."""
    tenant_id = None if found.tenant is None else found.tenant.id
    with ours.db.transaction() as tx:
        rows = store.list_invoices(tx, tenant_id, limit=limit)
    documents = [as_document(row, seller=ours.config.seller) for row in rows]
    return {"items": [{k: v for k, v in one.items() if k != "lines"} for one in documents]}


@router.get("/invoices/{number}")
def show_invoice(ours: Ours, found: AnyCaller, number: int) -> dict[str, Any]:
    """Show an invoice with its lines."""
    tenant_id = None if found.tenant is None else found.tenant.id
    with ours.db.transaction() as tx:
        row = store.get_row(tx, number=number, tenant_id=tenant_id)
    return as_document(row, seller=ours.config.seller)


@router.get("/invoices/{number}/pdf", response_class=Response)
def show_pdf(ours: Ours, found: AnyCaller, number: int) -> Response:
    """Show an invoice as PDF."""
    document = show_invoice(ours, found, number)
    return Response(
        as_pdf(document),
        media_type="application/pdf",
        headers={"Content-Disposition": f'inline; filename="{document["number"]}.pdf"'},
    )


@router.get("/invoices/{number}/ubl", response_class=Response)
def show_ubl(ours: Ours, found: AnyCaller, number: int) -> Response:
    """Show an invoice for other programs: UBL 2.1 as Peppol BIS Billing 3.0 has it."""
    document = show_invoice(ours, found, number)
    corrects = None
    if document["corrects"] is not None:
        with ours.db.transaction() as tx:
            row = store.get_row(tx, id_=UUID(document["corrects"]))
        corrects = as_document(row, seller=ours.config.seller)
    config = ours.config
    seller = Seller(
        name=config.seller, country=config.seller_country or "", tax_id=config.seller_tax_id or "",
        endpoint=config.seller_endpoint or "",
    )  # fmt: skip
    return Response(
        as_ubl(document, seller, corrects=corrects),
        media_type="application/xml",
        headers={"Content-Disposition": f'attachment; filename="{document["number"]}.xml"'},
    )


@router.post("/invoices/{number}/payments")
def pay_invoice(
    ours: Ours, _: Operator, once: OneCall, number: int, body: Payment
) -> dict[str, Any]:
    """Note that an invoice was paid by hand; the same reference again changes nothing."""
    amount = parse_amount(body.amount_usd)

    def pay(tx: Tx) -> dict[str, Any]:
        service.pay(tx, number, amount, reference=body.reference, now=ours.clock.now())
        return _show(ours, tx, number)

    return once.run(body, pay)


@router.post("/invoices/{number}/void")
def void_invoice(
    ours: Ours, _: Operator, once: OneCall, number: int, body: Voiding
) -> dict[str, Any]:
    """Void a tenant's latest invoice before it is paid; its period is open again."""

    def void(tx: Tx) -> dict[str, Any]:
        service.void(tx, number, why=body.why, now=ours.clock.now())
        return _show(ours, tx, number)

    return once.run(body, void)


@router.post("/invoices/{number}/credit-notes", status_code=201)
def correct_invoice(
    ours: Ours, _: Operator, once: OneCall, number: int, body: Correction
) -> dict[str, Any]:
    """Credit a part of an invoice's net amount by a credit note, with its tax, into the wallet."""
    amount, id_ = parse_amount(body.amount_usd), body.id or new_id()

    def correct(tx: Tx) -> dict[str, Any]:
        note = service.correct(tx, number, amount, why=body.why, id_=id_, now=ours.clock.now())
        return _show(ours, tx, note.number)

    return once.run(body, correct)


def _show(ours: Ours, tx: Tx, number: int) -> dict[str, Any]:
    return as_document(store.get_row(tx, number=number), seller=ours.config.seller)
