"""A small disk of a test's own, that may be full, or read-only."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(slots=True)
class Disk:
    root: Path

    def fill(self) -> None:
        """Leave no room at all."""
        with (self.root / "ballast").open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size) == size:
                        pass
        assert self.room() == 0

    def room(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def empty(self) -> None:
        (self.root / "ballast").unlink(missing_ok=True)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nobody may have a file open for writing."""
        subprocess.run(["mount", "-o", "remount,ro", self.root], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", self.root], check=True)


@contextmanager
def small_disk(root: Path, *, megabytes: int) -> Iterator[Disk]:
    """Mount a disk in memory, where we may."""
    root.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", root],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.strip()}")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)
