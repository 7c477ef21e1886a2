"""Tables that the database sorts, filters and pages; every state of one is an address.

A listing is a named query of this room and its columns. The query says what there is; sorting,
filters and the page are put around it here, from the address, and nothing in an address ever
becomes SQL: it chooses among the columns that are declared.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString
from urllib.parse import urlencode

from psycopg import sql
from starlette.responses import Response

from sublet.console import view
from sublet.console.visit import Visit
from sublet.core.db import Tx
from sublet.core.errors import Invalid

ROWS: Final = 50
_MOST_COUNTED: Final = 10_000  # beyond it, "more than 10,000" says enough, and is found at once
_MOST_EXPORTED: Final = 100_000

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    key: str  # of the query's result
    title: str
    kind: str = "text"  # text, number, usd, usd4, time, seconds, share, state, id
    sorts: bool = True
    href: Callable[[Row], str | None] | None = None

    def text(self, value: Any) -> Any:
        """Return a value as people read it."""
        if value is None:
            return view.NONE
        match self.kind:
            case "number":
                return view.number(value, 0 if float(value) == int(value) else 2)
            case "usd":
                return view.usd(value)
            case "usd4":
                return view.usd(value, 4)
            case "nanos":
                return view.usd(float(value) / 1e9)
            case "time":
                return view.instant(value)
            case "seconds":
                return view.seconds(value)
            case "share":
                return view.share(value)
            case "id":
                return str(value)[:8]
            case "words":
                return view.words(value)
            case _:
                return str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A choice among values of one column."""

    key: str
    title: str
    options: Sequence[tuple[str, str]]  # value, words
    where: LiteralString | None = None  # in place of `key = value`: a condition on %(value)s


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a table shows, and how it may be looked at."""

    name: str  # also the id of its region in the page
    title: str
    query: LiteralString
    columns: tuple[Column, ...]
    order: str  # the key it is sorted by at first; "-" before it: downwards
    tie: str  # a unique key, which settles the order of equals
    search: tuple[str, ...] = ()  # keys whose text is searched
    search_hint: str = "Search"
    when_empty: str = "Nothing fits these filters."


@dataclass(frozen=True, slots=True)
class _Head:
    title: str
    kind: str
    sorted: str | None
    href: str | None


@dataclass(frozen=True, slots=True)
class _Cell:
    text: Any
    kind: str
    href: str | None
    value: Any


@dataclass(frozen=True, slots=True)
class _Choice:
    key: str
    title: str
    options: Sequence[tuple[str, str]]
    chosen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A listing as one address shows it, for the template."""

    name: str
    title: str
    path: str
    columns: list[_Head]
    rows: list[list[_Cell]]
    filters: list[_Choice]
    searchable: bool
    search_hint: str
    q: str
    kept: list[tuple[str, str]]
    counted: str
    csv: str
    previous: str | None
    next: str | None
    when_empty: str


async def show(
    visit: Visit, listing: Listing, *, filters: Sequence[Filter] = (),
    parameters: Mapping[str, Any] | None = None,
) -> Shown | Response:  # fmt: skip
    """Return the listing as the address asks for it; a file, where it asks for `format=csv`.

    Raises:
        Invalid: the address asks for a column or a page that there is not.
    """
    asked = {name: value for name, value in visit.request.query_params.items() if value}
    order = asked.get("sort", listing.order)
    keys = {column.key: column for column in listing.columns if column.sorts}
    key, down = order.removeprefix("-"), order.startswith("-")
    if key not in keys:
        raise Invalid(f"sort: this table has no column {key[:40]!r} to sort by")
    page = asked.get("page", "0")
    if not page.isdigit() or int(page) > 10_000:
        raise Invalid("page: must be a number")
    conditions, values = _conditions(listing, filters, asked)
    values |= dict(parameters or {})
    inner = sql.SQL("SELECT * FROM ({query}) AS listed WHERE {conditions}").format(
        query=sql.SQL(listing.query), conditions=sql.SQL(" AND ").join(conditions)
    )
    ordered = sql.SQL(
        "{inner} ORDER BY {key} {way} NULLS LAST, {tie} {way} LIMIT %(limit)s OFFSET %(offset)s"
    )
    chosen = ordered.format(
        inner=inner, key=sql.Identifier(key), tie=sql.Identifier(listing.tie),
        way=sql.SQL("DESC" if down else "ASC"),
    )  # fmt: skip
    if asked.get("format") == "csv":
        values |= {"limit": _MOST_EXPORTED, "offset": 0}
        rows = await visit.db(lambda tx: tx.execute(chosen, values).fetchall())
        return _file(listing, rows)
    counting = sql.SQL("SELECT count(*) AS rows FROM ({inner} LIMIT %(most)s) AS counted").format(
        inner=inner
    )
    values |= {"limit": ROWS + 1, "offset": ROWS * int(page), "most": _MOST_COUNTED + 1}

    def load(tx: Tx) -> tuple[list[dict[str, Any]], int]:
        found = tx.execute(chosen, values).fetchall()
        counted = tx.execute(counting, values).fetchone()
        assert counted is not None
        return found, counted["rows"]

    rows, count = await visit.db(load)
    return _shown(visit, listing, filters, asked, rows, count)


