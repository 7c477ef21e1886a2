"""`sublet signals`: is what sits idle in the wrong hands, or too much?"""

from typing import Annotated

import typer

from sublet.cli.command import Session, command
from sublet.cli.output import Column, text, usd


def add_to(root: typer.Typer) -> None:
    command(
        root, "signals",
        examples=("sublet signals", "sublet signals --days 28", "sublet signals --json"),
    )(signals)  # fmt: skip


def signals(
    session: Session,
    *,
    days: Annotated[
        int, typer.Option(metavar="COUNT", help="How far to look back.", min=1, max=56)
    ] = 7,
) -> None:
    """Say how fast idle capacity was taken, at what price, and what that means.

    A mismatch: taken at once, prices firm. Oversupply: slow, and prices fall.
    """
    with session.operator() as api:
        document = api.get("/v1/signals", days=days)
    session.show_items(document, SIGNALS)


def _percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else ""


def _change(value: object) -> str:
    return f"{100 * value:+.1f} %" if isinstance(value, int | float) else ""


def _hours(value: object) -> str:
    return "" if value is None else f"{text(value)} h"


SIGNALS = (
    Column("pool", "pool"),
    Column("signal", "signal"),
    Column("sold of offered", "sold_share", _percent, right=True),
    Column("half taken in", "hours_to_half", _hours, right=True),
    Column("waiting", "waiting_gpus", right=True),
    Column("paid/GPU-hour", "usd_gpu_hour", usd, right=True),
    Column("change", "price_change", _change, right=True),
    Column("of floor", "over_floor", right=True),
    Column("", "advice"),
)
