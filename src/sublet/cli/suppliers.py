"""`sublet supplier …`: whom answers are bought from when own replicas are short."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import ExitCode, Failure
from sublet.cli.output import Column, instant, print_table, text, usd


def _models(value: object) -> str:
    items = value if isinstance(value, list) else []
    return "; ".join(
        f"{text(one['model'])} as {text(one['sells'])}"
        + "".join(
            f", {tier} {text(price['input'])} in {text(price['output'])} out"
            for tier, price in one["prices"].items()
        )
        for one in items
    )


def _limits(value: object) -> str:
    items = value if isinstance(value, list) else []
    return "; ".join(
        f"{text(one['left'])} of {text(one['amount'])} {one['measure']} a"
        f" {str(one['span']).replace('_', ' ')}"
        for one in items
    )


def _rests(value: object) -> str:
    items = value if isinstance(value, list) else []
    return "; ".join(f"{text(one['why'])} until {instant(one['until'])}" for one in items)


def _offers(value: object) -> str:
    items = value if isinstance(value, list) else []
    return "; ".join(f"{text(one['supplier'])} {text(one['usd_per_million'])}" for one in items)


SUPPLIER = (
    Column("name", "name"),
    Column("dialect", "dialect"),
    Column("enabled", "enabled"),
    Column("has a key", "has_key"),
    Column("sells, USD a million tokens", "models", _models),
    Column("left of its quota", "limits", _limits),
    Column("rests", "rests", _rests),
    Column("spent today", "spent_today_usd", usd, right=True),
)
TERMS = (
    Column("model", "deployment"),
    Column("bought", "enabled"),
    Column("margin %", "margin_percent", right=True),
    Column("may lose a day", "loss_usd_per_day", usd, right=True),
)
PURCHASE = (
    Column("at", "happened_at", instant),
    Column("supplier", "supplier"),
    Column("model", "model"),
    Column("tier", "tier"),
    Column("request", "request_id"),
    Column("tokens", "tokens", lambda value: str(sum(value.values()))
           if isinstance(value, dict) else "", right=True),
    Column("cost", "cost_usd", usd, right=True),
    Column("outcome", "outcome"),
    Column("doubt", "doubt"),
)  # fmt: skip
RECONCILED = (
    Column("invoiced", "invoiced_usd", right=True),
    Column("recorded", "recorded_usd", right=True),
    Column("not explained", "unexplained_usd", right=True),
)
DIFFERENCE = (
    Column("what", "what"),
    Column("where", "where"),
    Column("says", "says"),
    Column("amount", "amount_usd", right=True),
)
HEDGE = (
    Column("model", "deployment"),
    Column("day", "day"),
    Column("own tokens", "own_tokens", right=True),
    Column("own, USD a million", "own_usd_per_million", right=True),
    Column("suppliers, USD a million", "suppliers", _offers),
    Column("bought tokens", "bought_tokens", right=True),
    Column("for", "bought_usd", usd, right=True),
    Column("verdict", "verdict"),
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="`sublet supplier list` shows them.")]


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Suppliers: outside APIs that answers are bought from when own replicas are short.",
        examples=("sublet supplier put supplier.toml", "sublet supplier list"),
    )
    root.add_typer(group, name="supplier")
    command(group, "put", examples=("sublet supplier put supplier.toml",))(put)
    command(group, "list", examples=("sublet supplier list",))(list_all)
    command(group, "show", examples=("sublet supplier show acme --json",))(show)
    command(
        group, "key", examples=("sublet supplier key acme < key.txt",)
    )(key)  # fmt: skip
    command(group, "stop", examples=("sublet supplier stop acme",))(stop)
    command(group, "start", examples=("sublet supplier start acme",))(start)
    command(
        group, "terms",
        examples=(
            "sublet supplier terms",
            "sublet supplier terms gemma-3-270m --margin 10",
            "sublet supplier terms gemma-3-270m --loss 25",
            "sublet supplier terms gemma-3-270m --never",
        ),
    )(terms)  # fmt: skip
    command(
        group, "purchases",
        examples=("sublet supplier purchases", "sublet supplier purchases --supplier acme --json"),
    )(purchases)  # fmt: skip
    _add_reports(group)


def _add_reports(group: typer.Typer) -> None:
    command(
        group, "reconcile",
        examples=("sublet supplier reconcile acme invoice.csv --from 2026-10-01 --to 2026-11-01",),
    )(reconcile)  # fmt: skip
    command(group, "hedge", examples=("sublet supplier hedge --days 30",))(hedge)


def put(
    session: Session,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="TOML; docs/operate/suppliers.md has one.")
    ],
) -> None:
    """Create a supplier from a file, or make it so; a changed price is a new version."""
    import tomllib  # noqa: PLC0415 -- only here

    try:
        body = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Failure(f"cannot read {file}: {error.strerror}", ExitCode.USAGE) from None
    except ValueError as error:
        raise Failure(f"{file} is no TOML: {error}", ExitCode.USAGE) from None
    with session.operator() as api:
        document = api.post("/v1/suppliers", _plain(body))
    session.show(document, SUPPLIER)
    if not document["has_key"]:
        session.say(f"it has no key yet: sublet supplier key {document['name']} < FILE")


def list_all(session: Session) -> None:
    """List suppliers, with what is left of their quota."""
    with session.operator() as api:
        document = api.get("/v1/suppliers")
    session.show_items(document, SUPPLIER)


def show(session: Session, name: Name) -> None:
    """Show a supplier."""
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    with session.operator() as api:
        document = api.get(f"/v1/suppliers/{part(name)}")
    session.show(document, SUPPLIER)


def key(session: Session, name: Name) -> None:
    """Keep the key that a supplier knows us by; it is read from stdin, and sealed."""
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    given = sys.stdin.read().strip()
    if not given:
        raise Failure("there is no key on stdin", ExitCode.USAGE)
    with session.operator() as api:
        document = api.post(f"/v1/suppliers/{part(name)}/key", {"key": given})
    session.show(document, (Column("name", "name"), Column("has a key", "has_key")))


def stop(session: Session, name: Name) -> None:
    """Buy nothing there any more."""
    _set_state(session, name, enabled=False)


def start(session: Session, name: Name) -> None:
    """Buy there again."""
    _set_state(session, name, enabled=True)


def _set_state(session: Session, name: str, *, enabled: bool) -> None:
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    with session.operator() as api:
        document = api.post(f"/v1/suppliers/{part(name)}/state", {"enabled": enabled})
    session.show(document, SUPPLIER)


def terms(
    session: Session,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Ours; all of them, if not given.")
    ] = None,
    *,
    margin: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Of the price, that must be left.")
    ] = None,
    loss: Annotated[str | None, typer.Option(metavar="USD", help="That may be lost a day.")] = None,
    never: Annotated[bool, typer.Option("--never", help="Buy none of its answers.")] = False,
) -> None:
    """Show under which terms answers are bought, or set a model's: all that is not given is 0."""
    with session.operator() as api:
        if model is None:
            session.show_items(api.get("/v1/buying"), TERMS)
            return
        body: dict[str, Any] = {"deployment": model, "enabled": not never}
        if margin is not None:
            body["margin_percent"] = margin
        if loss is not None:
            body["loss_usd_per_day"] = loss
        document = api.post("/v1/buying", body)
    session.show(document, TERMS)


