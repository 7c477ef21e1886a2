"""`sublet signals`: is what sits idle in the wrong hands, or too much? How did the market take it?"""

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from sublet.cli.command import Session, command
from sublet.cli.output import Column, Document, print_json, print_table, text, usd


def add_to(root: typer.Typer) -> None:
    group = typer.Typer(rich_markup_mode=None, add_completion=False)
    command(
        group, "signals", alone=True,
        examples=(
            "sublet signals", "sublet signals --days 28", "sublet signals --json",
            "sublet signals events index.csv --event 2026-05-20 --market shares.csv",
        ),
    )(signals)  # fmt: skip
    command(
        group, "events", shared=("json",),
        examples=(
            "sublet signals events index.csv --event 2026-05-20",
            "sublet signals events basket.csv --market all-shares.csv --event 2026-05-20 --last 5",
        ),
    )(events)  # fmt: skip
    root.add_typer(group, name="signals")


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


def events(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Prices: CSV of day,usd.")],
    *,
    event: Annotated[
        list[str], typer.Option(metavar="DAY", help="When something was announced. Repeatable.")
    ],
    market: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What explains the price: CSV of day,usd."),
    ] = None,
    first: Annotated[
        int, typer.Option(metavar="DAYS", help="From which trading day, of the event's on.")
    ] = -1,
    last: Annotated[int, typer.Option(metavar="DAYS", help="Until which, that one too.")] = 1,
    estimate: Annotated[
        int, typer.Option(metavar="DAYS", help="How many days before it are learnt from.")
    ] = 120,
    confidence: Annotated[float, typer.Option(metavar="SHARE", help="Of the intervals.")] = 0.95,
) -> None:
    """Study how far a price moved about announcements, beyond what the market's move explains.

    Prices are of an index, a share or a basket. The method is in docs/operate/returns.md.
    """
    from sublet.finance.curves import read_curve  # noqa: PLC0415 -- slow to load
    from sublet.finance.events import Window, study, together  # noqa: PLC0415
    from sublet.finance.register import read_text  # noqa: PLC0415
    from sublet.finance.report import events_document  # noqa: PLC0415

    prices = read_curve(read_text(file), file.name).points
    other = None if market is None else read_curve(read_text(market), market.name).points
    found = study(
        prices,
        [_day(one) for one in event],
        market=other,
        window=Window(first=first, last=last, estimate_days=estimate),
        confidence=confidence,
    )
    mean = together(found, confidence=confidence)
    document = events_document(found, mean)
    if session.json:
        print_json(document)
        return
    rows: list[Document] = document["events"]
    if len(rows) > 1:
        rows = [*rows, {"event": "together"} | document["together"]]
    print_table(rows, _EVENTS)


def _day(said: str) -> date:
    try:
        return date.fromisoformat(said)
    except ValueError:
        raise typer.BadParameter(
            f"{said[:40]!r} is no day such as 2026-05-20", param_hint="--event"
        ) from None


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
_EVENTS = (
    Column("event", "event"),
    Column("trading day", "day"),
    Column("beta", "beta", right=True),
    Column("abnormal return", "car", _change, right=True),
    Column("from", "low", _change, right=True),
    Column("to", "high", _change, right=True),
    Column("p", "p_value", right=True),
)
