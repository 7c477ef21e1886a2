"""What was written is there after a crash; what was half written is not guessed."""

import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublet.core.errors import Misconfigured
from sublet.core.ids import new_id
from sublet.gateway import spool as room
from sublet.gateway.spool import Spool, read
from sublet.metering.report import Report
from sublet.metering.usage import Outcome, Usage

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def report(sequence: int = 1) -> Report:
    fact = Usage(
        id=new_id(), source="gateway:a", sequence=sequence, tenant_id=new_id(), model="m",
        outcome=Outcome.COMPLETED, happened_at=NOON,
    )  # fmt: skip
    return Report.write(fact, [])


def opened(folder: Path) -> Spool:
    spool = Spool(folder / "spool", new_id())
    spool.open()
    return spool


def files(folder: Path) -> list[Path]:
    return sorted((folder / "spool").glob("*.spool"))


def test_what_a_killed_run_wrote_is_read_by_the_next(folder: Path) -> None:
    dead = opened(folder)
    reports = [report(number) for number in range(1, 6)]
    dead.write(reports[:2])
    dead.write(reports[2:])
    os.close(dead._lock or 0)  # as the kernel does for a killed process
    alive = opened(folder)
    (left,) = alive.left_behind()
    assert list(read(left)) == reports
    alive.write([report()])
    assert alive.left_behind() == [left]
    alive.close()


def test_a_file_goes_when_all_of_it_is_handed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_FILE_BYTES", 1)  # a file a write
    spool = opened(folder)
    first, second = spool.write([report(), report()]), spool.write([report()])
    assert len(files(folder)) == 2
    spool.forget(first, 1)
    assert len(files(folder)) == 2
    spool.forget(first, 1)
    assert len(files(folder)) == 1
    spool.forget(second, 1)
    spool.close()
    assert files(folder) == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_torn_or_damaged_end_is_cut_and_set_aside(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = opened(folder)
    reports = [report(number) for number in range(1, 4)]
    ends = []
    for one in reports:
        spool.write([one])
        (path,) = files(folder)
        ends.append(path.stat().st_size)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
        intact = sum(end <= at for end in ends)
    else:
        damaged = bytearray(whole)
        damaged[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(damaged)
        intact = sum(end <= at for end in ends)
    assert list(read(path)) == reports[:intact]
    # Once cut, it is a whole file; what was cut off is kept for whoever wants to look.
    assert list(read(path)) == reports[:intact]
    assert path.stat().st_size == ([0, *ends][intact])
    spool.close()


def test_a_full_disk_keeps_nothing_of_what_it_could_not_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(folder)
    first, lost, last = report(1), report(2), report(3)
    spool.write([first])
    write = os.write

    def full(file: int, data: bytes) -> int:
        write(file, bytes(data)[:10])  # some of it fits
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        spool.write([lost])
    monkeypatch.setattr(os, "write", write)
    spool.write([last])
    (path,) = files(folder)
    assert list(read(path)) == [first, last]
    spool.close()


def test_one_gateway_a_folder(folder: Path) -> None:
    one = opened(folder)
    with pytest.raises(Misconfigured, match="another gateway uses the spool"):
        Spool(folder / "spool", new_id()).open()
    one.close()
    opened(folder).close()


def test_a_folder_that_cannot_be_made_is_said(folder: Path) -> None:
    (folder / "spool").write_text("a file")
    with pytest.raises(Misconfigured, match="cannot use the spool"):
        Spool(folder / "spool", new_id()).open()
