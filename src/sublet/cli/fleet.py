"""`sublet fleet`, `sublet pool …`: what there is, who uses it, and what may be lent."""

from typing import Annotated

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import ExitCode, Failure
from sublet.cli.output import Column, span, text, yes_no
from sublet.cli.parsing import limit


def _limit(value: object) -> str:
    return "none" if value is None else text(value)


POLICY = (
    Column("pool", "name"),
    Column("GPUs", "gpus", right=True),
    Column("notice", "notice_seconds", span, right=True),
    Column("lendable", "lendable", yes_no),
    Column("limit", "lending_limit", _limit, right=True),
)
POOL = (
    *POLICY[:2],
    Column("internal", "internal_running", right=True),
    Column("pending", "internal_pending", right=True),
    Column("leased", "leased", right=True),
    Column("idle", "idle", right=True),
    Column("sellable", "sellable", right=True),
    *POLICY[2:],
)


def add_to(root: typer.Typer) -> None:
    command(root, "fleet", examples=("sublet fleet", "sublet fleet --json"))(fleet)
    group = new_group(
        "Pools: GPUs of one model, and what may be lent of them.",
        examples=("sublet pool set h200 --notice 120",),
    )
    root.add_typer(group, name="pool")
    command(
        group, "set",
        examples=(
            "sublet pool set h200 --notice 120 --limit 64",
            "sublet pool set h200 --limit none",
            "sublet pool set gb300 --not-lendable",
        ),
    )(set_policy)  # fmt: skip


def fleet(session: Session) -> None:
    """Show who uses each pool, and what of it can be sold."""
    with session.operator() as api:
        document = api.get("/v1/fleet")
    if not session.json:
        document = {"items": document.get("pools")}
    session.show_items(document, POOL)


def set_policy(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pool.")],
    *,
    notice: Annotated[
        int | None, typer.Option(min=0, metavar="SECONDS", help="Notice for leases sold from now.")
    ] = None,
    lendable: Annotated[
        bool | None, typer.Option("--lendable/--not-lendable", help="May any of it be lent?")
    ] = None,
    most: Annotated[
        str | None,
        typer.Option("--limit", metavar="N|none", help="Lend at most so many GPUs."),
    ] = None,
) -> None:
    """Set what a pool may lend. What is not given stays as it is."""
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    body: dict[str, object] = {}
    if notice is not None:
        body["notice_seconds"] = notice
    if lendable is not None:
        body["lendable"] = lendable
    if most is not None:
        body["lending_limit"] = limit(most)
    if not body:
        raise Failure("give --notice, --lendable, --not-lendable or --limit", ExitCode.USAGE)
    with session.operator() as api:
        document = api.patch(f"/v1/pools/{part(name)}", body)
    session.show(document, POLICY)
