"""Reading a table of a TOML file: each key once, in its bounds, and none that is unknown."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from itertools import pairwise
from typing import Any

from sublet.core.errors import Invalid


class Table:
    """One table of a file, and where it is for messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self._where = where

    def number(
        self, key: str, default: float | None = None, *, least: float = 0.0, most: float = 1e12
    ) -> float:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, f"must be a number, not {value!r}")
        if not least <= value <= most:  # also when it is no number at all
            raise self._wrong(key, f"must lie in {least:g} to {most:g}, not {value!r}")
        return float(value)

    def count(
        self, key: str, default: int | None = None, *, least: int = 0, most: int = 10**9
    ) -> int:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, f"must be a whole number, not {value!r}")
        if not least <= value <= most:
            raise self._wrong(key, f"must lie in {least} to {most}, not {value}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, f"must be true or false, not {value!r}")
        return value

    def text(
        self, key: str, default: str | None = None, *, among: Sequence[str] | None = None
    ) -> str:
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, f"must be a text, not {value!r}")
        if among is not None and value not in among:
            raise self._wrong(key, f"must be one of {', '.join(among)}, not {value!r}")
        return value

    def day(self, key: str, default: date) -> date:
        value = self._take(key, default)
        if not isinstance(value, date) or isinstance(value, datetime):
            raise self._wrong(key, f"must be a date such as 2026-03-02, not {value!r}")
        return value

    def texts(self, key: str, *, among: Sequence[str]) -> tuple[str, ...]:
        """Return names that are among those known; all of them where the key is absent."""
        value = self._take(key, list(among))
        if not isinstance(value, list) or not value:
            raise self._wrong(key, "must be a list of names")
        for name in value:
            if name not in among:
                raise self._wrong(key, f"names {name!r}, which is none of {', '.join(among)}")
        return tuple(dict.fromkeys(value))

    def pairs(self, key: str) -> tuple[tuple[float, float], ...]:
        """Return pairs of numbers whose first ones rise; none where the key is absent."""
        value = self._take(key, [])
        if not isinstance(value, list):
            raise self._wrong(key, "must be a list of pairs such as [[0, 1.0], [30, 0.5]]")
        pairs = []
        for pair in value:
            if not (
                isinstance(pair, list)
                and len(pair) == 2
                and all(isinstance(n, int | float) and not isinstance(n, bool) for n in pair)
                and all(0 <= n < 1e9 for n in pair)
            ):
                raise self._wrong(key, f"must hold pairs of numbers, not {pair!r}")
            pairs.append((float(pair[0]), float(pair[1])))
        if any(later[0] <= earlier[0] for earlier, later in pairwise(pairs)):
            raise self._wrong(key, "must rise in the first numbers of its pairs")
        return tuple(pairs)

    def priced_days(self, key: str) -> tuple[tuple[date, float], ...]:
        """Return pairs of a day and a number, such as [[2026-03-02, 2.35]], whose days rise."""
        value = self._take(key, None)
        pairs = []
        for pair in value if isinstance(value, list) else [value]:
            match pair:
                case [date() as day, int() | float() as number] if not isinstance(
                    day, datetime
                ) and not isinstance(number, bool):
                    pairs.append((day, float(number)))
                case _:
                    raise self._wrong(key, f"must hold pairs of a day and a number, not {pair!r}")
        if any(later[0] <= earlier[0] for earlier, later in pairwise(pairs)):
            raise self._wrong(key, "must rise in the days of its pairs")
        return tuple(pairs)

    def counts(self, key: str, default: Sequence[int]) -> tuple[int, ...]:
        value = self._take(key, list(default))
        if (
            not isinstance(value, list)
            or not value
            or any(
                isinstance(n, bool) or not isinstance(n, int) or not 0 < n < 10**7 for n in value
            )
        ):
            raise self._wrong(key, f"must be a list of whole numbers above zero, not {value!r}")
        return tuple(value)

    def table(self, key: str) -> "Table":
        """Return the table below `key`; an empty one where it is absent."""
        value = self._take(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "must be a table")
        return Table(value, f"{self._where}[{key}]")

    def tables(self, key: str) -> "list[Table]":
        value = self._take(key, [])
        if not isinstance(value, list) or any(not isinstance(one, dict) for one in value):
            raise self._wrong(key, f"must be tables, each headed [[{key}]]")
        return [
            Table(one, f"{self._where}[[{key}]] number {place}")
            for place, one in enumerate(value, start=1)
        ]

    def end(self) -> None:
        """Raises Invalid: something was given that nobody asked for."""
        if self._values:
            raise Invalid(f"{self._where}: unknown: {', '.join(sorted(self._values))}")

    def wrong(self, why: str) -> Invalid:
        return Invalid(f"{self._where}: {why}")

    def has(self, key: str) -> bool:
        return key in self._values

    def _take(self, key: str, default: object) -> Any:
        value = self._values.pop(key, default)
        if value is None:
            raise Invalid(f"{self._where}: {key} is missing")
        return value

    def _wrong(self, key: str, why: str) -> Invalid:
        return Invalid(f"{self._where}: {key} {why}")
