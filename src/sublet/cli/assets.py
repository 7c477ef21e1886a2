"""`sublet asset …`: the register of what the capital bought."""

from pathlib import Path
from typing import Annotated, Final

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.output import Column, usd

ASSET: Final = (
    Column("lot", "name"),
    Column("kind", "kind"),
    Column("site", "site"),
    Column("pool", "pool"),
    Column("GPUs", "gpus", right=True),
    Column("in service", "in_service_on"),
    Column("cost", "cost", usd, right=True),
    Column("book value", "book_value_usd", usd, right=True),
    Column("life, months", "life_months", right=True),
    Column("method", "method"),
)
_ADDED: Final = (Column("lots added", "lots_added"), Column("changes added", "changes_added"))


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Assets: lots of GPUs, buildings and the like, and what they cost.",
        examples=("sublet asset import lots.csv", "sublet asset list"),
    )
    root.add_typer(group, name="asset")
    command(
        group, "import",
        examples=(
            "sublet asset import lots.csv",
            "sublet asset import lots.csv --changes lives.csv",
            "sublet asset import lots.csv --curves brokers.csv",
            "sublet asset import --changes lives.csv",
        ),
    )(import_)  # fmt: skip
    command(group, "list", examples=("sublet asset list", "sublet asset list --json"))(list_all)


def import_(
    session: Session,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Lots: CSV with a header.")
    ] = None,
    *,
    changes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Changes: CSV of lot,effective_on,life_months,salvage."),
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What economic lots are marked to: CSV of curve,dated,source,months,share.",
        ),
    ] = None,
) -> None:
    """Add lots and changes of their lives to the register; all of a file, or nothing.

    Records stand: a lot that is there with other contents is refused. The columns are in
    docs/operate/returns.md.
    """
    from sublet.finance import register  # noqa: PLC0415 -- slow to load

    body = {}
    known: register.Curves = register.NO_CURVES
    # All is read here, so that messages name the file.
    if curves is not None:
        body["curves"] = register.read_text(curves)
        known = register.read_curves(body["curves"], curves.name)
    if file is not None:
        body["lots"] = register.read_text(file)
        register.read_lots(body["lots"], file.name, known)
    if changes is not None:
        body["changes"] = register.read_text(changes)
        register.read_changes(body["changes"], changes.name, known)
    if not body.keys() - {"curves"}:
        raise typer.BadParameter("name a file of lots, or --changes", param_hint="FILE")
    with session.operator() as api:
        document = api.post("/v1/assets", body)
    session.show(document, _ADDED)


def list_all(session: Session) -> None:
    """List the register, and what the books say each lot is worth today."""
    with session.operator() as api:
        document = api.get("/v1/assets")
    session.show_items(document, ASSET)
