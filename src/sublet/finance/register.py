"""The register of assets as CSV: one line a lot, and a file of changes of their lives.

Every line is held to its columns; the first that is wrong is named, and nothing is taken.
"""

import csv
from collections.abc import Mapping
from datetime import date
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from sublet.core.errors import Invalid
from sublet.core.money import NANOS, Money
from sublet.finance.asset import Change, Curve, Debt, Kind, Lot, Method

T = TypeVar("T", bound=StrEnum)

NEEDED: Final = ("lot", "kind", "site", "bought_on", "cost", "life_months")
OPTIONAL: Final = (
    "pool", "generation", "gpus", "in_service_on", "currency", "usd_per_unit", "salvage", "method",
    "watts_per_gpu", "idle_watts_per_gpu", "pue", "usd_per_kwh", "usd_per_month", "debt_share",
    "debt_rate", "debt_months", "curve",
)  # fmt: skip
CHANGE_COLUMNS: Final = ("lot", "effective_on", "life_months", "salvage")
CURVE_COLUMNS: Final = ("curve", "dated", "source", "months", "share")
Curves = Mapping[str, Curve]
NO_CURVES: Final[Curves] = MappingProxyType({})
_MOST: Final = Decimal(10) ** 15


def read_curves(text: str, name: str) -> dict[str, Curve]:
    """Read curves of what GPUs are worth by age, from CSV with the columns of `CURVE_COLUMNS`.

    A curve is as many lines as it has points; each says who says so, and when.

    Raises:
        Invalid: as `read_lots`; or the lines of one curve differ in source or date.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    said: dict[str, tuple[str, date]] = {}
    for number, row in _rows(text, name, CURVE_COLUMNS, ()):
        try:
            who = row["source"], _day(row, "dated")
            if said.setdefault(row["curve"], who) != who:
                raise Invalid(f"curve {row['curve']} has two sources or dates: name them apart")
            point = float(_number(row, "months")), float(_number(row, "share"))
        except Invalid as error:
            raise Invalid(f"{name}, line {number}: {error}") from None
        points.setdefault(row["curve"], []).append(point)
    curves = {}
    for curve, (source, dated) in said.items():
        try:
            curves[curve] = Curve(points=tuple(points[curve]), source=source, dated=dated)
        except Invalid as error:
            raise Invalid(f"{name}, curve {curve}: {error}") from None
    return curves


def read_lots(text: str, name: str, curves: Curves = NO_CURVES) -> list[Lot]:
    """Read lots from CSV with a header.

    Args:
        text: the file.
        name: what to call it in messages.
        curves: by name, that its economic lots are marked to.

    Raises:
        Invalid: a column or a value is missing, unknown or out of its bounds, or a lot is there
            twice; with the number of the line.
    """
    lots: dict[str, Lot] = {}
    for number, row in _rows(text, name, NEEDED, OPTIONAL):
        where = f"{name}, line {number}"
        try:
            lot = _lot(row, curves)
        except Invalid as error:
            raise Invalid(f"{where}: {error}") from None
        if lot.name in lots:
            raise Invalid(f"{where}: lot {lot.name} is there twice")
        lots[lot.name] = lot
    if not lots:
        raise Invalid(f"{name} holds no lot")
    return list(lots.values())


def read_changes(text: str, name: str, curves: Curves = NO_CURVES) -> list[Change]:
    """Read changes of lives from CSV with the columns of `CHANGE_COLUMNS`, in USD, and `curve`.

    Raises:
        Invalid: as `read_lots`.
    """
    changes = []
    for number, row in _rows(text, name, CHANGE_COLUMNS, ("curve",)):
        try:
            changes.append(
                Change(
                    lot=row["lot"],
                    effective_on=_day(row, "effective_on"),
                    life_months=_whole(row, "life_months"),
                    salvage=_money(row, "salvage", Decimal(1)),
                    curve=_curve(row, curves),
                )
            )
        except Invalid as error:
            raise Invalid(f"{name}, line {number}: {error}") from None
    return changes


def read_text(path: Path) -> str:
    """Raises Invalid: the file cannot be read, or is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise Invalid(f"cannot read {path}: {why}") from None


