"""Slurm's accounting as it really looks: steps, arrays, cancelled, requeued, running."""

from pathlib import Path

import pytest

from sublet.core.errors import Invalid
from sublet.planner.idle.inputs import File, Names, Record, read_all
from sublet.planner.idle.sacct import array_tasks, gpus_of

HEADER = "JobIDRaw|JobID|Account|Partition|Submit|Start|End|State|AllocTRES|ReqTRES"
A100 = "billing=8,cpu=8,gres/gpu:a100=4,gres/gpu=4,mem=64G,node=1"


def read(folder: Path, *rows: str, strict: bool = False, header: str = HEADER) -> Record:
    file = folder / "sacct.txt"
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return read_all(
        [File(path=file)], names=Names(), strict=strict, progress=lambda _name, _done, _of: None
    )


def jobs_of(record: Record) -> list[tuple[str, int, int | None, int | None]]:
    """Return (pool, GPUs, start, end) of every job, in minutes of 1 January 2026."""

    def minutes(instant: int | None) -> int | None:
        return None if instant is None else (instant - 1_767_225_600) // 60

    ((_, jobs),) = record.jobs
    rows = jobs.frame.sort("submit", "start", nulls_last=True).iter_rows(named=True)
    return [(r["pool"], r["gpus"], minutes(r["start"]), minutes(r["end"])) for r in rows]


def row(
    job: str, start: str = "00:10", end: str = "00:20", state: str = "COMPLETED",
    tres: str = A100, *, array: str | None = None, submit: str = "00:00", partition: str = "main",
    asked: str = A100,
) -> str:  # fmt: skip
    def at(time: str) -> str:
        return f"2026-01-01T{time}:00" if ":" in time else time

    return (
        f"{job}|{array or job}|physics|{partition}|{at(submit)}|{at(start)}|{at(end)}|{state}"
        f"|{tres}|{asked}"
    )


@pytest.mark.parametrize(
    ("tres", "gpus"),
    [
        ("billing=8,cpu=8,gres/gpu:a100=8,gres/gpu=8,mem=64G,node=1", {"a100": 8}),
        ("cpu=8,gres/gpu=8", {"": 8}),
        ("gres/gpu:a100=4,gres/gpu:v100=2,gres/gpu=8", {"a100": 4, "v100": 2, "": 2}),
        ("gres/gpu:1g.10gb=3", {"1g.10gb": 3}),
        ("cpu=8,gres/gpumem=80G,gres/gpuutil=90,mem=1G", {}),
        ("gres/gpu=0", {}),
        ("", {}),
        ("gres/gpu=x", None),
        ("gres/gpu:a100=-1", None),
    ],
)
def test_tres_says_how_many_gpus_of_which_model(tres: str, gpus: dict[str, int] | None) -> None:
    assert gpus_of(tres) == gpus


@pytest.mark.parametrize(
    ("job", "tasks"),
    [("7_[1,5-20%4]", 17), ("7_[0-9:3]", 4), ("7_[3]", 1), ("7_3", 1), ("7_[...]", 1)],
)
def test_one_row_of_a_waiting_array_stands_for_its_tasks(job: str, tasks: int) -> None:
    assert array_tasks(job) == tasks


def test_jobs_hold_gpus_from_their_start_to_their_end(folder: Path) -> None:
    record = read(
        folder,
        row("1"),
        row("2", state="CANCELLED by 1017"),
        row("3", "Unknown", "Unknown", "PENDING", ""),
        row("4", end="Unknown", state="RUNNING"),
        row("5", "None", "00:05", "CANCELLED by 0", ""),
        row("6", "Unknown", "Unknown", "PENDING", "", array="6_[1-3]"),
        row("7", tres="billing=1,cpu=1,node=1", asked="cpu=1"),
        "",
    )
    assert sorted(jobs_of(record), key=str) == sorted(
        [
            ("a100", 4, 10, 20), ("a100", 4, 10, 20), ("a100", 4, None, None), ("a100", 4, 10, None),
            ("a100", 4, None, 5), ("a100", 12, None, None),
        ],
        key=str,
    )  # fmt: skip
    assert record.skipped == 0
    assert record.notes == ["1 job without GPUs left out"]


def test_steps_are_left_out_and_said(folder: Path) -> None:
    record = read(folder, row("1"), row("1.batch"), row("1.extern"), row("1.0"))
    assert jobs_of(record) == [("a100", 4, 10, 20)]
    assert "3 rows of job steps left out" in record.notes[0]


