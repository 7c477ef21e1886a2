"""Issuing, paying, voiding and correcting invoices; each once, in the caller's transaction."""

import logging
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from sublet.core.db import Tx
from sublet.core.errors import Conflict, Invalid, Refused
from sublet.core.ids import derived_id
from sublet.core.money import NANOS, Money
from sublet.invoices import dunning, outgoing, store
from sublet.invoices.dunning import Step
from sublet.invoices.invoice import (
    Invoice,
    Kind,
    Line,
    Profile,
    State,
    add_up,
    midnight,
    month_of,
    tax_on,
    zone,
)
from sublet.invoices.outgoing import Channel, Outgoing
from sublet.invoices.store import Marks
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant, TenantId, TenantKind

log = logging.getLogger(__name__)
_NOTHING = Marks(charge=-1, credit=-1, transfer=-1)


def profile_of(tx: Tx, tenant: Tenant) -> Profile:
    """Return whom to address; where nobody said, the tenant by its name, in USD, without tax."""
    return store.find_profile(tx, tenant.id) or Profile(
        tenant_id=tenant.id, legal_name=tenant.name, address="", tax_id="", jurisdiction="",
        currency="USD", email="", terms_days=0, time_zone="UTC", threshold=None,
    )  # fmt: skip


def draft(
    tx: Tx, tenant_id: TenantId, start: date, end: date, *, now: datetime
) -> tuple[Invoice, list[Line], Marks, Profile]:
    """Work out the invoice of `[start, end)`, days where the tenant is, as it would be issued now.

    Its number is the next one, which another invoice may get first. What was charged before the
    period and is on no invoice yet, because it came late, is on this one.

    Raises:
        Invalid: the period is none or overlaps one that was billed, the tax table has a gap, or
            an exchange rate is missing.
        NotFound: there is no such tenant.
    """
    tenant = tenants.get_tenant(tx, tenant_id)
    profile = profile_of(tx, tenant)
    starts_at, ends_at = (midnight(day, profile.time_zone) for day in (start, end))
    if ends_at <= starts_at:
        raise Invalid(f"a period ends after it starts, not {start} to {end}")
    return _draft(tx, tenant, profile, starts_at, ends_at, end, now=now)


def _draft(
    tx: Tx, tenant: Tenant, profile: Profile, starts_at: datetime, ends_at: datetime, day: date,
    *, now: datetime,
) -> tuple[Invoice, list[Line], Marks, Profile]:  # fmt: skip
    standing = store.list_standing(tx, tenant.id)
    for _, marks in standing:
        assert marks.starts_at is not None
        assert marks.ends_at is not None
        if starts_at < marks.ends_at and marks.starts_at < ends_at:
            raise Invalid(
                f"{tenant.name} was billed from {marks.starts_at.isoformat()} to"
                f" {marks.ends_at.isoformat()} already: periods must not overlap"
            )
        if ends_at <= marks.starts_at:
            raise Invalid(
                f"{tenant.name} was billed up to {marks.ends_at.isoformat()}: a period before that"
                " is closed; what came late is on the next invoice"
            )
    before = standing[0][1] if standing else _NOTHING
    marks = store.get_marks(tx)
    lines = store.collect_lines(tx, tenant.id, before=before, marks=marks, ends_at=ends_at)
    last_day = day - timedelta(days=1)
    tax = tax_on(store.list_taxes(tx), profile.jurisdiction, last_day)
    totals = add_up(lines, tax)
    number = store.lock_numbers(tx)
    invoice = Invoice(
        id=derived_id("invoice", number),
        number=number,
        kind=Kind.INVOICE,
        corrects=None,
        tenant_id=tenant.id,
        starts_at=starts_at,
        ends_at=ends_at,
        totals=totals,
        prepaid_nanos=totals.net - _owed(tx, tenant, totals.net),
        currency=profile.currency,
        unit_nanos=_unit(tx, profile.currency, last_day),
        issued_at=now,
        due_on=now.astimezone(zone(profile.time_zone)).date() + timedelta(days=profile.terms_days),
        state=State.ISSUED,
    )
    return invoice, lines, marks, profile


