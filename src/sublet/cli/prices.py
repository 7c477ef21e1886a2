"""`sublet price …`: the price book."""

from typing import Annotated, Literal

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.output import Column, text, usd


def _per(value: object) -> str:
    return text(value).replace("_", " ")


PRICE = (
    Column("sku", "sku"),
    Column("price", "usd", usd, right=True),
    Column("per", "per", _per),
    Column("metered in", "unit", _per),
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
) -> None:
    """Set a price from now on. What was sold before keeps its own."""
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    body = {"usd": amount_usd, "per": per.replace("-", "_")}
    with session.operator() as api:
        document = api.put(f"/v1/prices/{part(sku)}", body)
    session.show(document, PRICE)
