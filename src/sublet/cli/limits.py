"""`sublet limit …`: how often, how much at once, and for how much money a tenant or key may ask."""

from typing import Annotated, Literal

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.output import Column, instant, print_json, usd
from sublet.cli.tenants import tenant_id

LIMIT = (
    Column("kind", "kind"),
    Column("amount", "amount", right=True),
    Column("of key", "key_id"),
    Column("set by", "set_by"),
    Column("spent", "spent_usd", usd, right=True),
    Column("held", "held_usd", usd, right=True),
    Column("left", "left_usd", usd, right=True),
    Column("returns", "returns_at", instant),
)

Kind = Annotated[
    Literal["requests_per_minute", "tokens_per_minute", "streams", "day", "month", "lifetime"],
    typer.Argument(
        metavar="KIND",
        help="requests_per_minute, tokens_per_minute, streams (at the same time); or a budget: day, month, lifetime.",
    ),
]
Tenant = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|ID",
        help="Whose (for the operator, who is not overruled); else the caller's own.",
    ),
]
Key = Annotated[
    str | None, typer.Option(metavar="ID", help="Of one key; else of all keys together.")
]


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Limits of model calls: rates, answers at the same time, and budgets in USD.",
        examples=("sublet limit set month 500 --tenant acme", "sublet limit list --tenant acme"),
    )
    root.add_typer(group, name="limit")
    command(
        group, "set",
        examples=(
            "sublet limit set month 500 --tenant acme",
            "sublet limit set day 5 --of-key 6f1d2c3b-8f9e-4f57-9a53-0b0f4a0f2c11",
            "sublet limit set streams 20 --tenant acme",
        ),
    )(set_one)  # fmt: skip
    command(
        group, "list", examples=("sublet limit list", "sublet limit list --tenant acme --json")
    )(list_all)  # fmt: skip
    command(
        group, "remove", examples=("sublet limit remove day", "sublet limit remove month --tenant acme")
    )(remove)  # fmt: skip


def set_one(
    session: Session,
    kind: Kind,
    amount: Annotated[
        str, typer.Argument(metavar="AMOUNT", help="Of a budget in USD; else a whole number.")
    ],
    *,
    tenant: Tenant = None,
    of_key: Key = None,
) -> None:
    """Set a limit. The operator's and the tenant's own both hold; a budget keeps what is spent."""
    body = {"kind": kind, "amount": amount} | ({} if of_key is None else {"key_id": of_key})
    if tenant is None:
        with session.tenant() as api:
            document = api.put("/v1/limits", body)
    else:
        with session.operator() as api:
            document = api.put(f"/v1/tenants/{tenant_id(api, tenant)}/limits", body)
    session.show(document, LIMIT)


def list_all(session: Session, *, tenant: Tenant = None) -> None:
    """List limits, and how budgets stand in their present period."""
    if tenant is None:
        with session.tenant() as api:
            document = api.get("/v1/limits")
    else:
        with session.operator() as api:
            document = api.get(f"/v1/tenants/{tenant_id(api, tenant)}/limits")
    session.show_items(document, LIMIT)


def remove(session: Session, kind: Kind, *, tenant: Tenant = None, of_key: Key = None) -> None:
    """Take a limit back, with what a budget has spent."""
    from sublet.cli.client import part  # noqa: PLC0415

    query = f"?kind={kind}" + ("" if of_key is None else f"&key_id={part(of_key)}")
    if tenant is None:
        with session.tenant() as api:
            api.delete(f"/v1/limits{query}")
    else:
        with session.operator() as api:
            api.delete(f"/v1/tenants/{tenant_id(api, tenant)}/limits{query}")
    if session.json:
        print_json({"kind": kind, "removed": True})
    else:
        print(f"removed {kind}")