def issue(tx: Tx, tenant_id: TenantId, start: date, end: date, *, now: datetime) -> Invoice:
    """Issue the invoice of `[start, end)`; the same period again is the same invoice.

    Tax and rounding are posted, and what is due is paid from the wallet where it holds enough.

    Raises:
        Invalid: as `draft`, or the period is not over.
        NotFound: there is no such tenant.
    """
    tenant = tenants.get_tenant(tx, tenant_id)
    profile = profile_of(tx, tenant)
    starts_at, ends_at = (midnight(day, profile.time_zone) for day in (start, end))
    store.lock_numbers(tx)
    for id_, marks in store.list_standing(tx, tenant.id):
        if (marks.starts_at, marks.ends_at) == (starts_at, ends_at):
            return store.read_invoice(store.get_row(tx, id_=id_))
    if ends_at > now:
        raise Invalid(f"the period ends on {end}, which is to come: bill it when it is over")
    return _issue(tx, tenant, *draft(tx, tenant_id, start, end, now=now), now=now)


def issue_due(tx: Tx, tenant_id: TenantId, *, now: datetime) -> Invoice | None:
    """Issue what is due by now, if anything: the month before, or what is over the threshold.

    A month in which nothing was charged makes no invoice.
    """
    tenant = tenants.get_tenant(tx, tenant_id)
    if tenant.kind is TenantKind.HOUSE:
        return None  # it owes itself
    profile = profile_of(tx, tenant)
    today = now.astimezone(zone(profile.time_zone)).date()
    first, _ = month_of(month_of(today)[0] - timedelta(days=1))
    ends_at = midnight(month_of(today)[0], profile.time_zone)
    standing = store.list_standing(tx, tenant.id)
    last = standing[0][1].ends_at if standing else None
    if last is None or last < ends_at:
        starts_at = midnight(first, profile.time_zone)
        if last is not None:
            starts_at = max(starts_at, last)
        found = _draft(tx, tenant, profile, starts_at, ends_at, month_of(today)[0], now=now)
        if found[1]:
            return _issue(tx, tenant, *found, now=now)
    if profile.threshold is None:
        return None
    starts_at = max(last or ends_at, ends_at)
    if starts_at >= now:
        return None
    found = _draft(tx, tenant, profile, starts_at, now, today + timedelta(days=1), now=now)
    if found[0].totals.net < profile.threshold.nanos:
        return None
    return _issue(tx, tenant, *found, now=now)


def _issue(
    tx: Tx, tenant: Tenant, invoice: Invoice, lines: list[Line], marks: Marks, profile: Profile,
    *, now: datetime,
) -> Invoice:  # fmt: skip
    last_day = (invoice.ends_at - timedelta(microseconds=1)).astimezone(zone(profile.time_zone))
    tax = tax_on(store.list_taxes(tx), profile.jurisdiction, last_day.date())
    store.insert(tx, invoice, lines, marks=marks, profile=profile, tax=tax)
    _post(tx, invoice, profile.jurisdiction, now=now)
    log.info("invoice.issued", extra={"invoice": invoice.number, "tenant": tenant.id})
    invoice = _pay_from_wallet(tx, tenant, invoice, now=now)
    if profile.email:
        outgoing.add(tx, letter(invoice, profile), now=now)
    return invoice


def letter(invoice: Invoice, profile: Profile) -> Outgoing:
    """Return the e-mail that an invoice is sent with."""
    due = (
        f"{Money(invoice.payable_nanos)} are due by {invoice.due_on}. Please name {invoice.label}.\n"
        if invoice.state is State.ISSUED
        else "It is paid from your balance: nothing is due.\n"
    )
    return Outgoing(
        id=derived_id(invoice.id, "letter"), tenant_id=invoice.tenant_id, channel=Channel.EMAIL,
        target=profile.email, subject=f"Invoice {invoice.label}",
        body=f"To {profile.legal_name}\n\nInvoice {invoice.label} of"
        f" {Money(invoice.totals.total)} is attached. {due}",
        invoice_id=invoice.id,
    )  # fmt: skip


