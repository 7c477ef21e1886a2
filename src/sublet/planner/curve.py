"""A pool's demand curve: how many GPUs there were, and how many internal jobs held, on an even grid.

    curve = read_curve(Path("pool.csv"))                      # a file: time,gpus_total,gpus_running
    curve = on_grid(times, total, running, step_seconds=300)  # samples as they were taken

A slot of the grid is half-open and starts at a multiple of the step since the epoch, so the
windows of 1, 4 and 24 hours start with a slot. A slot without a sample holds NaN: it is not
known, and nothing fills it in. Several samples in one slot count as the worst of them: most
demand, least capacity.
"""

import csv
import gzip
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TextIO

import numpy as np
from numpy.typing import NDArray

from sublet.core.errors import Invalid

Floats = NDArray[np.float64]

HOUR_SECONDS: Final = 3_600
DAY_SECONDS: Final = 86_400
# They divide an hour, so that every window starts with a slot.
STEPS_SECONDS: Final = (60, 120, 180, 240, 300, 360, 600, 720, 900, 1_200, 1_800, 3_600)
_NAMED_FAULTS: Final = 20
_LONGEST_DAYS: Final = 20 * 366
# A time column of bare numbers counts in these, by its name; from a thousandth of an epoch on
# it is seconds or milliseconds since the epoch, whatever its name.
_UNITS: Final = {"day": DAY_SECONDS, "hour": HOUR_SECONDS, "min": 60}
_EPOCH_SECONDS: Final = 10**8
_EPOCH_MILLISECONDS: Final = 10**11


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the columns of a file are called. `pending` may be absent from the file."""

    time: str = "time"
    total: str = "gpus_total"
    running: str = "gpus_running"
    pending: str | None = "gpus_pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A line that could not be used, and why."""

    line: int
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One pool's history. Arrays have shape (slots,); NaN is a slot without a sample."""

    start: int  # seconds since the epoch, at which slot 0 starts
    step_seconds: int
    total: Floats  # healthy GPUs
    running: Floats  # GPUs that internal jobs hold; may exceed `total` where it is demand
    pending: Floats | None = None  # GPUs that internal jobs wait for
    unit_seconds: int | None = None  # what a bare number in the file's time column counts
    skipped: int = 0  # lines that could not be used
    faults: tuple[Fault, ...] = ()  # the first of them
    above_capacity: int = 0  # slots in which demand exceeds capacity

    def __len__(self) -> int:
        return len(self.running)

    @property
    def end(self) -> int:
        """The instant at which the last slot ends, in seconds since the epoch."""
        return self.start + len(self) * self.step_seconds

    @property
    def idle(self) -> Floats:
        """GPUs nobody used, never negative; NaN where not known."""
        return np.maximum(self.total - self.running, 0.0)

    def slot(self, instant: int) -> int:
        """Return the slot that holds `instant`, within 0 and the number of slots."""
        return min(max((instant - self.start) // self.step_seconds, 0), len(self))

    def without_days(self, days: Sequence[int]) -> "Curve":
        """Return this curve not knowing the days that start at these instants, UTC."""
        if not days:
            return self
        total, running = self.total.copy(), self.running.copy()
        pending = None if self.pending is None else self.pending.copy()
        for day in days:
            gap = slice(self.slot(day), self.slot(day + DAY_SECONDS))
            for values in (total, running, pending):
                if values is not None:
                    values[gap] = np.nan
        return replace(self, total=total, running=running, pending=pending)

    def instant(self, text: str) -> int:
        """Read an instant as the file writes its times. Returns seconds since the epoch.

        Raises:
            Invalid: it is neither a date, nor a date and time, nor a number as in the file.
        """
        try:
            return _instant(text, self.unit_seconds)
        except ValueError:
            number = "" if self.unit_seconds is None else ", or a number as in the time column"
            raise Invalid(
                f"{text[:40]!r} is not a time such as 2026-08-01 or 2026-08-01T12:00{number}"
            ) from None


def on_grid(
    times: NDArray[np.int64],
    total: Floats,
    running: Floats,
    pending: Floats | None = None,
    *,
    step_seconds: int,
) -> Curve:
    """Put samples on an even grid.

    Args:
        times: when each sample was taken, in seconds since the epoch, in any order, shape (samples,).
        total: healthy GPUs, shape (samples,).
        running: GPUs that internal jobs held, shape (samples,).
        pending: GPUs that internal jobs waited for, shape (samples,).
        step_seconds: one of `STEPS_SECONDS`.

    Raises:
        Invalid: there is no sample, or they lie more than twenty years apart.
    """
    assert step_seconds in STEPS_SECONDS, step_seconds
    if len(times) == 0:
        raise Invalid("there is not one sample")
    # A timer that rings a moment early still belongs to the slot it was set for.
    slots = (times + step_seconds // 20) // step_seconds
    first, last = int(slots.min()), int(slots.max())
    if (last - first) * step_seconds > _LONGEST_DAYS * DAY_SECONDS:
        raise Invalid("the first and the last time lie more than twenty years apart")
    at = slots - first
    length = last - first + 1

    def worst(values: Floats, reduce: np.ufunc) -> Floats:
        out = np.full(length, np.nan)
        reduce.at(out, at, values)
        return out

    capacity, demand = worst(total, np.fmin), worst(running, np.fmax)
    with np.errstate(invalid="ignore"):
        above = int(np.sum(demand > capacity))
    return Curve(
        start=first * step_seconds,
        step_seconds=step_seconds,
        total=capacity,
        running=demand,
        pending=None if pending is None else worst(pending, np.fmax),
        above_capacity=above,
    )


def read_curve(path: Path, *, columns: Columns = Columns(), strict: bool = False) -> Curve:
    """Read a demand curve from a CSV file with a header row, also one that is gzipped.

    Times are ISO 8601 (UTC where they name no zone), seconds or milliseconds since the epoch,
    or numbers that count what the column is called after (`hour`). Lines that cannot be used
    are skipped and counted; with `strict` the first of them is an error.

    Raises:
        Invalid: the file cannot be read, lacks a column, holds no sample, or its samples are
            more than an hour apart; the message says which and where.
    """
    try:
        with _opened(path) as file:
            rows = _Rows(file, path, columns, strict=strict)
            rows.read()
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise Invalid(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not rows.times:
        first = f"; {rows.faults[0]}" if rows.faults else ""
        raise Invalid(f"{path} holds no sample that can be used{first}")
    curve = on_grid(
        np.array(rows.times, dtype=np.int64),
        np.array(rows.total),
        np.array(rows.running),
        np.array(rows.pending) if rows.pending else None,
        step_seconds=_step_seconds(rows.times, path),
    )
    return replace(
        curve, unit_seconds=rows.unit_seconds, skipped=rows.skipped, faults=tuple(rows.faults)
    )


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if zipped:
            with gzip.open(raw, "rt", encoding="utf-8-sig", newline="") as text:
                yield text
        else:
            with path.open(encoding="utf-8-sig", newline="") as text:
                yield text


def _step_seconds(times: Sequence[int], path: Path) -> int:
    """Return the step of the grid: the usual distance of two samples, rounded up."""
    if len(times) < 2:
        return STEPS_SECONDS[-1]
    usual = float(np.median(np.diff(np.array(times, dtype=np.int64))))
    for step in STEPS_SECONDS:
        if usual <= step * 1.05:
            return step
    raise Invalid(
        f"{path}: samples are {usual / HOUR_SECONDS:.1f} h apart; the shortest window is an hour,"
        " so there must be one at least every hour"
    )


class _Rows:
    """The columns of a file, as they are read."""

    def __init__(self, file: TextIO, path: Path, columns: Columns, *, strict: bool) -> None:
        self._reader = csv.reader(file)
        self._path = path
        self._columns = columns
        self._strict = strict
        self.unit_seconds: int | None = None
        self.skipped = 0
        self.faults: list[Fault] = []
        self.times: list[int] = []
        self.total: list[float] = []
        self.running: list[float] = []
        self.pending: list[float] = []

    def read(self) -> None:
        header = [name.strip() for name in next(self._reader, [])]
        if not header:
            raise Invalid(f"{self._path} is empty: a demand curve starts with a header row")
        wanted = self._columns
        where = [self._find(header, name) for name in (wanted.time, wanted.total, wanted.running)]
        pending = header.index(wanted.pending) if wanted.pending in header else None
        if pending is not None:
            where.append(pending)
        for row in self._reader:
            if not row:
                continue
            try:
                self._take(row, len(header), where)
            except ValueError as error:
                self._fault(str(error))

    def _find(self, header: Sequence[str], name: str) -> int:
        if name in header:
            return header.index(name)
        raise Invalid(
            f"{self._path} has no column {name!r}; it has {', '.join(header)}:"
            " name the one you mean with --time, --total or --running"
        )

    def _take(self, row: Sequence[str], width: int, where: Sequence[int]) -> None:
        if len(row) != width:
            raise ValueError(f"{len(row)} fields where the header has {width}")
        first = not self.times and self.unit_seconds is None
        if first:
            self.unit_seconds = _unit_seconds(self._columns.time, row[where[0]])
        try:
            at = _instant(row[where[0]], self.unit_seconds)
        except ValueError:
            if first:
                self.unit_seconds = None
            raise ValueError(f"{row[where[0]][:40]!r} is not a time") from None
        names = (self._columns.total, self._columns.running, self._columns.pending)
        counts = [_count(row[i], str(name)) for i, name in zip(where[1:], names, strict=False)]
        if self.times and at <= self.times[-1]:
            same = "repeats the one before" if at == self.times[-1] else "goes back"
            raise ValueError(f"the time {row[where[0]][:40]} {same}")
        self.times.append(at)
        self.total.append(counts[0])
        self.running.append(counts[1])
        if len(counts) > 2:
            self.pending.append(counts[2])

    def _fault(self, why: str) -> None:
        fault = Fault(line=self._reader.line_num, why=why)
        if self._strict:
            raise Invalid(f"{self._path}, {fault}")
        self.skipped += 1
        if len(self.faults) < _NAMED_FAULTS:
            self.faults.append(fault)


def _count(text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text[:40]!r}, which is not a number") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} is {text[:40]}, which is not a count of GPUs")
    return number


def _unit_seconds(name: str, text: str) -> int | None:
    """Return what a bare number in the column `name` counts; None if `text` is not one."""
    try:
        float(text)
    except ValueError:
        return None
    return next((unit for word, unit in _UNITS.items() if word in name.lower()), 1)


def _instant(text: str, unit_seconds: int | None) -> int:
    """Return seconds since the epoch. Raises ValueError."""
    if unit_seconds is not None:
        try:
            number = float(text)
        except ValueError:
            pass
        else:
            if not 0 <= number < 10**14:
                raise ValueError(text)
            if number >= _EPOCH_MILLISECONDS:
                return int(number // 1000)
            return int(number if number >= _EPOCH_SECONDS else number * unit_seconds)
    at = datetime.fromisoformat(text.strip())
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
