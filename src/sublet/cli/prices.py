"""`sublet price …`: the price book."""

from typing import Annotated, Literal

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.output import Column, instant, text, usd
from sublet.cli.tenants import tenant_id


def _per(value: object) -> str:
    return text(value).replace("_", " ")


PRICE = (
    Column("sku", "sku"),
    Column("price", "usd", usd, right=True),
    Column("per", "per", _per),
    Column("metered in", "unit", _per),
    Column("from", "valid_from", instant),
    Column("until", "valid_until", instant),
    Column("only for", "tenant_id", id=True),
)


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Prices: what each SKU costs from now on.",
        examples=("sublet price list", "sublet price set lease:cpu:on_demand 0.40 --per hour"),
    )
    root.add_typer(group, name="price")
    command(
        group, "list", examples=("sublet price list", "sublet price list --json")
    )(list_all)  # fmt: skip
    command(
        group, "set",
        examples=(
            "sublet price set lease:h200:interruptible 1.90 --per hour",
            "sublet price set lease:h200:on_demand 2.10 --per hour --tenant acme --from 2026-02-01T00:00Z",
            "sublet price set model:gemma-3-270m:output 0.15 --per million-tokens",
        ),
    )(set_price)  # fmt: skip


def list_all(session: Session) -> None:
    """List the prices that hold now."""
    with session.operator() as api:
        document = api.get("/v1/prices")
    session.show_items(document, PRICE)


def set_price(
    session: Session,
    sku: Annotated[str, typer.Argument(metavar="SKU", help="`sublet price list` shows them.")],
    amount_usd: Annotated[str, typer.Argument(metavar="AMOUNT_USD", help="Such as 2 or 0.15.")],
    *,
    per: Annotated[Literal["hour", "million-tokens"], typer.Option(help="For how much of it.")],
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="As this tenant's own rate; leases only.")
    ] = None,
    valid_from: Annotated[
        str | None,
        typer.Option("--from", metavar="INSTANT", help="From then on, such as 2026-02-01T00:00Z."),
    ] = None,
    valid_until: Annotated[
        str | None, typer.Option("--until", metavar="INSTANT", help="Until when a tenant's holds.")
    ] = None,
) -> None:
    """Set a price from now on. What was sold before keeps its own.

    A tenant's own rate comes before the list price while it is valid.
    """
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    body = {"usd": amount_usd, "per": per.replace("-", "_")}
    if valid_from is not None:
        body["valid_from"] = valid_from
    if valid_until is not None:
        body["valid_until"] = valid_until
    with session.operator() as api:
        if tenant is not None:
            body["tenant_id"] = tenant_id(api, tenant)
        document = api.put(f"/v1/prices/{part(sku)}", body)
    session.show(document, PRICE)