def dun_due(tx: Tx, tenant_id: TenantId, *, now: datetime) -> list[Step]:
    """Take what is due from the wallet where it suffices by now; then the steps of dunning."""
    tenant = tenants.get_tenant(tx, tenant_id)
    profile = profile_of(tx, tenant)
    for invoice, _ in dunning.list_unpaid(tx, tenant.id):
        due = invoice.totals.total - invoice.prepaid_nanos
        on_credit = invoice.prepaid_nanos != invoice.totals.net
        if not on_credit and dunning.funds(tx, tenant).nanos >= due:
            dunning.resume(tx, tenant, now=now)
            _pay_from_wallet(tx, tenant, invoice, now=now)
    today = now.astimezone(zone(profile.time_zone)).date()
    return dunning.dun(tx, tenant, profile, today=today, now=now)


def _post(
    tx: Tx, invoice: Invoice, jurisdiction: str, *, now: datetime, back: bool = False
) -> None:
    """Post tax and rounding to their accounts; `back` posts them the other way."""
    receivable = f"tenant:{invoice.tenant_id}:receivable"
    for what, nanos, code in (
        ("tax", invoice.totals.tax, f"house:tax:{jurisdiction}"),
        ("rounding", invoice.totals.rounding, "house:rounding"),
    ):
        if nanos:
            amount = -nanos if back else nanos
            name = derived_id(invoice.id, what, "back") if back else derived_id(invoice.id, what)
            _move(tx, name, receivable, code, amount, what, now=now)


def _move(
    tx: Tx, id_: UUID, debit: str, credit: str, nanos: int, reason: str, *, now: datetime
) -> None:
    """Move money from one account to another, or back where the amount is below nothing."""
    if nanos < 0:
        debit, credit, nanos = credit, debit, -nanos
    accounts = {
        code: ledger.open_account(tx, code, prepaid=False)
        if not code.endswith(":wallet")
        else ledger.get_account(tx, code)
        for code in sorted((debit, credit))
    }
    transfer = Transfer(
        id=id_, debit_account=accounts[debit].id, credit_account=accounts[credit].id,
        amount=Money(nanos), reason=reason, happened_at=now,
    )  # fmt: skip
    ledger.post(tx, transfer, now=now)


def _pay_from_wallet(tx: Tx, tenant: Tenant, invoice: Invoice, *, now: datetime) -> Invoice:
    """Pay what is due from the wallet, unless it is on credit or the wallet holds too little."""
    due = invoice.totals.total - invoice.prepaid_nanos
    wallet, *_ = ledger.lock(tx, tenant.wallet)
    on_credit = invoice.prepaid_nanos != invoice.totals.net
    if on_credit or wallet.balance.nanos - wallet.held.nanos < due:
        return invoice
    if due:
        receivable = f"tenant:{tenant.id}:receivable"
        _move(tx, derived_id(invoice.id, "due"), tenant.wallet, receivable, due, "invoice", now=now)
    store.add_event(tx, invoice.id, State.PAID, "from the wallet", now=now)
    return replace(invoice, state=State.PAID)


