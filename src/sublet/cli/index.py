"""`sublet index`: what renting a GPU costs, by model and day, from own trades and quotes."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sublet.cli import plots
from sublet.cli.command import Session, command
from sublet.cli.output import Column, Document, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sublet.market.index import Level, Quote

_WIDTH = 60


def add_to(root: typer.Typer) -> None:
    command(
        root, "index",
        examples=(
            "sublet index",
            "sublet index quotes.csv --no-own",
            "sublet index cards.csv --no-own --column model=gpu_model --column price=usd_hr",
            "sublet index quotes.csv --model H100 --sources 2 --json",
        ),
    )(index)  # fmt: skip


def index(
    session: Session,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Quotes: CSV, may be gzipped.")
    ] = None,
    *,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=NAME",
            help="What files call date, model, price, source, gpus or known; repeatable.",
        ),
    ] = None,
    own: Annotated[
        bool, typer.Option("--own/--no-own", help="Count own trades, as one source.")
    ] = True,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Only this model.")] = None,
    sources: Annotated[
        int, typer.Option(metavar="COUNT", help="On fewer sources there is no level.", min=1)
    ] = 3,
    until: Annotated[
        str | None, typer.Option(metavar="DAY", help="Look at nothing later. [default: today]")
    ] = None,
) -> None:
    """Compute a price index per model, draw its history, and say when it rolls over.

    The method is in docs/operate/index.md.
    """
    from sublet.core.clock import wall  # noqa: PLC0415
    from sublet.market.index import levels, turn  # noqa: PLC0415
    from sublet.market.quotes_file import read_quotes  # noqa: PLC0415

    names = _columns(column)
    today = wall().date() if until is None else _day(until)
    quotes: list[Quote] = []
    for file in files or ():
        read = read_quotes(file, names)
        for fault in read.faults:
            session.say(f"skipped {fault}")
        if read.skipped > len(read.faults):
            session.say(f"skipped {read.skipped - len(read.faults)} more lines")
        quotes += read.quotes
    if own:
        quotes += _own(session)
    if model is not None:
        quotes = [quote for quote in quotes if quote.model == model]
    found = levels(quotes, least_sources=sources, today=today)
    items = [_document(name, history, turn(history)) for name, history in found.items()]
    if session.json:
        print_json({"until": today.isoformat(), "items": items})
        return
    print_table(items, _COLUMNS)
    for name, history in found.items():
        if model is not None or len(found) == 1:
            _draw(name, history)
    for item in items:
        if item["rolled_over"]:
            session.say(
                f"{item['model']} has rolled over: {item['usd']:.2f} USD, and"
                f" {item['rolled_over']['peak_usd']:.2f} on {item['rolled_over']['peak_day']}"
            )


def _own(session: Session) -> "list[Quote]":
    from sublet.cli.client import items_of  # noqa: PLC0415
    from sublet.market.index import Quote  # noqa: PLC0415

    with session.operator() as api:
        items = items_of(api.get("/v1/trades"))
    return [
        Quote(
            day=date.fromisoformat(item["day"]),
            model=item["pool"],
            source="own trades",
            usd=float(item["usd_gpu_hour"]),
            gpus=float(item["gpu_hours"]),
            known_on=date.fromisoformat(item["day"]),
        )
        for item in items
    ]


def _columns(given: list[str] | None) -> dict[str, str]:
    from sublet.market.quotes_file import FIELDS  # noqa: PLC0415

    names = {}
    for one in given or ():
        field, _, name = one.partition("=")
        if field not in FIELDS or not name:
            raise typer.BadParameter(
                f"{one[:40]!r} is not FIELD=NAME with one of {', '.join(FIELDS)}",
                param_hint="--column",
            )
        names[field] = name
    return names


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text[:40]!r} is not a day such as 2026-03-02", param_hint="--until"
        ) from None


def _document(name: str, history: "Sequence[Level]", rolled: Any) -> Document:
    last = history[-1] if history else None
    return {
        "model": name,
        "day": None if last is None else last.day.isoformat(),
        "usd": None if last is None else round(last.usd, 4),
        "sources": 0 if last is None else last.sources,
        "change_7d": _change(history, 7),
        "change_28d": _change(history, 28),
        "rolled_over": None
        if rolled is None
        else {
            "peak_day": rolled.peak_day.isoformat(),
            "peak_usd": round(rolled.peak_usd, 4),
        },
        "levels": [
            {
                "day": one.day.isoformat(), "usd": round(one.usd, 4), "sources": one.sources,
                "quotes": one.quotes, "trimmed": one.trimmed, "final": one.final,
            }
            for one in history
        ],
    }  # fmt: skip


def _change(history: "Sequence[Level]", days: int) -> float | None:
    """Return the change against the last level that is so many days old."""
    if not history:
        return None
    old = [one.usd for one in history if (history[-1].day - one.day).days >= days]
    return round(history[-1].usd / old[-1] - 1, 4) if old else None


def _percent(value: object) -> str:
    return f"{100 * value:+.1f} %" if isinstance(value, float) else ""


def _usd(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "no level"


_COLUMNS = (
    Column("model", "model"),
    Column("USD/GPU-hour", "usd", _usd, right=True),
    Column("7 days", "change_7d", _percent, right=True),
    Column("28 days", "change_28d", _percent, right=True),
    Column("sources", "sources", right=True),
    Column("day", "day"),
    Column("rolled over", "rolled_over", lambda value: "yes" if value else ""),
)


def _draw(name: str, history: "Sequence[Level]") -> None:
    if not history:
        return
    width = min(_WIDTH, len(history))
    picked = [history[place * len(history) // width] for place in range(width)]
    top = max(one.usd for one in picked)
    print(f"\n{name}, full height {top:.2f} USD per GPU-hour")
    for line in plots.area([one.usd for one in picked], [top] * width, height=6):
        print(f"  {line}")
    print("  " + plots.axis([str(history[0].day), str(history[-1].day)], width=width))
