"""What lists of things share: their query, and how far a page goes."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl
from uuid import UUID

from sublet.gateway.failures import Failure, Kind


@dataclass(frozen=True, slots=True)
class Query:
    """The query of a request; every parameter in it must be one that is asked for."""

    given: dict[str, str]

    @classmethod
    def read(cls, query: bytes, *known: str) -> "Query":
        """Raises Failure: there is a parameter in it that is not known here."""
        given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        for name in given:
            if name not in known:
                raise Failure(
                    Kind.UNSUPPORTED,
                    f"Unknown or unsupported parameter: {name[:100]!r}",
                    param=name[:100],
                )
        return cls(given)

    def limit(self, *, default: int, most: int) -> int:
        """Raises Failure: it is no number, or too large."""
        text = self.given.get("limit", str(default))
        if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= most:
            raise Failure(Kind.INVALID, f"limit must be a number from 1 to {most}", param="limit")
        return int(text)

    def one_of(self, name: str, *values: str) -> str:
        """Return a parameter's value, by default the first; raises Failure: it is another."""
        value = self.given.get(name, values[0])
        if value not in values:
            raise Failure(Kind.INVALID, f"{name} must be one of: {', '.join(values)}", param=name)
        return value


@dataclass(frozen=True, slots=True)
class Name:
    """How things of one kind are called: a prefix, and the hexadecimal digits of their id."""

    prefix: str
    what: str  # for people

    def of(self, id_: UUID) -> str:
        return self.prefix + id_.hex

    def id_of(self, name: str) -> UUID:
        """Raises Failure: it is no name of such a thing, so there is none."""
        digits = name.removeprefix(self.prefix)
        try:
            if name.startswith(self.prefix) and len(digits) == _DIGITS:
                return UUID(hex=digits)
        except ValueError:
            pass
        raise self.missing(name)

    def missing(self, name: str) -> Failure:
        return Failure(Kind.NO_SUCH_THING, f"No such {self.what}: {name[:100]!r}", param="id")


_DIGITS: Final = 32
