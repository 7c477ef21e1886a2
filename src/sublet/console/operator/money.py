"""Money: from a total to the invoice, the charge, the request and the movement in the ledger."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from starlette.responses import Response

from sublet.console import table
from sublet.console.table import Column, Filter, Listing
from sublet.console.view import link
from sublet.console.visit import Visit
from sublet.core.db import Tx, load_queries
from sublet.core.errors import Invalid, NotFound
from sublet.core.ids import new_id
from sublet.market.price import Tier

QUERIES: Final = load_queries("sublet.console")
_KINDS: Final = [("customer", "customers"), ("house", "the house")]
_PRODUCTS: Final = [("model", "models"), *((one.value, one.replace("_", " ")) for one in Tier)]

TENANTS: Final = Listing(
    name="tenants",
    title="Tenants",
    query=QUERIES["tenants"],
    columns=(
        Column(key="name", title="Tenant", href=lambda row: link(f"/tenants/{row['id']}")),
        Column(key="kind", title="Kind"),
        Column(key="balance_usd", title="Wallet", kind="usd"),
        Column(key="held_usd", title="Held", kind="usd"),
        Column(key="month_usd", title="Charged this month", kind="usd",
               href=lambda row: link("/charges", tenant=row["id"])),
        Column(key="live_leases", title="Live leases", kind="number",
               href=lambda row: link("/leases", q=row["name"])),
        Column(key="created_at", title="Since", kind="time"),
    ),
    order="-month_usd",
    tie="id",
    search=("name", "id"),
    search_hint="Name or id",
)  # fmt: skip
CHARGES: Final = Listing(
    name="charges",
    title="Charges",
    query=QUERIES["charges"],
    columns=(
        Column(key="happened_at", title="When", kind="time", sorts=False,
               href=lambda row: link(f"/charges/{row['usage_id']}")),
        Column(key="tenant", title="Tenant", sorts=False,
               href=lambda row: link(f"/tenants/{row['tenant_id']}")),
        Column(key="product", title="Product", kind="words", sorts=False),
        Column(key="what", title="Model or pool", sorts=False),
        Column(key="quantity", title="Tokens or GPU-seconds", kind="number", sorts=False),
        Column(key="outcome", title="Outcome", kind="words", sorts=False),
        Column(key="usd", title="USD", kind="usd", sorts=False),
        Column(key="record", title="No.", kind="number"),
    ),
    order="-record",
    tie="record",
    when_empty="Nothing was charged that fits these filters.",
)  # fmt: skip
INVOICES: Final = Listing(
    name="invoices",
    title="Invoices",
    query=QUERIES["invoices"],
    columns=(
        Column(key="number", title="No.", kind="number",
               href=lambda row: link(f"/invoices/{row['number']}")),
        Column(key="kind", title="Kind", kind="words"),
        Column(key="tenant", title="Tenant",
               href=lambda row: link(f"/tenants/{row['tenant_id']}")),
        Column(key="starts_at", title="From", kind="time"),
        Column(key="ends_at", title="To", kind="time"),
        Column(key="usd", title="Total, USD", kind="usd"),
        Column(key="due_on", title="Due on"),
        Column(key="state", title="State", kind="state"),
    ),
    order="-number",
    tie="number",
    search=("tenant", "number"),
    search_hint="Tenant or number",
    when_empty="No invoice fits these filters. sublet invoice run issues what is due.",
)  # fmt: skip
ACCOUNTS: Final = Listing(
    name="accounts",
    title="Accounts of the ledger",
    query=QUERIES["accounts"],
    columns=(
        Column(key="code", title="Account", href=lambda row: link(f"/ledger/{row['id']}")),
        Column(key="tenant", title="Tenant"),
        Column(key="debits_usd", title="Debits", kind="usd"),
        Column(key="credits_usd", title="Credits", kind="usd"),
        Column(key="pending_usd", title="Pending", kind="usd"),
        Column(key="balance_usd", title="Credits less debits", kind="usd"),
    ),
    order="code",
    tie="id",
    search=("code", "tenant"),
    search_hint="Account or tenant",
)  # fmt: skip
TRANSFERS: Final = Listing(
    name="transfers",
    title="Movements",
    query=QUERIES["transfers"],
    columns=(
        Column(key="sequence", title="No.", kind="number"),
        Column(key="happened_at", title="When", kind="time", sorts=False),
        Column(key="kind", title="Kind", sorts=False),
        Column(key="reason", title="For", sorts=False,
               href=lambda row: link("/charges", transfer=row["id"])),
        Column(key="other", title="Other account", sorts=False),
        Column(key="usd", title="USD", kind="usd", sorts=False),
    ),
    order="-sequence",
    tie="sequence",
)  # fmt: skip


async def show(visit: Visit) -> Response:
    """Show what was charged by day, the auditor's last word, and where to look further."""
    now = visit.site.ground.clock.now()
    since = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since -= timedelta(days=29)

    def load(tx: Tx) -> list[dict[str, Any]]:
        return tx.execute(QUERIES["charged_by_day"], {"since": since}).fetchall()

    rows = await visit.remembered("charged_by_day", 10.0, load)
    audited = await visit.db(lambda tx: tx.execute(QUERIES["last_audit"]).fetchone())
    days = [since + timedelta(days=day) for day in range(30)]
    found = {(row["day"], row["product"]): row["usd"] for row in rows}
    products = [name for name, _ in _PRODUCTS if any(key[1] == name for key in found)]
    chart = {
        "kind": "bars", "unit": "usd", "labels": [f"{day:%d %b}" for day in days],
        "series": [
            {"name": dict(_PRODUCTS)[name], "key": name,
             "values": [round(found.get((day, name), 0.0), 6) for day in days]}
            for name in products
        ],
    }  # fmt: skip
    return visit.page(
        "operator/money.html", title="Money", chart=chart, audited=audited,
        total=sum(row["usd"] for row in rows),
    )  # fmt: skip


