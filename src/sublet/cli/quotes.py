"""`sublet quote`, `sublet quotes`: what a lease would cost, held for a while."""

from typing import Annotated

import typer

from sublet.cli.command import Session, command
from sublet.cli.leases import Gpus, Longest, NoticeOf, Pool, Tier, Window, asked
from sublet.cli.output import Column, Document, instant, span, usd
from sublet.cli.parsing import seconds
from sublet.cli.reservations import ends_of

QUOTE = (
    Column("id", "id", id=True),
    Column("state", "state"),
    Column("pool", "pool"),
    Column("GPUs", "gpus", right=True),
    Column("tier", "tier"),
    Column("per GPU-hour", "usd_per_gpu_hour", usd, right=True),
    Column("list price", "list_usd_per_gpu_hour", usd, right=True),
    Column("at most", "most_usd", usd, right=True),
    Column("expires", "expires_at", instant),
)
WHOLE_QUOTE = (
    *QUOTE,
    Column("longest", "max_seconds", span),
    Column("notice", "notice_seconds", span),
    Column("became", "sold"),
)


def add_to(root: typer.Typer) -> None:
    command(
        root, "quote",
        examples=(
            "sublet quote --gpus 8 --tier on_demand --max 12h",
            "sublet quote --pool h200 --gpus 64 --max 7d --lifetime 30m",
        ),
    )(quote)  # fmt: skip
    command(root, "quotes", examples=("sublet quotes", "sublet quotes --json"))(quotes)


def quote(
    session: Session,
    *,
    pool: Pool = None,
    gpus: Gpus = None,
    tier: Tier = None,
    longest: Longest = None,
    notice_of: NoticeOf = None,
    window: Window = None,
    lifetime: Annotated[
        int | None,
        typer.Option(
            parser=seconds, metavar="DURATION", help="Hold the price so long. [default: 10m]"
        ),
    ] = None,
) -> None:
    """Ask what a lease costs, and have that price held for a while.

    Accept it with `sublet lease create --quote ID -- COMMAND`, once, before it expires.
    A quote holds the price and no GPUs.
    """
    body: Document = asked(pool=pool, gpus=gpus, tier=tier, longest=longest, notice=notice_of)
    if window is not None:
        body |= ends_of(window) | {"tier": "reserved"}
    if lifetime is not None:
        body["lifetime_seconds"] = lifetime
    with session.tenant() as api:
        made = api.post("/v1/quotes", body)
    reserved = "--tier reserved " if made.get("tier") == "reserved" else ""
    accept = f"\naccept it:  sublet lease create {reserved}--quote {made.get('id')} -- COMMAND"
    session.show(made, WHOLE_QUOTE, more=lambda: print(accept))


def quotes(session: Session) -> None:
    """List your quotes, newest first, and what became of them."""
    with session.tenant() as api:
        document = api.get("/v1/quotes")
    session.show_items(document, QUOTE)
