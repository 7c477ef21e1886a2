"""What follows when an invoice is not paid: reminders, then a suspension, by the operator's table.

A suspended tenant keeps everything and can read and pay, but buys nothing more: what its wallet does
not hold for what already runs is set aside in an account of its own, `tenant:<id>:suspended`. So
nothing new can be held, wherever it is asked for, and its leases end where their money does, with
their notice. Once what is overdue is paid, the money comes back.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from sublet.core.db import Tx, one
from sublet.core.errors import Invalid
from sublet.core.ids import derived_id
from sublet.core.money import Money
from sublet.invoices import outgoing
from sublet.invoices.invoice import Invoice, Profile
from sublet.invoices.outgoing import Channel, Outgoing
from sublet.invoices.store import QUERIES, get_row, read_invoice
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.tenants.tenant import Tenant

log = logging.getLogger(__name__)


class Action(StrEnum):
    REMIND = "remind"
    SUSPEND = "suspend"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    days: int  # after it was due
    action: Action


def set_steps(tx: Tx, steps: Sequence[Step]) -> None:
    """Put another table in the place of the one there is; none ends all dunning.

    Raises:
        Invalid: two steps of one day.
    """
    if len({step.days for step in steps}) < len(steps):
        raise Invalid("steps: there are two of one day")
    tx.execute(QUERIES["delete_dunning_steps"])
    for step in steps:
        row = {"days": step.days, "action": step.action}
        tx.execute(QUERIES["insert_dunning_step"], row)


def list_steps(tx: Tx) -> list[Step]:
    return [
        Step(days=row["days"], action=Action(row["action"]))
        for row in tx.execute(QUERIES["list_dunning_steps"])
    ]


def list_unpaid(tx: Tx, tenant_id: UUID) -> list[tuple[Invoice, set[int]]]:
    """Return invoices that are due, the oldest first, and the days of the steps that were taken."""
    return [
        (read_invoice(get_row(tx, id_=row["id"])), set(row["done"] or ()))
        for row in tx.execute(QUERIES["list_unpaid"], {"tenant_id": tenant_id}).fetchall()
    ]


def dun(tx: Tx, tenant: Tenant, profile: Profile, *, today: date, now: datetime) -> list[Step]:
    """Take the steps that are due for a tenant's unpaid invoices, each once; return them."""
    steps, taken = list_steps(tx), list[Step]()
    for invoice, done in list_unpaid(tx, tenant.id):
        late = (today - invoice.due_on).days
        due = [step for step in steps if step.days <= late and step.days not in done]
        for step in due:
            row = {"invoice_id": invoice.id, "days": step.days, "action": step.action, "now": now}
            if one(tx, QUERIES["insert_dunning_event"], row) is None:
                continue
            taken.append(step)
            log.info(
                "invoice.dunned", extra={"invoice": invoice.number, "action": str(step.action)}
            )
        if due and profile.email:  # after an outage several steps are due at once: one letter
            outgoing.add(tx, _letter(invoice, tenant, profile, due[-1]), now=now)
    hold_to_it(tx, tenant, now=now)
    return taken


def hold_to_it(tx: Tx, tenant: Tenant, *, now: datetime) -> None:
    """Suspend a tenant while an invoice is due that led to it, and no longer.

    Called after whatever may change that, or put money into its wallet.
    """
    unpaid = [row["id"] for row in tx.execute(QUERIES["list_unpaid"], {"tenant_id": tenant.id})]
    row = one(tx, QUERIES["has_been_suspended_for"], {"ids": unpaid})
    if row is not None and row["found"]:
        tx.execute(QUERIES["insert_suspension"], {"tenant_id": tenant.id, "now": now})
        _set_aside(tx, tenant, now=now)
    else:
        resume(tx, tenant, now=now)


def _set_aside(tx: Tx, tenant: Tenant, *, now: datetime) -> None:
    """Take what the wallet does not hold out of it, until the tenant is no longer suspended."""
    code = f"tenant:{tenant.id}:suspended"
    ledger.open_account(tx, code, prepaid=False)
    aside, wallet = ledger.lock(tx, code, tenant.wallet)
    free = wallet.available.nanos
    if free > 0:
        id_ = derived_id(code, aside.debits_posted, aside.credits_posted, "in")
        transfer = Transfer(
            id=id_, debit_account=wallet.id, credit_account=aside.id, amount=Money(free),
            reason="suspension", happened_at=now,
        )  # fmt: skip
        ledger.post(tx, transfer, now=now)


def resume(tx: Tx, tenant: Tenant, *, now: datetime) -> None:
    """Give back what was set aside."""
    if one(tx, QUERIES["delete_suspension"], {"tenant_id": tenant.id}) is None:
        return
    code = f"tenant:{tenant.id}:suspended"
    aside, wallet = ledger.lock(tx, code, tenant.wallet)
    if aside.balance.nanos > 0:
        id_ = derived_id(code, aside.debits_posted, aside.credits_posted, "out")
        transfer = Transfer(
            id=id_, debit_account=aside.id, credit_account=wallet.id, amount=aside.balance,
            reason="suspension", happened_at=now,
        )  # fmt: skip
        ledger.post(tx, transfer, now=now)
    log.info("tenant.resumed", extra={"tenant": tenant.id})


def is_suspended(tx: Tx, tenant: Tenant) -> bool:
    return one(tx, QUERIES["get_suspension"], {"tenant_id": tenant.id}) is not None


def funds(tx: Tx, tenant: Tenant) -> Money:
    """Return what a tenant could pay with: what its wallet does not hold, and what is set aside."""
    wallet = ledger.get_account(tx, tenant.wallet)
    if not is_suspended(tx, tenant):
        return wallet.available
    aside = ledger.get_account(tx, f"tenant:{tenant.id}:suspended")
    return Money(wallet.available.nanos + aside.balance.nanos)


def _letter(invoice: Invoice, tenant: Tenant, profile: Profile, step: Step) -> Outgoing:
    due = f"{Money(invoice.payable_nanos)}"
    text = f"{invoice.label} was due on {invoice.due_on} and is not paid: {due} are open.\n\n"
    if step.action is Action.SUSPEND:
        text += (
            "Until it is paid nothing more can be bought, and leases end where they are paid to. All"
            " that you keep with us stays, and can be read.\n"
        )
        subject = f"Suspended: {invoice.label} is not paid"
    else:
        subject = f"Reminder: {invoice.label} is not paid"
    return Outgoing(
        id=derived_id(invoice.id, "dunning", step.days), tenant_id=tenant.id,
        channel=Channel.EMAIL, target=profile.email, subject=subject,
        body=f"To {profile.legal_name}\n\n{text}\nThe invoice is attached.\n",
        invoice_id=invoice.id,
    )  # fmt: skip