def _conditions(
    listing: Listing, filters: Sequence[Filter], asked: Mapping[str, str]
) -> tuple[list[sql.Composable], dict[str, Any]]:
    conditions: list[sql.Composable] = [sql.SQL("true")]
    values: dict[str, Any] = {}
    for place, one in enumerate(filters):
        if (value := asked.get(one.key)) is None:
            continue
        name = f"filter_{place}"
        if one.where is not None:
            conditions.append(sql.SQL(one.where.replace("%(value)s", f"%({name})s")))
        else:
            conditions.append(
                sql.SQL("{key}::text = {value}").format(
                    key=sql.Identifier(one.key), value=sql.Placeholder(name)
                )
            )
        values[name] = value
    if listing.search and (text := asked.get("q")):
        either = [
            sql.SQL("{key}::text ILIKE %(search)s").format(key=sql.Identifier(key))
            for key in listing.search
        ]
        conditions.append(sql.SQL("({either})").format(either=sql.SQL(" OR ").join(either)))
        escaped = text.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
        values["search"] = f"%{escaped}%"
    return conditions, values


def _shown(
    visit: Visit, listing: Listing, filters: Sequence[Filter], asked: Mapping[str, str],
    rows: Sequence[Row], count: int,
) -> Shown:  # fmt: skip
    path = visit.request.url.path
    order, page = asked.get("sort", listing.order), int(asked.get("page", "0"))

    def address(**changed: str | None) -> str:
        kept = {**asked, **changed}
        kept = {name: value for name, value in kept.items() if value is not None}
        return path + (f"?{urlencode(kept)}" if kept else "")

    heads = []
    for column in listing.columns:
        mine = order.removeprefix("-") == column.key
        down = order.startswith("-")
        # Numbers and times are looked at from the largest; words from the first.
        first = column.key if column.kind in {"text", "words", "state", "id"} else f"-{column.key}"
        turned = column.key if down else f"-{column.key}"
        href = address(sort=turned if mine else first, page=None) if column.sorts else None
        heads.append(
            _Head(
                column.title,
                column.kind,
                ("descending" if down else "ascending") if mine else None,
                href,
            )
        )
    known = {one.key for one in filters} | {"q", "page", "format"}
    start = ROWS * page
    counted = "more than 10,000" if count > _MOST_COUNTED else f"{count:,}"
    return Shown(
        name=listing.name,
        title=listing.title,
        path=path,
        columns=heads,
        rows=[[_cell(column, row) for column in listing.columns] for row in rows[:ROWS]],
        filters=[
            _Choice(one.key, one.title, one.options, asked.get(one.key, "")) for one in filters
        ],
        searchable=bool(listing.search),
        search_hint=listing.search_hint,
        q=asked.get("q", ""),
        kept=[(name, value) for name, value in asked.items() if name not in known],
        counted=f"{start + 1:,}-{start + len(rows[:ROWS]):,} of {counted}" if rows else "none",
        csv=address(format="csv", page=None),
        previous=address(page=str(page - 1) if page > 1 else None) if page else None,
        next=address(page=str(page + 1)) if len(rows) > ROWS else None,
        when_empty=listing.when_empty,
    )


def _cell(column: Column, row: Row) -> _Cell:
    value = row[column.key]
    href = column.href(row) if column.href is not None and value is not None else None
    return _Cell(column.text(value), column.kind, href, value)


def _file(listing: Listing, rows: Sequence[Row]) -> Response:
    """Return the rows as CSV, with names and values as the database has them."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([column.key for column in listing.columns])
    for row in rows:
        writer.writerow([plain(row[column.key]) for column in listing.columns])
    return csv_file(listing.name, text.getvalue())


def csv_file(name: str, text: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}.csv"'}
    return Response(text, headers=headers, media_type="text/csv; charset=utf-8")


def plain(value: Any) -> Any:
    """Return a value for a spreadsheet, which must not take a name for a formula."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        return f"'{value}"
    return value
