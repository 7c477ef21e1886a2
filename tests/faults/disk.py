"""A small disk of a test's own, that may be full, or read-only, or break in use."""

import contextlib
import os
import subprocess
import time
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
            end = time.monotonic() + 60
            while True:
                for size in (1 << 20, 1 << 12):
                    with contextlib.suppress(OSError):
                        while file.write(b"\0" * size) == size:
                            pass
                if self.room() == 0:
                    return
                # Somebody gave some back in between.
                assert time.monotonic() < end, f"{self.room()} bytes of {self.root} are free again"

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


@dataclass(slots=True)
class BrittleDisk:
    """A real file system, which turns read-only when it finds an error, as servers' are set to."""

    image: Path
    root: Path

    def mount(self) -> None:
        options = "loop,errors=remount-ro"
        subprocess.run(["mount", "-o", options, self.image, self.root], check=True)

    def break_down(self) -> None:
        """Make it find an error: whoever has a file open there can write no more from now on."""
        device = subprocess.run(
            ["findmnt", "--noheadings", "--output", "SOURCE", self.root],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("1")

    def repair(self) -> None:
        """As an operator does: nobody may use it any more.

        Who was killed is gone from the list of processes before the kernel has closed its files.
        """
        end = time.monotonic() + 30
        while subprocess.run(
            ["umount", self.root], check=False, capture_output=True, text=True
        ).returncode:
            assert time.monotonic() < end, f"{self.root} is in use by {_users(self.root)}"
            time.sleep(0.02)
        checked = subprocess.run(
            ["e2fsck", "-p", "-f", self.image], check=False, capture_output=True, text=True
        )
        assert checked.returncode in {0, 1}, checked.stdout  # 1: errors were corrected
        self.mount()


def _users(root: Path) -> list[str]:
    """Name the processes that have a file or their folder below `root`."""
    found = set()
    for link in [*Path("/proc").glob("[0-9]*/fd/*"), *Path("/proc").glob("[0-9]*/cwd")]:
        with contextlib.suppress(OSError):
            if link.readlink().is_relative_to(root):
                process = Path(*link.parts[:3])
                found.add(f"{process.name} {(process / 'comm').read_text().strip()}")
    return sorted(found)


@contextmanager
def brittle_disk(folder: Path, *, megabytes: int) -> Iterator[BrittleDisk]:
    """Make a file system in a file and mount it, where we may."""
    disk = BrittleDisk(folder / "disk.ext4", folder / "brittle")
    disk.root.mkdir()
    with disk.image.open("wb") as file:
        file.truncate(megabytes << 20)
    try:
        made = ["mkfs.ext4", "-q", "-F", disk.image]
        subprocess.run(made, check=True, capture_output=True, text=True)
        disk.mount()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk that can break is to be had here: {error}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk.root], check=True)