async def show_tenants(visit: Visit) -> Response:
    filters = (Filter(key="kind", title="Kind", options=_KINDS),)
    month = visit.site.ground.clock.now().astimezone(UTC)
    month = month.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return await _listed(visit, TENANTS, "Tenants", filters, {"month": month},
                         lead="Who buys here, and what is in their wallets.")  # fmt: skip


async def show_charges(visit: Visit) -> Response:
    filters = (
        Filter(key="product", title="Product", options=_PRODUCTS),
        Filter(key="what", title="", options=()),
        Filter(key="tenant", title="", options=(), where="tenant_id::text = %(value)s"),
        Filter(key="lease", title="", options=(), where="lease_id::text = %(value)s"),
        Filter(key="transfer", title="", options=(), where="transfer_id::text = %(value)s"),
        Filter(key="since", title="", options=(), where="happened_at >= %(value)s::timestamptz"),
        Filter(key="until", title="", options=(), where="happened_at < %(value)s::timestamptz"),
    )
    for name in ("since", "until"):
        _check_instant(name, visit.asked(name))
    return await _listed(
        visit, CHARGES, "Charges", filters, {},
        lead="Every charge, newest first: one for each request and each minute of a lease.",
    )  # fmt: skip


def _check_instant(name: str, text: str) -> None:
    try:
        datetime.fromisoformat(text or "2000-01-01")
    except ValueError:
        raise Invalid(f"{name}: must be an instant such as 2026-01-31T12:00:00+00:00") from None


async def show_charge(visit: Visit) -> Response:
    """Show one charge: what was used, at which prices, and the money that moved for it."""
    try:
        id_ = UUID(visit.part("usage_id"))
    except ValueError:
        raise NotFound("there is no such charge") from None

    def load(tx: Tx) -> dict[str, Any]:
        charge = tx.execute(QUERIES["get_charge"], {"id": id_}).fetchone()
        if charge is None:
            raise NotFound(f"there is no charge {id_}")
        lines = tx.execute(QUERIES["charge_lines"], {"id": id_}).fetchall()
        moved = tx.execute(QUERIES["get_transfer_of"], {"id": charge["transfer_id"]}).fetchone()
        return {"charge": charge, "lines": lines, "moved": moved}

    found = await visit.db(load)
    return visit.page("operator/charge.html", title="A charge", **found)


async def show_invoices(visit: Visit) -> Response:
    states = [(name, name) for name in ("issued", "overdue", "paid", "void")]
    filters = (Filter(key="state", title="State", options=states),)
    today = visit.site.ground.clock.now().date()
    return await _listed(visit, INVOICES, "Invoices", filters, {"today": today},
                         lead="What was billed, and what is still to be paid.")  # fmt: skip


