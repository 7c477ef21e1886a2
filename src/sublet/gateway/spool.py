"""What a gateway has used and not yet handed over, kept on its own disk.

One folder a gateway's name, with files `<instance>-<number>.spool` in it. A file is a run of
records, each four bytes of length, four of CRC-32, and that many bytes of a report's line, all
little-endian. Records are only added; several are brought to the disk by one `fdatasync`. What
a crash left half written at the end of a file is cut off: it was promised to nobody.

A file whose records have all been handed over is removed. A crash may come between the two,
so the next run hands some over again, and their ids keep them from counting twice.
"""

import fcntl
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

from sublet.core.errors import Invalid, Misconfigured
from sublet.core.failpoint import failpoint
from sublet.metering.report import Report

_HEAD: Final = struct.Struct("<II")
_LONGEST: Final = 1 << 20  # of one record; a longer length is garbage
_FILE_BYTES: Final = 8 << 20  # then the next file begins
_NAME: Final = re.compile(r"([0-9a-f-]{36})-([0-9]{6})\.spool")


class Spool:
    """Sync: one thread writes, and the same or another one forgets."""

    def __init__(self, folder: Path, instance: UUID) -> None:
        self._folder = folder
        self._instance = instance
        self._number = 0
        self._file: int | None = None
        self._size = 0
        self._left: dict[int, int] = {}  # file number: its records that were not handed over
        self._counting = threading.Lock()
        self._lock: int | None = None

    def open(self) -> None:
        """Take the folder.

        Raises:
            Misconfigured: it cannot be made or written, or another gateway uses it.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(
                self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(
                f"another gateway uses the spool {self._folder}: stop it, or give this one"
                " another name or folder"
            ) from None
        except OSError as error:
            raise Misconfigured(
                f"cannot use the spool {self._folder}: {error.strerror or error};"
                " make it writable, or choose another folder"
            ) from None

    def close(self) -> None:
        """Close the files, and remove what was handed over."""
        self._rotate()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ── writing ──────────────────────────────────────────────────────────────────────────

    def write(self, reports: Sequence[Report]) -> int:
        """Add these and wait for the disk; return the number of their file, for `forget`.

        Raises:
            OSError: the disk is full or read-only; none of them is kept.
        """
        if self._size >= _FILE_BYTES:
            self._rotate()
        data = b"".join(
            part
            for report in reports
            for part in (_HEAD.pack(len(report.line), zlib.crc32(report.line)), report.line)
        )
        failpoint("gateway.spool.before_write")
        file = self._current()
        try:
            written = 0
            while written < len(data):
                written += os.write(file, memoryview(data)[written:])
            failpoint("gateway.spool.written")
            os.fdatasync(file)
        except OSError:
            # Nothing half written may stand before what comes next.
            try:
                os.ftruncate(file, self._size)
                os.lseek(file, self._size, os.SEEK_SET)
            except OSError:
                self._rotate()  # what follows goes into another file
            raise
        failpoint("gateway.spool.safe")
        self._size += len(data)
        with self._counting:
            self._left[self._number] = self._left.get(self._number, 0) + len(reports)
        return self._number

    def forget(self, number: int, records: int) -> None:
        """Note that so many records of a file were handed over."""
        with self._counting:
            self._left[number] -= records
            done = not self._left[number] and number != self._number
            if done:
                del self._left[number]
        if done:
            self._path(number).unlink(missing_ok=True)

    def _current(self) -> int:
        if self._file is None:
            path = self._path(self._number)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._size = 0
            folder = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)  # its name, too, must outlive a power cut
            finally:
                os.close(folder)
        return self._file

    def _rotate(self) -> None:
        if self._file is None:
            return
        os.close(self._file)
        self._file = None
        with self._counting:
            done = not self._left.get(self._number)
            if done:
                self._left.pop(self._number, None)
            self._number += 1
        if done:
            self._path(self._number - 1).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._instance}-{number:06d}.spool"

    # ── what earlier runs left ───────────────────────────────────────────────────────────

    def left_behind(self) -> list[Path]:
        """Return the files of earlier runs, oldest first."""
        found = [
            (path.stat().st_mtime_ns, path)
            for path in self._folder.iterdir()
            if (match := _NAME.fullmatch(path.name)) and match[1] != str(self._instance)
        ]
        return [path for _, path in sorted(found)]


def read(path: Path) -> Iterator[Report]:
    """Yield the reports of a file, up to what was half written or is damaged.

    What cannot be trusted is never guessed: the rest of the file is set aside beside it, as
    `<name>.torn`, and the numbers that are missing show in `sublet verify`.
    """
    data = path.read_bytes()
    at = 0
    while at + _HEAD.size <= len(data):
        length, check = _HEAD.unpack_from(data, at)
        line = data[at + _HEAD.size : at + _HEAD.size + length]
        if length > _LONGEST or len(line) < length or zlib.crc32(line) != check:
            break
        try:
            report = Report.read(line)
        except Invalid:
            break
        yield report
        at += _HEAD.size + length
    if at < len(data):
        path.with_suffix(".torn").write_bytes(data[at:])
        os.truncate(path, at)
