"""Saying on a terminal how far something is that takes long."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# What is done sooner needs no bar.
_AFTER_SECONDS: Final = 2.0

Tell = Callable[[str, float], None]


@contextmanager
def bar(*, wanted: bool) -> Iterator[Tell]:
    """Lend a function that takes what is being done and how much of it is, from 0 to 1.

    It draws a bar on stderr once it has taken two seconds, and takes it away at the end. Where
    stderr is no terminal, or it is not `wanted`, nothing is drawn.
    """
    drawn = _Bar() if wanted and sys.stderr.isatty() else None
    try:
        yield drawn.tell if drawn else lambda _what, _share: None
    finally:
        if drawn:
            drawn.end()


class _Bar:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._what, self._share = "", 0.0
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._began = time.monotonic()
        self._timer = threading.Timer(_AFTER_SECONDS, self._draw)
        self._timer.daemon = True
        self._timer.start()

    def tell(self, what: str, share: float) -> None:
        with self._lock:
            self._what, self._share = what, share
            self._show()

    def end(self) -> None:
        self._timer.cancel()
        with self._lock:
            if self._progress is not None:
                self._progress.stop()

    def _draw(self) -> None:
        from rich.console import Console  # noqa: PLC0415 -- slow to load
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        with self._lock:
            self._progress = Progress(
                BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._progress.add_task(self._what)
            self._show()
            self._progress.start()

    def _show(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=self._what, completed=100 * self._share)
