"""What a gateway has used and not yet handed over, kept on its own disk.

One folder a gateway's name, with files `<instance>-<number>.spool` in it. A file is a run of
records, each four bytes of length, four of CRC-32, and that many bytes of a report's line, all
little-endian, and then zeros. Records are only added; several are brought to the disk by one
`fdatasync`. What a crash left half written behind the last record is cut off: it was promised
to nobody.

Files are written full of zeros ahead of their use, by a thread of their own. A record then goes
into blocks that are there: a file that grows is a change of the file system's own, and whoever
waits for that waits for whatever else it is writing at that moment, as for PostgreSQL's tables.

A file whose records have all been handed over is removed. A crash may come between the two,
so the next run hands some over again, and their ids keep them from counting twice.
"""

import contextlib
import fcntl
import os
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol, TypeVar
from uuid import UUID

from sublet.core.errors import Invalid, Misconfigured
from sublet.core.failpoint import failpoint

R = TypeVar("R")


class Line(Protocol):
    """What a spool keeps: it is written down already."""

    @property
    def line(self) -> bytes: ...


_HEAD: Final = struct.Struct("<II")
_LONGEST: Final = 1 << 20  # of one record; a longer length is garbage
_FILE_BYTES: Final = 4 << 20  # then the next file begins
_ZEROS: Final = bytes(1 << 18)  # written at a time: who writes a record is not held up for long
_NAME: Final = re.compile(r"([0-9a-f-]{36})-([0-9]{6})\.spool")


class Spool:
    """Sync: one thread writes, and the same or another one forgets."""

    def __init__(self, folder: Path, instance: UUID) -> None:
        self._folder = folder
        self._instance = instance
        self._number = 0
        self._file: int | None = None
        self._size = 0
        self._next: Future[int] | None = None  # the file that comes after this one
        self._left: dict[int, int] = {}  # file number: its records that were not handed over
        self._counting = threading.Lock()
        self._lock: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")

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

    def prepare(self) -> None:
        """Make the first file ahead of its use."""
        if self._file is None and self._next is None:
            self._next = self._thread.submit(self._make, self._number)

    def close(self) -> None:
        """Close the files, and remove what was handed over."""
        self._rotate()
        if self._next is not None:
            with contextlib.suppress(OSError):  # it could not be made
                os.close(self._next.result())
            self._next = None
            self._remove(self._number)
        self._thread.shutdown()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ── writing ──────────────────────────────────────────────────────────────────────────

    def write(self, reports: Sequence[Line]) -> int:
        """Add these and wait for the disk; return the number of their file, for `forget`.

        Raises:
            OSError: the disk is full or read-only; none of them is kept.
        """
        data = b"".join(
            part
            for report in reports
            for part in (_HEAD.pack(len(report.line), zlib.crc32(report.line)), report.line)
        )
        if self._size and self._size + len(data) > _FILE_BYTES:
            self._rotate()
        failpoint("gateway.spool.before_write")
        file = self._current()
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(file, memoryview(data)[written:], self._size + written)
            failpoint("gateway.spool.written")
            os.fdatasync(file)
        except OSError:
            # Nothing half written may stand before what comes next.
            try:
                os.ftruncate(file, self._size)
            except OSError:
                self._rotate()  # what follows goes into another file
            raise
        failpoint("gateway.spool.safe")
        self._size += len(data)
        with self._counting:
            self._left[self._number] = self._left.get(self._number, 0) + len(reports)
        if self._next is None and 2 * self._size > _FILE_BYTES:
            self._next = self._thread.submit(self._make, self._number + 1)
        return self._number

    def forget(self, number: int, records: int) -> None:
        """Note that so many records of a file were handed over."""
        with self._counting:
            self._left[number] -= records
            done = not self._left[number] and number != self._number
            if done:
                del self._left[number]
        if done:
            # Elsewhere: whoever forgets may be in a hurry, and removing takes what it takes.
            self._thread.submit(self._remove, number)

    def _current(self) -> int:
        if self._file is None:
            ahead, self._next = self._next, None
            try:
                self._file = ahead.result() if ahead is not None else self._make(self._number)
            except OSError:
                self._file = self._make(self._number)  # by now there may be room
            self._size = 0
        return self._file

    def _make(self, number: int) -> int:
        """Make a file full of zeros, or an empty one where there is no room for them.

        Raises:
            OSError: not even that can be made.
        """
        path = self._path(number)
        path.unlink(missing_ok=True)  # of an attempt that failed
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                for start in range(0, _FILE_BYTES, len(_ZEROS)):
                    if os.pwrite(file, _ZEROS, start) < len(_ZEROS):
                        break  # the disk is full
                    os.fdatasync(file)
            except OSError:
                os.ftruncate(file, 0)
            folder = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)  # its name, too, must outlive a power cut
            finally:
                os.close(folder)
        except OSError:
            os.close(file)
            raise
        return file

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
            self._remove(self._number - 1)

    def _remove(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)

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


def read(path: Path, of: Callable[[bytes], R]) -> Iterator[R]:
    """Yield the records of a file, up to what was half written or is damaged.

    What cannot be trusted is never guessed: the rest of the file is set aside beside it, as
    `<name>.torn`, and the numbers that are missing show in `sublet verify`.
    """
    data = path.read_bytes()
    at = 0
    while at + _HEAD.size <= len(data):
        length, check = _HEAD.unpack_from(data, at)
        if not length:
            break
        line = data[at + _HEAD.size : at + _HEAD.size + length]
        if length > _LONGEST or len(line) < length or zlib.crc32(line) != check:
            break
        try:
            record = of(line)
        except Invalid:
            break
        yield record
        at += _HEAD.size + length
    if torn := data[at:].rstrip(b"\0"):
        path.with_suffix(".torn").write_bytes(torn)
        os.truncate(path, at)
