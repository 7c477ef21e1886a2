"""Text files read in blocks of lines, and what was wrong with which line.

A file of a million jobs is read a block at a time, so that memory holds what is wanted of it
and not its text.
"""

import csv
import gzip
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

import numpy as np
import polars as pl

from sublet.core.errors import Invalid

_BLOCK_BYTES: Final = 8 << 20
_NAMED_FAULTS: Final = 20

# Called with how many bytes of how many have been read.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFault:
    """A line that could not be used as it is, and why."""

    file: str
    line: int  # the first is 1
    why: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.why}"


class Faults:
    """What was wrong: every line is counted, the first of each file are named."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._counts: Counter[str] = Counter()
        self.named: list[LineFault] = []

    def add(self, fault: LineFault) -> None:
        """Raises Invalid: under `strict`, nothing may be wrong."""
        if self._strict:
            raise Invalid(f"{fault} (without --strict such lines are skipped and counted)")
        if self._counts[fault.file] < _NAMED_FAULTS:
            self.named.append(fault)
        self._counts[fault.file] += 1

    def add_counted(self, file: str, faults: Iterable[tuple[int, str]], *, count: int) -> None:
        """Add `count` lines of which `faults` are the first, as (line, why)."""
        before = self._counts[file]
        for line, why in faults:
            self.add(LineFault(file=file, line=line, why=why))
        self._counts[file] = before + count

    def add_rows(self, file: str, rows: pl.DataFrame) -> None:
        """Add one fault a row: columns `line` and `why`."""
        if rows.height:
            first = rows.head(_NAMED_FAULTS).select("line", "why").iter_rows()
            self.add_counted(file, first, count=rows.height)

    def count(self, file: str | None = None) -> int:
        return self._counts.total() if file is None else self._counts[file]


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], tuple[int, int]]]]:
    """Open a file, also a gzipped one.

    Yields:
        its bytes, and a function that says how many bytes of how many have been read.

    Raises:
        Invalid: it cannot be read.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            # What kind it is shows in its first line, which a pipe tells only once.
            raise Invalid(f"{path} is not a regular file: write it to one first")
        with path.open("rb") as raw:
            size = path.stat().st_size
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if zipped else raw as stream:
                yield cast("BinaryIO", stream), lambda: (raw.tell(), size)
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Invalid(f"{path}: {why}") from None


class Table:
    """A text table with a header row, read in blocks.

    Every line keeps its number; a line with another number of fields than the header is a
    fault. Quotes are understood where the separator is a comma.
    """

    def __init__(self, path: Path, *, separator: str, progress: Progress) -> None:
        self._path = path
        self._separator = separator
        self._progress = progress
        self.lines = 0  # read so far, the header included
        self.header: tuple[str, ...] = ()

    def blocks(self, columns: Sequence[str], faults: Faults) -> Iterator[pl.DataFrame]:
        """Yield the wanted columns, as stripped text, with the `line` of each row.

        The names are those of the header, whatever their case; a wanted column that the header
        lacks is left out.
        """
        wanted: dict[str, int] = {}
        for first, lines in self._blocks_of_lines():
            if not self.header:
                self.header = split(lines[0], self._separator)
                lower = [name.lower() for name in self.header]
                wanted = {c: lower.index(c.lower()) for c in columns if c.lower() in lower}
                first, lines = first + 1, lines[1:]  # noqa: PLW2901 -- the rest of the block
            frame = self._frame(first, lines)
            fields = len(self.header)
            wrong = frame.filter(pl.col("fields") != fields)
            if wrong.height:
                faults.add_rows(
                    str(self._path),
                    wrong.with_columns(
                        why=pl.format("{} fields where the header has {}", "fields", fields)
                    ),
                )
                frame = frame.filter(pl.col("fields") == fields)
            if frame.height:
                yield frame.select(
                    "line",
                    *(
                        pl.col("cells").struct.field(f"field_{at}").str.strip_chars().alias(name)
                        for name, at in wanted.items()
                    ),
                )

    def _frame(self, first: int, lines: Sequence[str]) -> pl.DataFrame:
        """Split lines into columns `line`, `fields` (how many) and `cells`."""
        fields = len(self.header)
        frame = pl.DataFrame(
            {"text": lines, "line": np.arange(first, first + len(lines), dtype=np.int64)},
            schema={"text": pl.String, "line": pl.Int64},
        ).filter(pl.col("text") != "")
        if self._separator == ",":
            frame = self._unquoted(frame)
        separator = self._separator if self._separator != "," else _INNER
        return frame.select(
            "line",
            fields=pl.col("text").str.count_matches(separator, literal=True) + 1,
            cells=pl.col("text").str.split_exact(separator, max(fields - 1, 1)),
        )

    def _unquoted(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Put a separator that no text holds in place of the commas that are not quoted."""
        return frame.with_columns(
            text=pl.when(pl.col("text").str.contains('"', literal=True))
            .then(pl.col("text").map_elements(_requote, return_dtype=pl.String))
            .otherwise(pl.col("text").str.replace_all(",", _INNER, literal=True))
        )

    def _blocks_of_lines(self) -> Iterator[tuple[int, list[str]]]:
        with opened(self._path) as (stream, position):
            left = b""
            while True:
                try:
                    block = stream.read(_BLOCK_BYTES)
                except (EOFError, OSError) as error:
                    raise Invalid(f"{self._path}: {error}") from None
                self._progress(*position())
                whole, newline, rest = (left + block).rpartition(b"\n")
                if not block:
                    whole, newline, rest = left, b"\n" if left else b"", b""
                left = rest
                if newline:
                    yield self._numbered(whole)
                if not block:
                    return

    def _numbered(self, block: bytes) -> tuple[int, list[str]]:
        first = self.lines + 1
        text = block.decode("utf-8-sig" if first == 1 else "utf-8", errors="replace")
        lines = text.split("\n")
        if "\r" in text:
            lines = [line.rstrip("\r") for line in lines]
        self.lines += len(lines)
        return first, lines


_INNER: Final = "\x1f"


def split(line: str, separator: str) -> tuple[str, ...]:
    """Return the stripped fields of a header row."""
    cells = next(csv.reader([line]), []) if separator == "," else line.split(separator)
    return tuple(cell.strip() for cell in cells)


def _requote(line: str) -> str:
    return _INNER.join(next(csv.reader([line]), []))


def first_line(path: Path) -> str:
    """Return a file's first line.

    Raises:
        Invalid: it cannot be read, is empty, or is not text.
    """
    with opened(path) as (stream, _):
        try:
            line = stream.readline(1 << 20)
        except (EOFError, OSError) as error:
            raise Invalid(f"{path}: {error}") from None
    if not line.strip():
        raise Invalid(f"{path} is empty: there must be a header row, and rows below it")
    if b"\x00" in line:
        raise Invalid(f"{path} is not a text file")
    return line.decode("utf-8-sig", errors="replace").rstrip("\r\n")
