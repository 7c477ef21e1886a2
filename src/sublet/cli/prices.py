"""`sublet price …`: the price book."""

from typing import Annotated, Literal

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import ExitCode, Failure
from sublet.cli.output import Column, Document, instant, span, text, usd
from sublet.cli.parsing import seconds
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


def _exceptions(value: object) -> str:
    items = value if isinstance(value, list) else []
    return "; ".join(f"{text(item['sku'])}: {text(item['name'])}" for item in items)


def _steps(value: object) -> str:
    items = value if isinstance(value, list) else []
    listed = [f"{span(item['notice_seconds'])} {text(item['percent'])} %" for item in items]
    return ", ".join(listed) or "every notice costs the same"


NOTICES = (Column("pool", "pool"), Column("from a notice of", "steps", _steps))
FLOOR = (
    Column("pool", "pool"),
    Column("floor", "floor_usd", usd),
    Column("marginal cost", "marginal_usd", usd),
    Column("full cost", "full_usd", usd),
    Column("capital in it", "capital_share"),
    Column("let pass below it", "exceptions", _exceptions),
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
    command(
        group, "floor",
        examples=(
            "sublet price floor h200",
            "sublet price floor h200 --watts 1000 --pue 1.2 --kwh 0.06 --wear 0.05 --support 0.1",
            'sublet price floor h200 --watts 1000 --kwh 0.06 --capital 1.3 --share 1 --exception "launch"',
        ),
    )(floor)  # fmt: skip
    command(
        group, "notice",
        examples=(
            "sublet price notice h200",
            "sublet price notice h200 10m=105 1h=120 4h=150",
            "sublet price notice h200 10m=110 --from 2026-02-01T00:00Z",
        ),
    )(notice)  # fmt: skip


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
    exception: Annotated[
        str | None, typer.Option(metavar="NAME", help="Why it may be below its floor.")
    ] = None,
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
    if exception is not None:
        body["exception"] = exception
    if valid_from is not None:
        body["valid_from"] = valid_from
    if valid_until is not None:
        body["valid_until"] = valid_until
    with session.operator() as api:
        if tenant is not None:
            body["tenant_id"] = tenant_id(api, tenant)
        document = api.put(f"/v1/prices/{part(sku)}", body)
    session.show(document, PRICE)


def floor(
    session: Session,
    pool: Annotated[str, typer.Argument(metavar="POOL", help="`sublet fleet` shows them.")],
    *,
    watts: Annotated[
        float | None, typer.Option(help="Of a GPU with its share of the server, at the plug.")
    ] = None,
    pue: Annotated[float, typer.Option(help="Of the site.")] = 1.3,
    kwh: Annotated[str, typer.Option(metavar="USD", help="Price of a kWh.")] = "0",
    wear: Annotated[str, typer.Option(metavar="USD", help="Per GPU-hour.")] = "0",
    support: Annotated[str, typer.Option(metavar="USD", help="Per GPU-hour.")] = "0",
    capital: Annotated[str, typer.Option(metavar="USD", help="Per GPU-hour.")] = "0",
    share: Annotated[float, typer.Option(help="Of the capital, in the floor: 0 to 1.")] = 0.0,
    exception: Annotated[
        str | None, typer.Option(metavar="NAME", help="Why prices may stay below it.")
    ] = None,
) -> None:
    """Show what a GPU-hour costs, or set it: nothing is sold below it without an exception."""
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    path = f"/v1/pools/{part(pool)}/floor"
    with session.operator() as api:
        if watts is None:
            document = api.get(path)
        else:
            body = {
                "watts": watts, "pue": pue, "kwh_usd": kwh, "wear_usd": wear,
                "support_usd": support, "capital_usd": capital, "capital_share": share,
            }  # fmt: skip
            document = api.put(path, body if exception is None else body | {"exception": exception})
    session.show(document, FLOOR)


def notice(
    session: Session,
    pool: Annotated[str, typer.Argument(metavar="POOL", help="`sublet fleet` shows them.")],
    steps: Annotated[
        list[str] | None,
        typer.Argument(metavar="NOTICE=PERCENT", help="Of the price, from that notice on."),
    ] = None,
    *,
    valid_from: Annotated[
        str | None,
        typer.Option("--from", metavar="INSTANT", help="From then on, such as 2026-02-01T00:00Z."),
    ] = None,
    flat: Annotated[bool, typer.Option(help="Let every notice cost the same again.")] = False,
) -> None:
    """Show what a longer notice costs, or set it. What was sold keeps its price.

    Shorter notices than the first that is named are sold at the price book's price.
    """
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    if flat and steps:
        raise Failure("--flat: leave out the steps, or leave it out", ExitCode.USAGE)
    path = f"/v1/pools/{part(pool)}/notice-prices"
    with session.operator() as api:
        if not steps and not flat:
            document = api.get(path)
        else:
            body: Document = {"steps": [_step(step) for step in steps or []]}
            if valid_from is not None:
                body["valid_from"] = valid_from
            document = api.put(path, body)
    session.show(document, NOTICES)


def _step(given: str) -> Document:
    length, _, percent = given.partition("=")
    if not (percent.isascii() and percent.isdigit()):
        raise Failure(f"{given[:60]!r} is no step such as 10m=105", ExitCode.USAGE)
    try:
        return {"notice_seconds": seconds(length), "percent": int(percent[:9])}
    except typer.BadParameter as error:
        raise Failure(f"{given[:60]!r}: {error.message}", ExitCode.USAGE) from None
