"""Importing from a folder on this machine that the operator opened for it.

    <root>/<tenant>/…      a tenant imports from its own folder in it, the operator from all

No link is followed, at any depth: whoever may write to the folder must not be able to point at
what the control plane may read.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from sublet.core.errors import Invalid, Unavailable

_MOST_FILES: Final = 1_000
_DEEPEST: Final = 4
_HERE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """A file, or a folder with files, beneath a root. As `importing.Remote`."""

    def __init__(self, root: Path, path: str) -> None:
        """Raises Invalid: there is nothing there, or it lies elsewhere."""
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in path:
            raise Invalid(f"{path[:200]!r} must be a path beneath the folder for imports")
        self._path = path
        try:
            at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"the folder for imports cannot be read: {error.strerror}") from error
        for part in pure.parts:
            at = self._down(at, part)
        self._at = at
        self._single = None if stat.S_ISDIR(os.fstat(at).st_mode) else pure.name

    def close(self) -> None:
        os.close(self._at)

    def files(self) -> Sequence[tuple[str, int]]:
        if self._single is not None:
            return [(self._single, os.fstat(self._at).st_size)]
        found = list(self._walk(self._at, "", 1))
        if not found:
            raise Invalid(f"{self._path!r} is an empty folder")
        return found

    def read(self, path: str, offset: int, count: int) -> bytes:
        opened = []
        at = self._at
        try:
            if self._single is None:
                for part in path.split("/"):
                    at = os.open(part, _HERE, dir_fd=at)
                    opened.append(at)
            pieces = []
            while count and (piece := os.pread(at, count, offset)):
                pieces.append(piece)
                offset, count = offset + len(piece), count - len(piece)
            return b"".join(pieces)
        except OSError as error:
            raise Invalid(f"{path} cannot be read: {error.strerror}") from error
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _down(self, at: int, part: str) -> int:
        try:
            below = os.open(part, _HERE, dir_fd=at)
        except OSError as error:
            raise Invalid(f"{self._path!r} cannot be read at {part!r}: {error.strerror}") from error
        finally:
            os.close(at)
        mode = os.fstat(below).st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            os.close(below)
            raise Invalid(f"{self._path!r} is neither a file nor a folder")
        return below

    def _walk(self, at: int, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
        count = 0
        for name in sorted(os.listdir(at)):
            if prefix == "" and name in {".git", ".cache"}:
                continue  # of who downloaded it
            seen = os.stat(name, dir_fd=at, follow_symlinks=False)
            path = f"{prefix}{name}"
            if stat.S_ISLNK(seen.st_mode):
                raise Invalid(f"{path} is a link: none is followed, so put the file itself there")
            if stat.S_ISDIR(seen.st_mode):
                if depth == _DEEPEST:
                    raise Invalid(f"{path}: a model's folders are {_DEEPEST} deep at most")
                below = os.open(name, _HERE, dir_fd=at)
                try:
                    yield from self._walk(below, f"{path}/", depth + 1)
                finally:
                    os.close(below)
            elif stat.S_ISREG(seen.st_mode):
                count += 1
                if count > _MOST_FILES:
                    raise Invalid(f"there are more than {_MOST_FILES} files in {self._path!r}")
                yield path, seen.st_size
            else:
                raise Invalid(f"{path} is neither a file nor a folder")