def _rows(
    text: str, name: str, needed: tuple[str, ...], optional: tuple[str, ...]
) -> list[tuple[int, dict[str, str]]]:
    rows = csv.reader(StringIO(text), strict=True)
    out = []
    try:
        header = [column.strip() for column in next(rows, [])]
        for column in needed:
            if column not in header:
                raise Invalid(f"{name} has no column {column!r}; it needs {', '.join(needed)}")
        if unknown := [column for column in header if column not in {*needed, *optional}]:
            raise Invalid(
                f"{name} has a column {unknown[0]!r}; known are {', '.join([*needed, *optional])}"
            )
        if len(set(header)) < len(header):
            raise Invalid(f"{name} has a column twice")
        for values in rows:
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(header):
                raise Invalid(
                    f"{name}, line {rows.line_num}: {len(values)} values, and the header has {len(header)}"
                )
            pairs = zip(header, values, strict=True)
            out.append((rows.line_num, {column: value.strip() for column, value in pairs}))
    except csv.Error as error:
        raise Invalid(f"{name}, line {rows.line_num}: {error}") from None
    return out


def _lot(row: Mapping[str, str], curves: Curves) -> Lot:
    bought_on = _day(row, "bought_on")
    kind = _choice(row, "kind", Kind)
    currency = row.get("currency") or "USD"
    unit = Decimal(1)
    if currency != "USD":
        if not row.get("usd_per_unit"):
            raise Invalid(
                f"usd_per_unit is missing: what one {currency[:10]} cost on {bought_on}, in USD"
            )
        unit = _number(row, "usd_per_unit")
        if unit <= 0:
            raise Invalid("usd_per_unit must be more than nothing")
    watts = float(_number(row, "watts_per_gpu", "0"))
    share = float(_number(row, "debt_share", "0"))
    debt = (
        Debt(share=share, rate=float(_number(row, "debt_rate")), months=_whole(row, "debt_months"))
        if share
        else None
    )
    return Lot(
        name=row["lot"],
        kind=kind,
        site=row["site"],
        pool=row.get("pool", ""),
        generation=row.get("generation") or row.get("pool", "") or kind.value,
        gpus=_whole(row, "gpus", "0"),
        bought_on=bought_on,
        in_service_on=_day(row, "in_service_on") if row.get("in_service_on") else bought_on,
        cost=_money(row, "cost", unit, needed=True),
        life_months=_whole(row, "life_months"),
        salvage=_money(row, "salvage", unit),
        method=_choice(row, "method", Method, Method.STRAIGHT),
        watts=watts,
        idle_watts=float(_number(row, "idle_watts_per_gpu", str(watts))),
        pue=float(_number(row, "pue", "1")),
        usd_per_kwh=float(_number(row, "usd_per_kwh", "0")),
        usd_per_month=float(_number(row, "usd_per_month", "0")),
        debt=debt,
        curve=_curve(row, curves),
    )


def _curve(row: Mapping[str, str], curves: Curves) -> Curve | None:
    wanted = row.get("curve", "")
    if not wanted:
        return None
    if wanted not in curves:
        known = ", ".join(sorted(curves)) or "none"
        raise Invalid(f"there is no curve {wanted[:40]!r}; there are: {known}")
    return curves[wanted]


def _number(row: Mapping[str, str], column: str, default: str | None = None) -> Decimal:
    text = row.get(column) or default
    if not text:
        raise Invalid(f"{column} is missing")
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise Invalid(f"{column} is no number: {text[:40]!r}") from None
    if not number.is_finite() or not 0 <= number <= _MOST:
        raise Invalid(f"{column} must not be negative, nor more than {_MOST:.0e}: {text[:40]!r}")
    return number


def _whole(row: Mapping[str, str], column: str, default: str | None = None) -> int:
    number = _number(row, column, default)
    if number != int(number) or number > 10**9:
        raise Invalid(f"{column} must be a whole number: {row.get(column, '')[:40]!r}")
    return int(number)


def _money(row: Mapping[str, str], column: str, unit: Decimal, *, needed: bool = False) -> Money:
    # To a nano, half to even: an amount in another currency need not come out whole.
    return Money(round(_number(row, column, None if needed else "0") * unit * NANOS))


def _day(row: Mapping[str, str], column: str) -> date:
    text = row[column]
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Invalid(f"{column} is no day such as 2026-03-02: {text[:40]!r}") from None


def _choice(row: Mapping[str, str], column: str, among: type[T], default: T | None = None) -> T:
    text = row.get(column, "")
    if not text and default is not None:
        return default
    try:
        return among(text)
    except ValueError:
        known = ", ".join(among)
        raise Invalid(f"{column} is one of {known}, not {text[:40]!r}") from None
