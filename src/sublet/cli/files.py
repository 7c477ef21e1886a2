"""Files that a command writes: whole, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from sublet.cli.failure import ExitCode, Failure


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that takes the place of `path` once it is whole, readable by us alone.

    Raises:
        Failure: it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device: nothing to replace
            with path.open("wb") as straight:
                yield straight
            return
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}", ExitCode.USAGE) from None
