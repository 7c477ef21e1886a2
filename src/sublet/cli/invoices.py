"""`sublet invoice …`: what was used, as documents."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.files import whole
from sublet.cli.output import Column, Document, print_table, text, usd
from sublet.cli.tenants import tenant_id

INVOICE: Final = (
    Column("number", "number"),
    Column("kind", "kind"),
    Column("state", "state"),
    Column(
        "billed to",
        "buyer",
        lambda value: text(value.get("legal_name")) if isinstance(value, dict) else "",
    ),
    Column("from", "from"),
    Column("to", "to"),
    Column("total", "total_usd", usd, right=True),
    Column("due", "due_usd", usd, right=True),
    Column("due on", "due_on"),
)
LINE: Final = (
    Column("for", "description"),
    Column("quantity", "quantity", right=True),
    Column("unit", "unit"),
    Column("price", "unit_price_usd", usd, right=True),
    Column("amount", "amount_usd", usd, right=True),
)
_DRAFT: Final = (
    Column("billed to", "legal_name"),
    Column("lines", "lines"),
    Column("net", "net_usd", usd),
    Column("tax", "tax_usd", usd),
    Column("total", "total_usd", usd),
)
_RUN: Final = (
    Column(
        "issued",
        "issued",
        lambda value: ", ".join(value) if isinstance(value, list) and value else "nothing was due",
    ),
)
Number = Annotated[str, typer.Argument(metavar="NUMBER", help="Such as INV-000012, or 12.")]
Tenant = Annotated[str, typer.Option(metavar="TENANT", help="Name or id.")]
AsOperator = Annotated[
    bool, typer.Option("--as-operator", help="With the operator's key: everybody's invoices.")
]
From = Annotated[str, typer.Option("--from", metavar="DAY", help="First day, where the tenant is.")]
To = Annotated[str, typer.Option("--to", metavar="DAY", help="The day after the last.")]


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Invoices: what was used, as documents that never change.",
        examples=("sublet invoice list", "sublet invoice run"),
    )
    root.add_typer(group, name="invoice")
    command(group, "list", examples=("sublet invoice list",))(list_all)
    command(
        group, "show",
        examples=("sublet invoice show INV-000012", "sublet invoice show 12 --pdf invoice.pdf",
            "sublet invoice show 12 --ubl invoice.xml",
        ),
    )(show)  # fmt: skip
    command(
        group, "draft",
        examples=("sublet invoice draft --tenant acme --from 2026-10-01 --to 2026-11-01",),
    )(draft)  # fmt: skip
    command(
        group, "issue",
        examples=("sublet invoice issue --tenant acme --from 2026-10-01 --to 2026-11-01",),
    )(issue)  # fmt: skip
    command(group, "run", examples=("sublet invoice run",))(run)
    command(
        group, "pay", examples=('sublet invoice pay 12 190.40 --reference "transfer 4711"',)
    )(pay)  # fmt: skip
    command(group, "void", examples=('sublet invoice void 12 --why "wrong address"',))(void)
    command(
        group, "credit", examples=('sublet invoice credit 12 5.00 --why "slow on 3 October"',)
    )(credit)  # fmt: skip
    command(
        group, "address",
        examples=(
            'sublet invoice address acme --legal-name "Acme Ltd" --jurisdiction DE --terms 14',
        ),
    )(address)  # fmt: skip
    command(
        group, "credit-line", examples=("sublet invoice credit-line acme 5000",)
    )(credit_line)  # fmt: skip
    command(
        group, "tax", examples=("sublet invoice tax DE VAT 19 --from 2026-01-01",)
    )(tax)  # fmt: skip
    command(
        group, "dunning",
        examples=(
            "sublet invoice dunning", "sublet invoice dunning 3=remind 14=remind 30=suspend",
            "sublet invoice dunning none",
        ),
    )(set_dunning)  # fmt: skip
    command(
        group, "rate", examples=("sublet invoice rate EUR 0.92 --day 2026-10-31 --source ECB",)
    )(rate)  # fmt: skip


def list_all(session: Session, *, as_operator: AsOperator = False) -> None:
    """List invoices, newest first."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.get("/v1/invoices")
    session.show_items(document, INVOICE)


