"""Printing what the API said: as JSON, or as a table for people.

Rich is imported where a table is drawn, because it is slow to load.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sublet.cli.failure import one_line

Document = dict[str, Any]

# Wide enough for every table: what a program reads must not be folded.
_UNFOLDED: Final = 400


def text(value: object) -> str:
    return "" if value is None else one_line(str(value))


def yes_no(value: object) -> str:
    return "yes" if value else "no"


def instant(value: object) -> str:
    """Show the API's instant to the second, in UTC."""
    if not isinstance(value, str):
        return ""
    try:
        return f"{datetime.fromisoformat(value).astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    except ValueError:
        return text(value)


def usd(value: object) -> str:
    return "" if value is None else f"${text(value)}"


def span(value: object) -> str:
    return "" if value is None else f"{text(value)} s"


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    key: str
    cell: Callable[[object], str] = text
    right: bool = False
    id: bool = False  # cut short on a narrow terminal; commands take unique beginnings


def print_json(document: object) -> None:
    print(json.dumps(document, indent=2))


def print_table(items: Iterable[Document], columns: Sequence[Column]) -> None:
    """One row an item. Programs that read it get every row on one line."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else _UNFOLDED, highlight=False)
    short = terminal and console.width < 120
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column.title, justify="right" if column.right else "left", no_wrap=not terminal
        )
    for item in items:
        cells = [column.cell(item.get(column.key)) for column in columns]
        table.add_row(
            *(
                Text(cell[:8] if short and column.id else cell)
                for column, cell in zip(columns, cells, strict=True)
            )
        )
    if table.row_count:
        console.print(table)
    else:
        print("(none)")


def print_fields(item: Document, columns: Sequence[Column]) -> None:
    """One line a field, leaving out those that are empty."""
    cells = [(column.title, column.cell(item.get(column.key))) for column in columns]
    cells = [(title, cell) for title, cell in cells if cell]
    width = max((len(title) for title, _ in cells), default=0)
    for title, cell in cells:
        print(f"{title:<{width}}  {cell}")
