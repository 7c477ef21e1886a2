"""`sublet fleet`, `sublet pool …`: what there is, who uses it, and what may be lent."""

from typing import Annotated

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import ExitCode, Failure
from sublet.cli.output import Column, span, text, usd, yes_no
from sublet.cli.parsing import limit, seconds, share


def _limit(value: object) -> str:
    return "none" if value is None else text(value)


def _percent(value: object) -> str:
    return "" if value is None else f"{text(value)} %"


POLICY = (
    Column("pool", "name"),
    Column("GPUs", "gpus", right=True),
    Column("notice", "notice_seconds", span, right=True),
    Column("lendable", "lendable", yes_no),
    Column("limit", "lending_limit", _limit, right=True),
    Column("reserve", "reserve", right=True),
)
# What is not shown of every pool, only of one.
TERMS = (
    Column("firm for", "firm_seconds", span),
    Column("confidence", "firm_confidence"),
    Column("credit", "credit_percent", _percent),
    Column("floor per GPU-hour", "floor_usd_per_gpu_hour", usd),
    Column("quiet hours (UTC)", "quiet_hours"),
    Column("whole nodes", "exclusive", yes_no),
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
            "sublet pool set h200 --firm 4h --confidence 0.999 --quiet 22:00-06:00 --yes",
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
        int | None,
        typer.Option(min=0, metavar="SECONDS", help="The longest notice that is sold from now on."),
    ] = None,
    lendable: Annotated[
        bool | None, typer.Option("--lendable/--not-lendable", help="May any of it be lent?")
    ] = None,
    most: Annotated[
        str | None,
        typer.Option("--limit", metavar="N|none", help="Lend at most so many GPUs."),
    ] = None,
    reserve: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Never sell so many GPUs.")
    ] = None,
    firm: Annotated[
        int | None,
        typer.Option(
            parser=seconds, metavar="DURATION", help="So long on-demand leases are firm: 1m to 24h."
        ),
    ] = None,
    confidence: Annotated[
        str | None,
        typer.Option(metavar="SHARE|none", help="Share of promises to keep; none: the instance's."),
    ] = None,
    credit: Annotated[
        int | None,
        typer.Option(
            min=0, max=1000, metavar="PERCENT", help="Credit that much of a broken promise's rest."
        ),
    ] = None,
    floor: Annotated[
        str | None,
        typer.Option(metavar="USD|none", help="Sell no GPU-hour for less."),
    ] = None,
    quiet: Annotated[
        str | None,
        typer.Option(metavar="HH:MM-HH:MM|none", help="Sell nothing new in these hours, UTC."),
    ] = None,
    exclusive: Annotated[
        bool | None,
        typer.Option(
            "--exclusive/--shared",
            help="Sell whole nodes, which a tenant's lease shares with nobody?",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it also where promises stand that it would not allow.")
    ] = False,
) -> None:
    """Set what a pool may sell. What is not given stays as it is.

    Promises stand until they end. Where some stand that the new policy would not
    allow, they are listed and nothing is changed, unless you say --yes.
    """
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    body: dict[str, object] = {}
    if notice is not None:
        body["notice_seconds"] = notice
    if lendable is not None:
        body["lendable"] = lendable
    if most is not None:
        body["lending_limit"] = limit(most)
    if reserve is not None:
        body["reserve"] = reserve
    if firm is not None:
        body["firm_seconds"] = firm
    if confidence is not None:
        body["firm_confidence"] = None if confidence == "none" else share(confidence)
    if credit is not None:
        body["credit_percent"] = credit
    if floor is not None:
        body["floor_usd_per_gpu_hour"] = None if floor == "none" else floor
    if quiet is not None:
        body["quiet_hours"] = None if quiet == "none" else quiet
    if exclusive is not None:
        body["exclusive"] = exclusive
    if not body:
        raise Failure("say what to change; `sublet pool set --help` lists it all", ExitCode.USAGE)
    if yes:
        body["confirm"] = True
    with session.operator() as api:
        document = api.patch(f"/v1/pools/{part(name)}", body)
    session.show(document, (*POLICY, *TERMS))
