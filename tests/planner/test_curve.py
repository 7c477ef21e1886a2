"""Demand curves: what a file may look like, and what is said of one that does not."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from sublet.core.errors import Invalid
from sublet.planner.curve import STEPS_SECONDS, Columns, Curve, on_grid, read_curve

HEADER = "time,gpus_total,gpus_running\n"


def read(folder: Path, text: str, *, strict: bool = False, columns: Columns | None = None) -> Curve:
    path = folder / "pool.csv"
    path.write_text(text, encoding="utf-8")
    return read_curve(path, columns=columns or Columns(), strict=strict)


def test_a_file_becomes_an_even_grid_with_gaps(folder: Path) -> None:
    curve = read(
        folder,
        HEADER
        + "2026-01-01 00:00:00,8,3\n2026-01-01T00:10:00Z,8,4\n2026-01-01T02:20:00+02:00,8,9\n"
        + "2026-01-01 00:50:00,8,5\n",
    )
    assert (curve.start, curve.step_seconds, len(curve)) == (1_767_225_600, 600, 6)
    assert curve.running.tolist()[:3] == [3, 4, 9] and np.isnan(curve.running[3:5]).all()
    assert curve.idle.tolist()[:3] == [5, 4, 0] and curve.above_capacity == 1
    assert curve.skipped == 0 and curve.pending is None


def test_a_zipped_file_with_names_of_its_own(folder: Path) -> None:
    path = folder / "pool.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("hour,have,want,queue\n0,8,1,2\n1,8,2,0\n2,8,3,1\n")
    columns = Columns(time="hour", total="have", running="want", pending="queue")
    curve = read_curve(path, columns=columns)
    assert (curve.start, curve.step_seconds, len(curve)) == (0, 3600, 3)
    assert curve.pending is not None and curve.pending.tolist() == [2, 0, 1]
    assert curve.instant("2") == curve.instant("1970-01-01T02:00") == 7200


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("2026-01-01 01:00:00,8", "2 fields where the header has 3"),
        ("yesterday,8,1", "'yesterday' is not a time"),
        (",8,1", "'' is not a time"),
        ("2026-01-01 01:00:00,8,many", "gpus_running is 'many', which is not a number"),
        ("2026-01-01 01:00:00,-8,1", "gpus_total is -8, which is not a count of GPUs"),
        ("2026-01-01 01:00:00,nan,1", "gpus_total is nan, which is not a count of GPUs"),
        ("2026-01-01 00:10:00,8,1", "the time 2026-01-01 00:10:00 repeats the one before"),
        ("2025-12-31 00:00:00,8,1", "the time 2025-12-31 00:00:00 goes back"),
    ],
)
def test_a_line_that_is_no_sample_is_named(folder: Path, line: str, why: str) -> None:
    text = HEADER + f"2026-01-01,8,1\n2026-01-01 00:10:00,8,2\n{line}\n2026-01-01 01:10:00,8,3\n"
    curve = read(folder, text)
    assert curve.skipped == 1 and [str(fault) for fault in curve.faults] == [f"line 4: {why}"]
    with pytest.raises(Invalid, match=r"pool.csv, line 4: ") as refused:
        read(folder, text, strict=True)
    assert str(refused.value).endswith(why)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        (HEADER, "holds no sample that can be used"),
        (HEADER + "x,1,1\n", "holds no sample that can be used; line 2: 'x' is not a time"),
        ("time,total\n2026-01-01,1\n", "has no column 'gpus_total'; it has time, total"),
        (HEADER + "2026-01-01,8,1\n2026-01-02,8,1\n2026-01-03,8,1\n", "samples are 24.0 h apart"),
        (
            HEADER + "1926-01-01,8,1\n1926-01-01 01:00,8,1\n1926-01-01 02:00,8,1\n2026-01-01,8,1\n",
            "twenty years",
        ),
    ],
)
def test_a_file_that_is_no_curve_is_refused(folder: Path, text: str, why: str) -> None:
    with pytest.raises(Invalid) as refused:
        read(folder, text)
    assert why in str(refused.value)


def test_a_file_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(Invalid, match="No such file"):
        read_curve(folder / "none.csv")


def test_several_samples_in_a_slot_count_as_the_worst() -> None:
    times = np.array([0, 20, 70, 59])
    curve = on_grid(
        times, np.array([8.0, 6, 8, 8]), np.array([1.0, 2, 3, 4]), step_seconds=60
    )  # the last comes a moment before its minute
    assert curve.total.tolist() == [6, 8] and curve.running.tolist() == [2, 4]


def test_every_step_divides_an_hour() -> None:
    assert all(3600 % step == 0 for step in STEPS_SECONDS)


def test_a_day_can_be_forgotten(folder: Path) -> None:
    lines = "".join(f"2026-01-0{1 + h // 24} {h % 24:02}:00,8,{h % 7}\n" for h in range(72))
    curve = read(folder, HEADER + lines)
    without = curve.without_days([curve.instant("2026-01-02")])
    assert np.isnan(without.running[24:48]).all() and np.isnan(without.total[24:48]).all()
    assert np.isfinite(without.running[[23, 48]]).all() and np.isfinite(curve.running).all()
    assert len(without) == len(curve) == 72
    with pytest.raises(Invalid, match="is not a time such as"):
        curve.instant("12")