def show(
    session: Session,
    number: Number,
    *,
    pdf: Annotated[
        Path | None, typer.Option("--pdf", metavar="FILE", help="Write it as PDF as well.")
    ] = None,
    ubl: Annotated[
        Path | None,
        typer.Option("--ubl", metavar="FILE", help="Write it as an e-invoice (Peppol) as well."),
    ] = None,
    as_operator: AsOperator = False,
) -> None:
    """Show an invoice with its lines."""
    with session.tenant(as_operator=as_operator) as api:
        document = api.get(f"/v1/invoices/{_number(number)}")
        for form, name, wanted in (("pdf", "PDF", pdf), ("ubl", "e-invoice", ubl)):
            if wanted is None:
                continue
            path = f"/v1/invoices/{_number(number)}/{form}"
            with whole(wanted) as file, api.stream("GET", path) as response:
                for piece in response.iter_bytes():
                    file.write(piece)
            session.say(f"the {name} is in {wanted}")
    _show(session, document)


def draft(session: Session, *, tenant: Tenant, start: From, end: To) -> None:
    """Show what an invoice would say, were it issued now; nothing is kept."""
    with session.operator() as api:
        query = {"tenant_id": tenant_id(api, tenant), "from": start, "to": end}
        document = api.get("/v1/invoices/draft", **query)
    session.show(document, _DRAFT)


def issue(session: Session, *, tenant: Tenant, start: From, end: To) -> None:
    """Issue a tenant's invoice; the same period again is the same invoice."""
    with session.operator() as api:
        body = {"tenant_id": tenant_id(api, tenant), "from": start, "to": end}
        document = api.post("/v1/invoices", body)
    _show(session, document)


def run(session: Session) -> None:
    """Issue what is due by now: the month before, and what is over a tenant's threshold.

    Made to be run every day, by cron or a timer: again on the same day it issues nothing.
    """
    with session.operator() as api:
        document = api.post("/v1/invoices/run", {})
    session.show(document, _RUN)


def pay(
    session: Session,
    number: Number,
    amount: Annotated[str, typer.Argument(metavar="USD", help="What is due.")],
    *,
    reference: Annotated[str, typer.Option(metavar="TEXT", help="Of the payment.")],
) -> None:
    """Note that an invoice was paid by hand, such as by bank transfer."""
    body = {"amount_usd": amount, "reference": reference}
    with session.operator() as api:
        _show(session, api.post(f"/v1/invoices/{_number(number)}/payments", body))


def void(
    session: Session,
    number: Number,
    *,
    why: Annotated[str, typer.Option(metavar="TEXT", help="What was wrong.")],
) -> None:
    """Void a tenant's latest invoice before it is paid; its period is open again."""
    with session.operator() as api:
        _show(session, api.post(f"/v1/invoices/{_number(number)}/void", {"why": why}))


def credit(
    session: Session,
    number: Number,
    amount: Annotated[str, typer.Argument(metavar="USD", help="Of its net amount.")],
    *,
    why: Annotated[str, typer.Option(metavar="TEXT", help="It is on the note.")],
) -> None:
    """Credit a part of an invoice by a credit note, with its tax, into the wallet."""
    body = {"amount_usd": amount, "why": why}
    with session.operator() as api:
        _show(session, api.post(f"/v1/invoices/{_number(number)}/credit-notes", body))


def address(
    session: Session,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Name or id.")],
    *,
    legal_name: Annotated[str, typer.Option(metavar="NAME", help="Whom to address.")],
    address: Annotated[str, typer.Option(metavar="TEXT", help="Lines apart by a comma.")] = "",
    tax_id: Annotated[str, typer.Option(metavar="TEXT", help="Of the tenant.")] = "",
    jurisdiction: Annotated[
        str, typer.Option(metavar="NAME", help="Whose tax is charged; none without it.")
    ] = "",
    currency: Annotated[
        str, typer.Option(metavar="CODE", help="Told beside USD, such as EUR.")
    ] = "USD",
    email: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Of who pays; invoices go there.")
    ] = "",
    terms: Annotated[int, typer.Option(metavar="DAYS", help="From issue to due.")] = 0,
    time_zone: Annotated[
        str, typer.Option(metavar="NAME", help="Where days begin, such as Europe/Paris.")
    ] = "UTC",
    threshold: Annotated[
        str | None, typer.Option(metavar="USD", help="Bill as soon as so much was used.")
    ] = None,
    country: Annotated[str, typer.Option(metavar="CODE", help="For e-invoices, such as GB.")] = "",
    endpoint: Annotated[
        str,
        typer.Option(metavar="SCHEME:ID", help="Its address for e-invoices: 0088:7300010000001."),
    ] = "",
    reference: Annotated[
        str, typer.Option(metavar="TEXT", help="That it wants named on e-invoices.")
    ] = "",
) -> None:
    """Say whom a tenant's invoices are addressed to, and how."""
    body: dict[str, Any] = {
        "legal_name": legal_name, "address": "\n".join(p.strip() for p in address.split(",")),
        "tax_id": tax_id, "jurisdiction": jurisdiction, "currency": currency, "email": email,
        "terms_days": terms, "time_zone": time_zone, "threshold_usd": threshold,
        "country": country, "endpoint": endpoint, "reference": reference,
    }  # fmt: skip
    with session.operator() as api:
        document = api.put(f"/v1/tenants/{tenant_id(api, tenant)}/billing", body)
    session.show(document, [Column(name.replace("_", " "), name) for name in body])