def test_a_requeued_job_counts_for_each_run_and_an_overlap_is_named(folder: Path) -> None:
    record = read(folder, row("1", "00:10", "00:30"), row("1", "00:40", "00:50"))
    assert jobs_of(record) == [("a100", 4, 10, 30), ("a100", 4, 40, 50)]
    assert record.skipped == 0
    record = read(folder, row("1", "00:10", "00:45"), row("1", "00:40", "00:50"))
    assert jobs_of(record) == [("a100", 4, 10, 40), ("a100", 4, 40, 50)]
    assert [str(fault).partition(", ")[2] for fault in record.faults] == [
        "line 2: job 1 runs on when line 3 starts it again: counted until then"
    ]


def test_two_files_that_overlap_tell_each_job_once(folder: Path) -> None:
    first, second = folder / "january.txt", folder / "february.txt"
    first.write_text(f"{HEADER}\n{row('1', end='Unknown', state='RUNNING')}\n{row('2')}\n")
    second.write_text(f"{HEADER}\n{row('1', end='01:00')}\n{row('3')}\n")
    for files in ([first, second], [second, first]):
        record = read_all(
            [File(path=path) for path in files],
            names=Names(), strict=False, progress=lambda _name, _done, _of: None,
        )  # fmt: skip
        assert jobs_of(record) == [("a100", 4, 10, 20), ("a100", 4, 10, 20), ("a100", 4, 10, 60)]
        assert record.notes == ["1 row told twice: the better one counts"]


def test_the_pool_is_the_model_or_else_the_partition(folder: Path) -> None:
    untyped = "cpu=8,gres/gpu=2"
    record = read(
        folder,
        row("1"),
        row("2", tres=untyped, submit="00:01"),  # of a partition that is otherwise all a100
        row("3", tres=untyped, submit="00:02", partition="old"),
        row("4", tres="gres/gpu:h100=1,gres/gpu:v100=2", submit="00:03"),
    )
    assert sorted((pool, gpus) for pool, gpus, _, _ in jobs_of(record)) == [
        ("a100", 4), ("h100", 1), ("main", 2), ("old", 2), ("v100", 2),
    ]  # fmt: skip
    record = read(folder, row("1"), row("2", tres=untyped, submit="00:01"))
    assert [pool for pool, _, _, _ in jobs_of(record)] == ["a100", "a100"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1|1|physics", "3 fields where the header has 10"),
        (row("1") + "|more", "11 fields where the header has 10"),
        (row("1", start="yesterday"), "Start is 'yesterday', which is not a time"),
        (row("1", end="25:00"), "End is '2026-01-01T25:00:00', which is not a time"),
        (row("1", "00:20", "00:10"), "it ends before it starts"),
        (
            row("1").replace("2026-01-01T00:10", "1970-01-01T00:00"),
            "it ran for more than ten years",
        ),
        (row("1", end="Unknown"), "it is COMPLETED, but its End is 'Unknown'"),
        (row("1", start="Unknown"), "it is COMPLETED, but its Start is 'Unknown'"),
        (row("1", tres="gres/gpu=many"), "AllocTRES is not understood: gres/gpu=many"),
        (row(""), "there is no job's id"),
        (row("1", state=""), "State is ''"),
    ],
)
def test_a_malformed_line_is_named_by_number_or_fails(folder: Path, line: str, why: str) -> None:
    record = read(folder, row("1"), line, row("2"))
    assert record.skipped == 1
    (fault,) = record.faults
    assert fault.line == 3
    assert fault.why.startswith(why)
    assert len(jobs_of(record)) == 2
    with pytest.raises(Invalid, match="line 3: "):
        read(folder, row("1"), line, row("2"), strict=True)


def test_times_may_be_seconds_since_the_epoch_or_name_their_zone(folder: Path) -> None:
    seconds = row("1").replace("2026-01-01T00:10:00", "1767226200")
    zoned = row("2", submit="00:01").replace("2026-01-01T00:10:00", "2026-01-01T01:10:00+01:00")
    assert jobs_of(read(folder, seconds, zoned)) == [("a100", 4, 10, 20), ("a100", 4, 10, 20)]


def test_what_sacct_prints_with_p_or_from_windows_is_read_as_well(folder: Path) -> None:
    record = read(folder, row("1") + "|\r", header=HEADER + "|\r")
    assert jobs_of(record) == [("a100", 4, 10, 20)]


def test_a_name_in_another_encoding_loses_no_job(folder: Path) -> None:
    file = folder / "sacct.txt"
    line = row("1").replace("physics", "f\xedsica")
    file.write_bytes(f"{HEADER}\n{line}\n".encode("latin-1"))
    record = read_all(
        [File(path=file)], names=Names(), strict=True, progress=lambda _name, _done, _of: None
    )
    assert jobs_of(record) == [("a100", 4, 10, 20)]
