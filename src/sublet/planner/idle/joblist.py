"""A list of jobs as CSV: when each was submitted, for how long it ran, on how many GPUs.

A list that names no start says nothing of waiting: its jobs count from when they were submitted,
so it tells demand, which can exceed what there was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from sublet.core.errors import Invalid
from sublet.planner.idle.jobs import SCHEMA, Jobs, instants
from sublet.planner.idle.lines import Faults, Progress, Table, split


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the columns of a list are called. The optional ones may be absent from it."""

    submit: str = "submit_time"
    duration: str = "duration_s"
    gpus: str = "gpus"
    start: str = "start_time"  # optional
    pool: str = "pool"  # optional
    quota: str = "account"  # optional

    @property
    def needed(self) -> tuple[str, str, str]:
        return self.submit, self.duration, self.gpus

    @property
    def all(self) -> tuple[str, ...]:
        return *self.needed, self.start, self.pool, self.quota


_LONGEST_S: Final = 20 * 366 * 86_400


def is_header(line: str, columns: Columns) -> bool:
    names = {name.lower() for name in split(line, ",")}
    return {name.lower() for name in columns.needed} <= names


@dataclass(slots=True)
class Reading:
    """Several lists of jobs, read one after the other."""

    faults: Faults
    columns: Columns
    without_gpus: int = 0  # rows of jobs that asked for no GPU, left out
    _names: list[str] = field(default_factory=list)
    _frames: list[pl.DataFrame] = field(default_factory=list)

    def read(self, path: Path, *, pool: str, progress: Progress) -> tuple[int, int]:
        """Read one list. Returns (how many lines, how many rows of jobs with GPUs).

        Args:
            path: a CSV file with a header row.
            pool: whose jobs these are where the list has no such column.
            progress: told how far we are.

        Raises:
            Invalid: it lacks a column, or has a fault under `strict`.
        """
        place = len(self._names)
        self._names.append(str(path))
        table = Table(path, separator=",", progress=progress)
        rows = 0
        for block in table.blocks(self.columns.all, self.faults):
            missing = [name for name in self.columns.needed if name not in block.columns]
            if missing:
                raise Invalid(f"{path} has no column {', '.join(missing)}")
            frame = self._parse(block, place, pool)
            rows += frame.height
            self._frames.append(frame)
        return table.lines, rows

    def jobs(self) -> Jobs:
        if not self._frames:
            return Jobs(frame=pl.DataFrame(schema=SCHEMA))
        frame = pl.concat(self._frames)
        self._frames.clear()
        return Jobs(frame=frame.select(list(SCHEMA)[3:]))

    def _parse(self, block: pl.DataFrame, place: int, pool: str) -> pl.DataFrame:
        names = self.columns
        has_start = names.start in block.columns
        block = block.with_columns(
            s_submit=instants(block[names.submit]),
            s_start=instants(block[names.start]) if has_start else pl.lit(None, dtype=pl.Int64),
            s_seconds=pl.col(names.duration).cast(pl.Float64, strict=False).round(),
            s_gpus=pl.col(names.gpus).cast(pl.Float64, strict=False),
        )
        block = self._without_faults(block, place, has_start=has_start)
        start = pl.coalesce("s_start", "s_submit")
        frame = block.select(
            file=pl.lit(place, dtype=pl.UInt16),
            line="line",
            id=pl.lit(None, dtype=pl.String),
            submit="s_submit",
            start=start,
            end=start + pl.col("s_seconds").cast(pl.Int64),
            gpus=pl.col("s_gpus").ceil().cast(pl.Int64),
            pool=_text(block.columns, names.pool).replace("", pool).fill_null(pool),
            quota=_text(block.columns, names.quota).fill_null(""),
        )
        with_gpus = frame.filter(pl.col("gpus") > 0)
        self.without_gpus += frame.height - with_gpus.height
        return with_gpus

    def _without_faults(self, block: pl.DataFrame, place: int, *, has_start: bool) -> pl.DataFrame:
        names = self.columns
        seconds, gpus = pl.col("s_seconds"), pl.col("s_gpus")
        no_time, no_count = "which is not a time", "which is not a count of GPUs"
        faults = [
            (pl.col("s_submit").is_null(), _said(names.submit, no_time)),
            (
                seconds.is_null() | ~seconds.is_finite(),
                _said(names.duration, "which is no duration"),
            ),
            (seconds < 0, _said(names.duration, "which is negative")),
            (seconds > _LONGEST_S, _said(names.duration, "which is more than twenty years")),
            (gpus.is_null() | ~gpus.is_between(0, 10**9), _said(names.gpus, no_count)),
        ]
        if has_start:
            bad = pl.col("s_start").is_null() & (pl.col(names.start) != "")
            early = pl.col("s_start") < pl.col("s_submit")
            faults += [
                (bad, _said(names.start, no_time)),
                (early, _said(names.start, "before it was submitted")),
            ]
        wrong = block.select(pl.any_horizontal(*(is_so for is_so, _ in faults)).fill_null(False))
        if not wrong.to_series().any():
            return block
        why = pl.coalesce(pl.when(is_so).then(text) for is_so, text in faults)
        rows = block.filter(wrong.to_series()).with_columns(why=why)
        self.faults.add_rows(self._names[place], rows)
        return block.filter(~wrong.to_series())


def _said(name: str, what: str) -> pl.Expr:
    return pl.format("{} is '{}', {}", pl.lit(name), pl.col(name).str.head(40), pl.lit(what))


def _text(columns: Sequence[str], name: str) -> pl.Expr:
    return pl.col(name) if name in columns else pl.lit(None, dtype=pl.String)