def pay(tx: Tx, number: int, amount: Money, *, reference: str, now: datetime) -> Invoice:
    """Note that an invoice was paid by hand; the same reference again changes nothing.

    What of it is usage on credit gives the credit line back.

    Raises:
        NotFound: there is no such invoice.
        Invalid: another amount than what is due.
        Conflict: it was voided, or paid by other means.
    """
    store.lock_numbers(tx)
    invoice = store.read_invoice(store.get_row(tx, number=number))
    tenant = tenants.get_tenant(tx, TenantId(invoice.tenant_id))
    if invoice.state is State.PAID and _paid_by(tx, invoice.id, reference):
        return invoice
    invoice.move(State.PAID)
    if amount.nanos != invoice.payable_nanos:
        raise Invalid(f"{invoice.label} is due with {Money(invoice.payable_nanos)}, not {amount}")
    on_credit = invoice.totals.net - invoice.prepaid_nanos
    rest = invoice.due_nanos - on_credit
    for what, nanos, code in (
        ("usage", amount.nanos - rest, tenant.wallet),  # and what makes it whole cents
        ("rest", rest, f"tenant:{tenant.id}:receivable"),
    ):
        if nanos:
            _move(tx, derived_id(invoice.id, "payment", what), "house:bank", code, nanos, "payment",
                  now=now)  # fmt: skip
    store.add_event(tx, invoice.id, State.PAID, reference, now=now)
    dunning.hold_to_it(tx, tenant, now=now)
    return replace(invoice, state=State.PAID)


def void(tx: Tx, number: int, *, why: str, now: datetime) -> Invoice:
    """Void the latest invoice of a tenant, before it is paid: its period is open again.

    Raises:
        NotFound: there is no such invoice.
        Conflict: it is paid or void already.
        Refused: a later one builds on it, or it is a credit note.
    """
    store.lock_numbers(tx)
    row = store.get_row(tx, number=number)
    invoice = store.read_invoice(row)
    invoice.move(State.VOID)
    standing = store.list_standing(tx, invoice.tenant_id)
    if invoice.kind is Kind.CREDIT_NOTE or standing[0][0] != invoice.id:
        raise Refused(
            f"{invoice.label} cannot be voided: only the latest invoice of a tenant can; correct it"
            " by a credit note"
        )
    if store.corrected_nanos(tx, invoice.id):
        raise Refused(f"{invoice.label} cannot be voided: a credit note corrects it")
    _post(tx, invoice, row["profile"]["jurisdiction"], now=now, back=True)
    store.add_event(tx, invoice.id, State.VOID, why, now=now)
    dunning.hold_to_it(tx, tenants.get_tenant(tx, TenantId(invoice.tenant_id)), now=now)
    return replace(invoice, state=State.VOID)


def correct(tx: Tx, number: int, amount: Money, *, why: str, id_: UUID, now: datetime) -> Invoice:
    """Credit a part of an invoice: a credit note with its tax, paid into the wallet at once.

    Args:
        tx: of the caller.
        number: of the invoice.
        amount: of its net that is given back.
        why: is on the note.
        id_: the caller's; the same one again makes no second note.
        now: when.

    Raises:
        NotFound: there is no such invoice.
        Invalid: more than is left of it, or the id was used for another note.
        Refused: it was voided, or is a credit note itself.
    """
    store.lock_numbers(tx)
    row = store.get_row(tx, number=number)
    corrected = store.read_invoice(row)
    known = store.list_invoices(tx, corrected.tenant_id, id_=id_)
    if known:
        note = store.read_invoice(known[0])
        if note.corrects != corrected.id or note.totals.net != -amount.nanos:
            raise Invalid(f"credit note {id_} was made before, with other contents")
        return note
    if corrected.state is State.VOID or corrected.kind is Kind.CREDIT_NOTE:
        raise Refused(
            f"{corrected.label} is {corrected.state} {corrected.kind}: nothing to correct"
        )
    left = corrected.totals.net + store.corrected_nanos(tx, corrected.id)
    if not 0 < amount.nanos <= left:
        raise Invalid(f"of {corrected.label} {Money(left)} are left to credit, not {amount}")
    tenant = tenants.get_tenant(tx, TenantId(corrected.tenant_id))
    profile = Profile(**row["profile"] | {"tenant_id": tenant.id, "threshold": None})
    line = Line(
        what="correction", sku="", pool="", tier="", model="", key="", quantity=0, rate_nanos=0,
        rate_per=1, amount_nanos=-amount.nanos, note=f"of {corrected.label}: {why}",
    )  # fmt: skip
    last_day = (corrected.ends_at - timedelta(microseconds=1)).astimezone(zone(profile.time_zone))
    tax = tax_on(store.list_taxes(tx), profile.jurisdiction, last_day.date())
    totals = add_up([line], tax)
    note = replace(
        corrected, id=id_, number=store.lock_numbers(tx), kind=Kind.CREDIT_NOTE,
        corrects=corrected.id, totals=totals, prepaid_nanos=0, issued_at=now,
        due_on=now.astimezone(UTC).date(), state=State.ISSUED,
    )  # fmt: skip
    marks = Marks(charge=0, credit=0, transfer=0)
    store.insert(tx, note, [line], marks=marks, profile=profile, tax=tax)
    _move(tx, derived_id(id_, "net"), tenant.revenue, tenant.wallet, amount.nanos, "credit_note",
          now=now)  # fmt: skip
    _post(tx, note, profile.jurisdiction, now=now)
    back = -(totals.tax + totals.rounding)
    receivable = f"tenant:{tenant.id}:receivable"
    if back:
        _move(tx, derived_id(id_, "rest"), receivable, tenant.wallet, back, "credit_note", now=now)
    store.add_event(tx, id_, State.PAID, "into the wallet", now=now)
    dunning.hold_to_it(tx, tenant, now=now)
    return replace(note, state=State.PAID)