async def show_invoice(visit: Visit) -> Response:
    """Show an invoice; each of its lines leads to the charges that it is the sum of."""
    number = visit.number("number")
    invoice = await visit.api.get(f"/v1/invoices/{number}")

    def load(tx: Tx) -> dict[str, Any] | None:
        return tx.execute(QUERIES["period_of_invoice"], {"number": number}).fetchone()

    return visit.page(
        "invoice.html", title=invoice["number"], invoice=invoice, number=number,
        period=await visit.db(load),
    )  # fmt: skip


async def show_pdf(visit: Visit) -> Response:
    pdf = await visit.api.read(f"/v1/invoices/{visit.number('number')}/pdf")
    headers = {"content-disposition": f'inline; filename="invoice-{visit.part("number")}.pdf"'}
    return Response(pdf, media_type="application/pdf", headers=headers)


async def pay_invoice(visit: Visit) -> Response:
    """Note that an invoice was paid, by the reference of the payment."""
    number = visit.number("number")
    path = f"/v1/invoices/{number}"
    before = await visit.api.get(path)
    body = {"amount_usd": before["due_usd"], "reference": visit.must("reference")}
    after = await visit.api.post(f"{path}/payments", body)
    visit.note(before={"state": before["state"]}, after={"state": after["state"]})
    return visit.go_to(f"/invoices/{number}", "Noted.")


async def show_ledger(visit: Visit) -> Response:
    return await _listed(
        visit, ACCOUNTS, "Ledger", (), {},
        lead="Every account; what is debited to one is credited to another, so all add up to nothing.",
    )  # fmt: skip


async def show_account(visit: Visit) -> Response:
    if not visit.part("account").isdigit():
        raise NotFound("there is no such account")
    id_ = visit.number("account")

    def load(tx: Tx) -> dict[str, Any] | None:
        return tx.execute(QUERIES["get_account"], {"id": id_}).fetchone()

    account = await visit.db(load)
    if account is None:
        raise NotFound(f"there is no account {id_}")
    return await _listed(
        visit, TRANSFERS, str(account["code"]), (), {"account": id_},
        lead=f"What moved on this account; its balance is {account['balance_usd']:,.9f} USD.",
    )  # fmt: skip


async def show_tenant(visit: Visit) -> Response:
    id_ = visit.part("tenant_id")
    tenant = await visit.api.get(f"/v1/tenants/{id_}")
    wallet = await visit.api.get(f"/v1/tenants/{id_}/wallet")
    return visit.page("operator/tenant.html", title=tenant["name"], tenant=tenant, wallet=wallet,
                      payment=new_id())  # fmt: skip


async def credit(visit: Visit) -> Response:
    """Credit a wallet with money that arrived; sent twice, once."""
    id_ = visit.part("tenant_id")
    before = await visit.api.get(f"/v1/tenants/{id_}/wallet")
    body = {"amount_usd": visit.must("amount_usd"), "id": visit.must("payment")}
    after = await visit.api.post(f"/v1/tenants/{id_}/credits", body)
    visit.note(before=before, after=after)
    return visit.go_to(f"/tenants/{id_}", f"Credited {body['amount_usd']} USD.")


async def create_tenant(visit: Visit) -> Response:
    made = await visit.api.post("/v1/tenants", {"name": visit.must("name")})
    visit.note(subject=made["name"], after=made)
    return visit.go_to(f"/tenants/{made['id']}", "Created. It has no money yet.")


async def run_audit(visit: Visit) -> Response:
    """Run the auditor over all records; what it found is kept on record."""
    found = await visit.api.get("/v1/audit")
    visit.note(after=found, subject="the records")
    count = len(found["differences"])
    said = "The auditor found no difference." if not count else f"{count} differences were found."
    return visit.go_to("/money", said)


async def _listed(
    visit: Visit, listing: Listing, title: str, filters: tuple[Filter, ...],
    parameters: dict[str, Any], *, lead: str,
) -> Response:  # fmt: skip
    shown = await table.show(visit, listing, filters=filters, parameters=parameters)
    if isinstance(shown, Response):
        return shown
    return visit.page("operator/listing.html", title=title, lead=lead, listing=shown)