def purchases(
    session: Session,
    *,
    supplier: Annotated[str | None, typer.Option(metavar="NAME", help="Only there.")] = None,
    request: Annotated[
        str | None, typer.Option(metavar="ID", help="Only for this request.")
    ] = None,
) -> None:
    """List what was bought, newest first."""
    with session.operator() as api:
        document = api.get("/v1/purchases", supplier=supplier, request_id=request)
    session.show_items(document, PURCHASE)


def reconcile(
    session: Session,
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The invoice, in CSV.")],
    *,
    start: Annotated[str, typer.Option("--from", metavar="DAY", help="First day, in UTC.")],
    end: Annotated[str, typer.Option("--to", metavar="DAY", help="The day after the last.")],
) -> None:
    """Compare a supplier's invoice with what was bought, and name every difference."""
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    try:
        csv = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8"
        raise Failure(f"cannot read {file}: {why}", ExitCode.USAGE) from None
    body = {"from": start, "to": end, "csv": csv}
    with session.operator() as api:
        document = api.post(f"/v1/suppliers/{part(name)}/reconciliation", body)
    session.show(
        document, RECONCILED, more=lambda: print_table(document["differences"], DIFFERENCE)
    )


def hedge(
    session: Session,
    *,
    days: Annotated[int, typer.Option(metavar="N", help="How many, today's the last.")] = 7,
) -> None:
    """Show own cost beside suppliers' prices over time: when to buy, and when to build."""
    with session.operator() as api:
        document = api.get("/v1/hedge", days=days)
    rows = [
        {"deployment": one["deployment"], "verdict": one["verdict"] if last else "", **day}
        for one in document["items"]
        for day, last in zip(one["days"], [False] * (len(one["days"]) - 1) + [True], strict=True)
    ]
    if session.json:
        session.show_items(document, HEDGE)
    else:
        print_table(rows, HEDGE)


def _plain(value: Any) -> Any:
    """Return a TOML value as JSON has it: instants and days as text."""
    if isinstance(value, dict):
        return {name: _plain(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_plain(below) for below in value]
    return value.isoformat() if hasattr(value, "isoformat") else value