def credit_line(
    session: Session,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Name or id.")],
    amount: Annotated[str, typer.Argument(metavar="USD", help="0 ends it.")],
) -> None:
    """Let a tenant use so much before it pays. It can still never use more than that."""
    with session.operator() as api:
        path = f"/v1/tenants/{tenant_id(api, tenant)}/credit-line"
        document = api.put(path, {"amount_usd": amount})
    session.show(document, [Column("credit line", "credit_line_usd", usd)])


def tax(
    session: Session,
    jurisdiction: Annotated[str, typer.Argument(metavar="NAME", help="Such as DE.")],
    name: Annotated[str, typer.Argument(metavar="TAX", help="Such as VAT.")],
    percent: Annotated[str, typer.Argument(metavar="PERCENT", help="Such as 19.")],
    *,
    start: Annotated[str, typer.Option("--from", metavar="DAY", help="It holds from here.")],
    end: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="The day after its last.")
    ] = None,
) -> None:
    """Add a tax rate; rates of one jurisdiction must not overlap."""
    body = {
        "jurisdiction": jurisdiction, "name": name, "percent": percent, "valid_from": start,
        "valid_until": end,
    }  # fmt: skip
    with session.operator() as api:
        document = api.post("/v1/taxes", body)
    session.show(document, [Column(key.replace("_", " "), key) for key in body])


def rate(
    session: Session,
    currency: Annotated[str, typer.Argument(metavar="CODE", help="Such as EUR.")],
    per_usd: Annotated[str, typer.Argument(metavar="AMOUNT", help="What one USD was.")],
    *,
    day: Annotated[str, typer.Option(metavar="DAY", help="On which day.")],
    source: Annotated[str, typer.Option(metavar="TEXT", help="Who says so.")],
) -> None:
    """Keep an exchange rate of a day."""
    body = {"currency": currency, "per_usd": per_usd, "day": day, "source": source}
    with session.operator() as api:
        document = api.post("/v1/exchange-rates", body)
    session.show(document, [Column(key.replace("_", " "), key) for key in body])


def set_dunning(
    session: Session,
    steps: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DAYS=ACTION...", help="After it was due: remind, suspend. `none`: nothing."
        ),
    ] = None,
) -> None:
    """Say what follows when an invoice is not paid, or show it.

    `sublet invoice run` takes the steps. A suspended tenant can read and pay, and buys nothing more.
    """
    with session.operator() as api:
        if steps is None:
            document = api.get("/v1/dunning")
        else:
            wanted = [] if steps == ["none"] else [_step(said) for said in steps]
            document = api.put("/v1/dunning", {"steps": wanted})
    found = sorted(document["steps"], key=lambda step: step["days"])
    session.show_items(
        {"items": found}, (Column("days after it was due", "days"), Column("then", "action"))
    )


def _step(said: str) -> dict[str, Any]:
    days, given, action = said.partition("=")
    if not (given and days.isascii() and days.isdigit() and len(days) < 4):
        raise typer.BadParameter(f"{said[:40]!r} is no DAYS=ACTION such as 30=suspend")
    return {"days": int(days), "action": action}


def _number(said: str) -> int:
    digits = said.rpartition("-")[2]
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise typer.BadParameter(f"{said[:40]!r} is no number such as INV-000012 or 12")
    return int(digits)


def _show(session: Session, document: Document) -> None:
    def lines() -> None:
        print()
        print_table(document.get("lines") or [], LINE)

    session.show(document, INVOICE, more=lines)
