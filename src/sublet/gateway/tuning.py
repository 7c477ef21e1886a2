"""What may be changed while a gateway runs: a file that it reads again when it changes.

    requests_per_minute = 600        of a key that has no limit of its own
    tokens_per_minute = 1_000_000
    first_token_seconds = 120        how long a stream's first token may take
    stall_seconds = 60               … and each further one

What is not in it keeps its default. A file that is wrong changes nothing, and the log says why.
"""

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, Self

import msgspec

from sublet.core.errors import Misconfigured

_MOST: Final = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    requests_per_minute: int = 600
    tokens_per_minute: int = 1_000_000
    first_token_seconds: float = 120.0
    stall_seconds: float = 60.0

    def read(self, path: Path) -> Self:
        """Return this with what a file says.

        Raises:
            Misconfigured: it cannot be read, or says what cannot be.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise Misconfigured(f"cannot read the gateway's settings {path}: {error}") from error
        names = {field.name for field in fields(self)}
        if unknown := sorted(set(table) - names):
            raise Misconfigured(
                f"{path}: unknown setting {', '.join(unknown)}; there are {', '.join(sorted(names))}"
            )
        try:
            tuning = msgspec.convert(asdict(self) | table, type(self))
        except msgspec.ValidationError as error:
            raise Misconfigured(f"{path}: {error}") from error
        for name in sorted(names):
            if not 0 < getattr(tuning, name) <= _MOST:
                raise Misconfigured(f"{path}: {name} must be more than 0, and no more than {_MOST}")
        return tuning


class Watched:
    """A file, and whether it changed since it was last looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._state()

    def changed(self) -> bool:
        before, self._seen = self._seen, self._state()
        return self._seen is not None and self._seen != before

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None  # it is being replaced, or gone: what was read stays
        return found.st_mtime_ns, found.st_ino, found.st_size
