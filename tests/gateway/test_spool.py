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
    assert list(read(left, Report.read)) == reports
    alive.write([report()])
    assert alive.left_behind() == [left]
    alive.close()


def test_a_file_goes_when_all_of_it_is_handed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_FILE_BYTES", 1)  # a file a write
    spool = opened(folder)
    first, second = spool.write([report(), report()]), spool.write([report()])
    assert first != second
    spool.forget(first, 1)
    spool._thread.submit(int).result()  # it has done what it was asked
    assert {spool._path(first), spool._path(second)} <= {*files(folder)}
    spool.forget(first, 1)
    spool._thread.submit(int).result()
    assert spool._path(first) not in files(folder)
    assert spool._path(second) in files(folder)
    spool.forget(second, 1)
    spool.close()
    assert files(folder) == []


def test_a_file_is_there_before_it_is_needed_and_does_not_grow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_FILE_BYTES", 4000)
    monkeypatch.setattr(room, "_ZEROS", bytes(1000))
    spool = opened(folder)
    reports = [report(number) for number in range(1, 100)]
    for one in reports:
        number = spool.write([one])
        if (ahead := spool._next) is not None:
            ahead.result()
            assert spool._path(number + 1).read_bytes() == bytes(4000)
        assert {path.stat().st_size for path in files(folder)} == {4000}
    assert number >= 3
    assert [one for path in files(folder) for one in read(path, Report.read)] == reports
    assert not list(folder.rglob("*.torn"))
    spool.close()


def test_without_room_for_a_file_ahead_what_fits_is_kept_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def nearly_full(file: int, data: bytes, at: int) -> int:
        if at + len(data) > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data, at)

    monkeypatch.setattr(os, "pwrite", nearly_full)
    spool = opened(folder)
    reports = [report(number) for number in range(1, 4)]
    for one in reports:
        spool.write([one])
    (path,) = files(folder)
    assert path.stat().st_size == spool._size < 100_000
    assert list(read(path, Report.read)) == reports
    spool.close()


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
        ends.append(spool._size)
    (path,) = files(folder)
    whole = path.read_bytes()
    assert whole[ends[-1] - 1] and not any(whole[ends[-1] :])
    at = data.draw(st.integers(0, ends[-1] - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
        intact = sum(end <= at for end in ends)
    else:
        damaged = bytearray(whole)
        damaged[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(damaged)
        intact = sum(end <= at for end in ends)
    assert list(read(path, Report.read)) == reports[:intact]
    # Once cut, it is a whole file; what was cut off is kept for whoever wants to look.
    end, torn = [0, *ends][intact], path.with_suffix(".torn")
    left = path.read_bytes()
    assert list(read(path, Report.read)) == reports[:intact]
    assert left == whole[:end]
    assert not torn.exists() or torn.read_bytes()
    spool.close()


def test_a_full_disk_keeps_nothing_of_what_it_could_not_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(folder)
    first, lost, last = report(1), report(2), report(3)
    spool.write([first])
    write = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        write(file, bytes(data)[:10], at)  # some of it fits
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        spool.write([lost])
    monkeypatch.setattr(os, "pwrite", write)
    spool.write([last])
    (path,) = files(folder)
    assert list(read(path, Report.read)) == [first, last]
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
