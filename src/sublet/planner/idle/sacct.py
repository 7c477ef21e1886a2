"""Slurm's accounting, as `sacct --parsable2 --allocations` prints it.

What its columns mean is in sacct(1). A job has a `Start` once it held its allocation and an
`End` once it gave it back; `Unknown` and `None` stand for neither. `AllocTRES` says what it
held: `gres/gpu=8` in all and, where the cluster counts by model, `gres/gpu:a100=8` besides.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from sublet.core.errors import Invalid
from sublet.planner.idle.jobs import SCHEMA, Jobs, instants, settle
from sublet.planner.idle.lines import Faults, Progress, Table, split

FIELDS: Final = (
    "JobIDRaw", "JobID", "Account", "Partition", "Submit", "Eligible", "Start", "End", "State",
    "AllocTRES", "ReqTRES",
)  # fmt: skip
COMMAND: Final = (
    "sacct --allusers --allocations --parsable2 --starttime 2026-01-01 --endtime now"
    f" --format {','.join(FIELDS)}"
)
_NEEDED: Final = ("State", "Start", "End", "AllocTRES")
_WANTED: Final = (
    *_NEEDED, "JobID", "JobIDRaw", "Cluster", "Account", "Partition", "Submit", "Eligible",
    "ReqTRES",
)  # fmt: skip
_NO_TIME: Final = ("", "Unknown", "None", "N/A", "NONE")
# Whoever is in one of these has given its GPUs back.
_OVER: Final = (
    "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY",
    "DEADLINE", "BOOT_FAIL", "REVOKED",
)  # fmt: skip
# Whoever is or was in one of these has held its GPUs; others may end before they start.
_HELD: Final = (
    "RUNNING", "SUSPENDED", "COMPLETING", "COMPLETED", "TIMEOUT", "PREEMPTED", "OUT_OF_MEMORY",
)  # fmt: skip
_GPUS: Final = re.compile(r"(?:^|,)gres/gpu(?::([^=,]*))?=([^,]*)")
_RANGE: Final = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
_LONGEST_S: Final = 10 * 366 * 86_400
# A partition whose GPUs are nearly all of one model is that model's, also where a row does
# not say so.
_NEARLY_ALL: Final = 0.95


def is_header(line: str) -> bool:
    """Say whether this is the first line of what `sacct -P` prints."""
    names = {name.lower() for name in split(line, "|")}
    return "|" in line and bool(names & {"jobid", "jobidraw"})


@dataclass(slots=True)
class Reading:
    """Several files of one cluster's accounting, read one after the other."""

    faults: Faults
    pool_column: str | None = None  # instead of the GPU's model, or else the partition
    quota_column: str = "Account"
    steps: int = 0  # rows of job steps, left out
    without_gpus: int = 0  # rows of jobs that asked for no GPU, left out
    _names: list[str] = field(default_factory=list)
    _frames: list[pl.DataFrame] = field(default_factory=list)
    _tres: dict[str, int] = field(default_factory=dict)

    def read(self, path: Path, *, progress: Progress) -> tuple[int, int]:
        """Read one file. Returns (how many lines, how many rows of jobs with GPUs).

        Raises:
            Invalid: it is not what sacct prints, lacks a column, or has a fault under `strict`.
        """
        place = len(self._names)
        self._names.append(str(path))
        wanted = [*_WANTED, self.quota_column, *filter(None, [self.pool_column])]
        table = Table(path, separator="|", progress=progress)
        rows = 0
        for block in table.blocks(list(dict.fromkeys(wanted)), self.faults):
            if not rows:
                self._check(path, block.columns)
            frame = self._parse(block, place)
            rows += frame.height
            self._frames.append(frame)
        return table.lines, rows

    def jobs(self) -> Jobs:
        """Return what was read, one row for each run of a job."""
        if not self._frames:
            return Jobs(frame=pl.DataFrame(schema=SCHEMA))
        frame, doubles = settle(pl.concat(self._frames), self._names, self.faults)
        self._frames.clear()
        frame = frame.join(self._models(), on="tres").with_columns(
            gpus=pl.col("count") * pl.col("tasks")
        )
        return Jobs(frame=self._pools(frame).select(list(SCHEMA)[3:]), doubles=doubles)

    def _check(self, path: Path, columns: Sequence[str]) -> None:
        needed = [*_NEEDED, *filter(None, [self.pool_column])]
        missing = [name for name in needed if name not in columns]
        if not {"JobID", "JobIDRaw"} & set(columns):
            missing.append("JobIDRaw")
        if self.quota_column not in columns and self.quota_column != "Account":
            missing.append(self.quota_column)
        if missing:
            raise Invalid(f"{path} has no column {', '.join(missing)}: print it with `{COMMAND}`")

    def _parse(self, block: pl.DataFrame, place: int) -> pl.DataFrame:
        has = set(block.columns)

        def column(name: str) -> pl.Expr:
            return pl.col(name) if name in has else pl.lit(None, dtype=pl.String)

        def times(name: str) -> pl.Series:
            text = block[name]
            return instants(text.set(text.is_in(_NO_TIME), None)).alias(name.lower())

        submitted = [times(name) for name in ("Eligible", "Submit") if name in has]
        block = block.with_columns(
            times("Start"),
            times("End"),
            job=pl.coalesce(column("JobID"), column("JobIDRaw")),
            raw=pl.coalesce(column("JobIDRaw"), column("JobID")),
            state=pl.col("State").str.extract("^([A-Z_]+)"),
            submit=pl.coalesce([*submitted, pl.lit(None, dtype=pl.Int64)]),
        )
        steps = block["job"].str.contains(".", literal=True)
        self.steps += int(steps.sum())
        block = self._without_faults(block.filter(~steps), place)
        block = block.with_columns(
            # Before it starts, what sacct gives as its start is when it may.
            start=pl.when(pl.col("state") != "PENDING").then(pl.col("start")),
        ).with_columns(
            text=pl.when(pl.col("start").is_not_null())
            .then(pl.col("AllocTRES"))
            .otherwise(column("ReqTRES").fill_null(""))
        )
        frame = block.select(
            file=pl.lit(place, dtype=pl.UInt16),
            line="line",
            id=pl.col("raw")
            if "Cluster" not in has
            else pl.concat_str("Cluster", pl.lit(" "), "raw"),
            submit="submit",
            start="start",
            end="end",
            tres=self._coded(block["text"]),
            tasks=_tasks(block),
            partition=column("Partition").fill_null(""),
            pool=column(self.pool_column) if self.pool_column else pl.lit(None, dtype=pl.String),
            quota=column(self.quota_column).fill_null(""),
        )
        with_gpus = frame.filter(pl.col("tres").is_in(self._codes_with_gpus()))
        self.without_gpus += frame.height - with_gpus.height
        return with_gpus

    def _without_faults(self, block: pl.DataFrame, place: int) -> pl.DataFrame:
        start, end, state = pl.col("start"), pl.col("end"), pl.col("state")

        def no_time(name: str, parsed: pl.Expr) -> pl.Expr:
            return parsed.is_null() & ~pl.col(name).is_in(_NO_TIME)

        faults = (
            (pl.col("raw") == "", pl.lit("there is no job's id")),
            (state.is_null(), pl.format("State is '{}'", pl.col("State").str.head(40))),
            (
                no_time("Start", start),
                pl.format("Start is '{}', which is not a time", pl.col("Start").str.head(40)),
            ),
            (
                no_time("End", end),
                pl.format("End is '{}', which is not a time", pl.col("End").str.head(40)),
            ),
            (end < start, pl.format("it ends before it starts: {} and {}", "Start", "End")),
            (
                end - start > _LONGEST_S,
                pl.format("it ran for more than ten years: {} to {}", "Start", "End"),
            ),
            (
                start.is_null() & state.is_in(_HELD),
                pl.format("it is {}, but its Start is '{}'", "state", "Start"),
            ),
            (
                start.is_not_null() & end.is_null() & state.is_in(_OVER),
                pl.format("it is {}, but its End is '{}'", "state", "End"),
            ),
            (
                ~pl.col("AllocTRES").is_in(self._understood(block["AllocTRES"])),
                pl.format("AllocTRES is not understood: {}", pl.col("AllocTRES").str.head(80)),
            ),
        )
        wrong = block.select(pl.any_horizontal(*(is_so for is_so, _ in faults)).fill_null(False))
        bad = wrong.to_series()
        if not bad.any():
            return block
        why = pl.coalesce(pl.when(is_so).then(text) for is_so, text in faults)
        self.faults.add_rows(self._names[place], block.filter(bad).with_columns(why=why))
        return block.filter(~bad)

    @staticmethod
    def _understood(column: pl.Series) -> list[str]:
        return [text for text in column.unique() if gpus_of(text) is not None]

    def _coded(self, column: pl.Series) -> pl.Series:
        """Return each text's number: there are few different ones, and they are long."""
        for text in column.unique():
            self._tres.setdefault(text, len(self._tres))
        return column.replace_strict(
            list(self._tres), list(self._tres.values()), return_dtype=pl.UInt32
        )

    def _codes_with_gpus(self) -> list[int]:
        return [code for text, code in self._tres.items() if gpus_of(text)]

    def _models(self) -> pl.DataFrame:
        """Return columns `tres`, `model` (null: not said) and `count`: a row a model."""
        rows = [
            (code, model or None, count)
            for text, code in self._tres.items()
            for model, count in (gpus_of(text) or {}).items()
        ]
        schema = {"tres": pl.UInt32, "model": pl.String, "count": pl.Int64}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _pools(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.pool_column is not None:
            return frame.with_columns(pool=pl.col("pool").replace("", "gpu").fill_null("gpu"))
        usual = _usual_models(frame)
        return frame.with_columns(
            pool=pl.coalesce(
                "model",
                pl.col("partition").replace_strict(usual, default=None, return_dtype=pl.String),
                pl.when(pl.col("partition") != "").then(pl.col("partition")),
                pl.lit("gpu"),
            )
        )


def _usual_models(frame: pl.DataFrame) -> dict[str, str]:
    """Return {partition: model} of those partitions that have one model, or nearly."""
    counts = frame.filter(pl.col("model").is_not_null()).group_by("partition", "model").len("rows")
    shares = counts.with_columns(share=pl.col("rows") / pl.col("rows").sum().over("partition"))
    usual = shares.filter(pl.col("share") >= _NEARLY_ALL)
    return dict(usual.select("partition", "model").iter_rows())


def gpus_of(tres: str | None) -> dict[str, int] | None:
    """Return {model: GPUs} of a TRES text, "" for what names no model; None if malformed.

    >>> gpus_of("cpu=64,gres/gpu:a100=8,gres/gpu=8,mem=512G")
    {'a100': 8}
    """
    found: dict[str, int] = {}
    for model, count in _GPUS.findall(tres or ""):
        if not count.isascii() or not count.isdigit():
            return None
        found[model] = found.get(model, 0) + int(count)
    unnamed = found.pop("", 0) - sum(found.values())
    if unnamed > 0:
        found[""] = unnamed
    return {model: count for model, count in found.items() if count}


def _tasks(block: pl.DataFrame) -> pl.Series:
    """Return how many jobs each row stands for: more than one only of arrays that wait."""
    arrays = (block["start"].is_null() & block["job"].str.contains("[", literal=True)).arg_true()
    ones = pl.repeat(1, block.height, dtype=pl.Int64, eager=True)
    return ones.scatter(arrays, [array_tasks(job) for job in block["job"].gather(arrays)])


def array_tasks(job: str) -> int:
    """Return how many tasks of an array one row of waiting ones stands for.

    >>> array_tasks("4711_[1,5-20%4]")
    17
    """
    inner = job.partition("[")[2].partition("]")[0].partition("%")[0]
    return max(sum(_in_ranges(inner)), 1)


def _in_ranges(text: str) -> Iterator[int]:
    for first, last, step in _RANGE.findall(text):
        yield len(range(int(first), int(last or first) + 1, int(step or 1)))
