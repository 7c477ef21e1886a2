"""Curves of prices per GPU-hour over time: flat, falling, a forward curve, or a history repeated."""

import csv
import math
from bisect import bisect_right
from dataclasses import dataclass
from datetime import date
from io import StringIO

from sublet.core.errors import Invalid

_DAYS_A_MONTH = 30.4375


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceCurve:
    """Prices on days, and where they are from; between days on straight lines.

    After the last day the price stays, or goes on to halve every `half_life_months`.
    """

    points: tuple[tuple[date, float], ...]
    source: str
    half_life_months: float = 0.0  # 0: stays

    def __post_init__(self) -> None:
        """Raises Invalid: no points, days that do not rise, or prices that are not more than nothing."""
        days = [day for day, _ in self.points]
        if not days or days != sorted(set(days)):
            raise Invalid("a price curve needs points whose days rise")
        if any(not (math.isfinite(usd) and 0 < usd < 1e6) for _, usd in self.points):
            raise Invalid("a price per GPU-hour is more than nothing")
        if not 0 <= self.half_life_months <= 1200:
            raise Invalid("a half-life is 0 to 1200 months")

    def at(self, day: date) -> float:
        """Return USD per GPU-hour on a day; before the first one, the first price."""
        days = [one for one, _ in self.points]
        place = bisect_right(days, day)
        if place == 0:
            return self.points[0][1]
        (low, before) = self.points[place - 1]
        if place == len(days):
            if not self.half_life_months:
                return before
            return float(before * 0.5 ** ((day - low).days / _DAYS_A_MONTH / self.half_life_months))
        (high, after) = self.points[place]
        return before + (after - before) * ((day - low).days / (high - low).days)

    def moved_to(self, start: date) -> "PriceCurve":
        """Return the same curve as if its first day were `start`: what was, once more."""
        first = self.points[0][0]
        return PriceCurve(
            points=tuple((start + (day - first), usd) for day, usd in self.points),
            source=self.source,
            half_life_months=self.half_life_months,
        )

    def scaled_to(self, usd: float) -> "PriceCurve":
        """Return the same shape, from another first price on."""
        factor = usd / self.points[0][1]
        return PriceCurve(
            points=tuple((day, price * factor) for day, price in self.points),
            source=self.source,
            half_life_months=self.half_life_months,
        )


def read_curve(text: str, name: str) -> PriceCurve:
    """Read `day,usd` lines, such as an exchange's forward curve or an index's history.

    Raises:
        Invalid: a line is none; with its number.
    """
    points = []
    rows = csv.reader(StringIO(text))
    if [cell.strip() for cell in next(rows, [])][:2] != ["day", "usd"]:
        raise Invalid(f"{name}: the first line must be day,usd")
    for row in rows:
        if not row:
            continue
        try:
            points.append((date.fromisoformat(row[0].strip()), float(row[1])))
        except (ValueError, IndexError):
            raise Invalid(f"{name}, line {rows.line_num}: not a day and a price: {row!r}") from None
    try:
        return PriceCurve(points=tuple(points), source=name)
    except Invalid as error:
        raise Invalid(f"{name}: {error}") from None