def set_credit_line(tx: Tx, tenant_id: TenantId, line: Money, *, now: datetime) -> None:
    """Let a tenant use so much before it pays: postpaid, and still never more than that.

    Raises:
        NotFound: there is no such tenant.
        Unpaid: it is lowered by more than the wallet holds.
    """
    tenant = tenants.get_tenant(tx, tenant_id)
    code = f"tenant:{tenant.id}:credit_line"
    account = ledger.open_account(tx, code, prepaid=False)
    (account, _) = ledger.lock(tx, code, tenant.wallet)
    more = line.nanos + account.balance.nanos  # a line of 5 is a balance of -5
    if more:
        id_ = derived_id(code, account.debits_posted, account.credits_posted, line.nanos)
        _move(tx, id_, code, tenant.wallet, more, "credit_line", now=now)


def credit_line(tx: Tx, tenant: Tenant) -> Money:
    account = ledger.open_account(tx, f"tenant:{tenant.id}:credit_line", prepaid=False)
    return Money(-account.balance.nanos)


def _owed(tx: Tx, tenant: Tenant, net: int) -> int:
    """Return how much of the usage was on credit, and is not paid for yet."""
    line = credit_line(tx, tenant).nanos
    if line <= 0:
        return 0
    wallet = ledger.get_account(tx, tenant.wallet)
    used = max(line - wallet.balance.nanos, 0)
    # What is on invoices that are still due was not paid for either.
    on_others = sum(
        invoice.totals.net - invoice.prepaid_nanos
        for invoice in map(store.read_invoice, store.list_invoices(tx, tenant.id, limit=10_000))
        if invoice.state is State.ISSUED
    )
    return max(min(used - on_others, net), 0)


def _unit(tx: Tx, currency: str, day: date) -> int:
    """Raises Invalid: there is no rate for that day."""
    if currency == "USD":
        return NANOS
    found = store.find_exchange_rate(tx, currency, day)
    if found is None:
        raise Invalid(f"there is no exchange rate of {currency} for {day}: add it, with its source")
    return found


def _paid_by(tx: Tx, invoice_id: UUID, reference: str) -> bool:
    row = tx.execute(store.QUERIES["get_event"], {"id": invoice_id, "state": State.PAID}).fetchone()
    if row is None or row["detail"] != reference:
        raise Conflict("it was paid already, by other means")
    return True
