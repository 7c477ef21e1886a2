"""What `sublet audit` is given: files of three kinds, told apart by their first line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from sublet.core.errors import Invalid
from sublet.planner.curve import Columns as CurveColumns
from sublet.planner.curve import Curve, read_curve
from sublet.planner.idle import joblist, sacct
from sublet.planner.idle.jobs import Jobs
from sublet.planner.idle.lines import Faults, LineFault, first_line, split

# Called with which file is read, and how many of its bytes of how many.
Progress = Callable[[str, int, int], None]

_LONG_RUN_S: Final = 30 * 86_400


class Kind(StrEnum):
    SACCT = "sacct"  # what `sacct -P` prints
    CURVE = "demand curve"  # how many GPUs there were and ran, sample by sample
    LIST = "job list"  # when jobs were submitted, how long they ran, on how many GPUs


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file to read; `pool` names whose it is, where it does not say so itself."""

    path: Path
    pool: str | None = None

    @property
    def pool_name(self) -> str:
        return self.pool or self.path.name.partition(".")[0] or "gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What columns are called."""

    curve: CurveColumns = field(default_factory=CurveColumns)
    jobs: joblist.Columns = field(default_factory=joblist.Columns)
    sacct_pool: str | None = None
    sacct_quota: str = "Account"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRead:
    """What became of one file."""

    name: str
    kind: Kind
    lines: int | None  # None: not counted
    rows: int  # that were used
    skipped: int  # lines with a fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything that the files say, read and settled."""

    files: Sequence[FileRead]
    jobs: Sequence[tuple[Kind, Jobs]]  # each is one record of what ran
    curves: Mapping[str, Sequence[Curve]]  # by pool
    faults: Sequence[LineFault]  # the first of each file
    skipped: int
    notes: Sequence[str]


def kind_of(path: Path, names: Names) -> Kind:
    """Raises Invalid: it cannot be read, is empty, or is none of the three."""
    line = first_line(path)
    if sacct.is_header(line):
        return Kind.SACCT
    columns = {name.lower() for name in split(line, ",")}
    curve = names.curve
    if {curve.time.lower(), curve.total.lower(), curve.running.lower()} <= columns:
        return Kind.CURVE
    if joblist.is_header(line, names.jobs):
        return Kind.LIST
    if "|" in line:
        raise Invalid(
            f"{path} does not begin with sacct's header row: print it with `{sacct.COMMAND}`"
            " and without --noheader"
        )
    raise Invalid(
        f"{path} has the columns {', '.join(split(line, ','))[:200]}: a demand curve has"
        f" {curve.time}, {curve.total} and {curve.running} (else name its columns with --time,"
        f" --total and --running), a job list has {', '.join(names.jobs.needed)} (else"
        " --submit, --duration and --gpus), and sacct's output begins with JobID or JobIDRaw"
    )


def read_all(files: Sequence[File], *, names: Names, strict: bool, progress: Progress) -> Record:
    """Read every file.

    Raises:
        Invalid: one cannot be read, is empty, is of no known kind, or holds nothing of use; or
            has a fault under `strict`. The message says which, and which line.
    """
    kinds = [kind_of(file.path, names) for file in files]
    faults = Faults(strict=strict)
    slurm = sacct.Reading(
        faults=faults, pool_column=names.sacct_pool, quota_column=names.sacct_quota
    )
    lists = joblist.Reading(faults=faults, columns=names.jobs)
    curves: dict[str, list[Curve]] = {}
    read: list[FileRead] = []
    for file, kind in zip(files, kinds, strict=True):
        name = str(file.path)

        def told(done: int, of: int, name: str = name) -> None:
            progress(name, done, of)

        told(0, 0)
        lines: int | None
        match kind:
            case Kind.SACCT:
                lines, rows = slurm.read(file.path, progress=told)
            case Kind.LIST:
                lines, rows = lists.read(file.path, pool=file.pool_name, progress=told)
            case Kind.CURVE:
                curve = read_curve(file.path, columns=names.curve, strict=strict)
                curves.setdefault(file.pool_name, []).append(curve)
                lines, rows = None, int(np.isfinite(curve.running).sum())
                faults.add_counted(
                    name, ((f.line, f.why) for f in curve.faults), count=curve.skipped
                )
        read.append(FileRead(name=name, kind=kind, lines=lines, rows=rows, skipped=0))
    jobs = [(Kind.SACCT, slurm.jobs()), (Kind.LIST, lists.jobs())]
    jobs = [(kind, found) for kind, found in jobs if kind in kinds]
    for done in read:
        if not done.rows:
            raise Invalid(_nothing_in(done, slurm, lists, faults))
    return Record(
        files=[
            FileRead(
                name=file.name, kind=file.kind, lines=file.lines, rows=file.rows,
                skipped=faults.count(file.name),
            )
            for file in read
        ],
        jobs=jobs,
        curves=curves,
        faults=faults.named,
        skipped=faults.count(),
        notes=_notes(slurm, lists, jobs, curves),
    )  # fmt: skip


def _nothing_in(
    file: FileRead, slurm: sacct.Reading, lists: joblist.Reading, faults: Faults
) -> str:
    if faults.count(file.name):
        first = next(str(fault) for fault in faults.named if fault.file == file.name)
        return f"{file.name} holds no line that can be used; {first}"
    if slurm.without_gpus or lists.without_gpus:
        return (
            f"{file.name} holds no job with GPUs: does AllocTRES show gres/gpu? Slurm records"
            " it when AccountingStorageTRES names it"
            if file.kind is Kind.SACCT
            else f"{file.name} holds no job with GPUs"
        )
    return f"{file.name} is empty: it has a header row and nothing below it"


def _notes(
    slurm: sacct.Reading,
    lists: joblist.Reading,
    jobs: Sequence[tuple[Kind, Jobs]],
    curves: Mapping[str, Sequence[Curve]],
) -> list[str]:
    notes = []
    if slurm.steps:
        notes.append(
            f"{_many(slurm.steps, 'row')} of job steps left out: --allocations was not given"
        )
    without = slurm.without_gpus + lists.without_gpus
    if without:
        notes.append(f"{_many(without, 'job')} without GPUs left out")
    for _, found in jobs:
        if found.doubles:
            notes.append(f"{_many(found.doubles, 'row')} told twice: the better one counts")
        last = found.last_known
        if last is not None:
            long = found.frame.filter(
                pl.col("end").is_null() & (pl.col("start") < last - _LONG_RUN_S)
            ).height
            if long:
                notes.append(
                    f"{_many(long, 'job')} said to run for more than 30 days and not over: if"
                    " they are gone, `sacctmgr show runawayjobs` mends the record"
                )
    if any(kind is Kind.LIST for kind, _ in jobs) and not _has_starts(jobs):
        notes.append(
            "a job list without start times: its jobs count from when they were submitted, so it"
            " tells demand, not use"
        )
    for pool, of_pool in curves.items():
        above = sum(curve.above_capacity for curve in of_pool)
        if above:
            notes.append(f"pool {pool}: {_many(above, 'sample')} with more demand than GPUs")
    return notes


def _has_starts(jobs: Sequence[tuple[Kind, Jobs]]) -> bool:
    return any(
        kind is Kind.LIST and bool((found.frame["start"] != found.frame["submit"]).any())
        for kind, found in jobs
    )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
