"""A progress bar for what turns out to take long, on stderr, for people only."""

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Whatever is done sooner needs no bar.
PATIENCE_SECONDS: Final = 2.0


class Waiting:
    """Shows how far work is, once it has taken two seconds, also in the middle of a step.

    Nothing is printed where stderr is no terminal, and the bar leaves no trace.
    """

    def __init__(self, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._lock = threading.Lock()
        self._steps: dict[str, tuple[int, int]] = {}  # what → done, of how many; 0: not known
        self._tasks: dict[str, TaskID] = {}
        self._over = False
        self.bar: Progress | None = None
        self._timer = threading.Timer(patience_seconds, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self.bar is not None:
                self.bar.stop()

    def told(self, what: str, done: int, of: int) -> None:
        """Say that `done` of `of` units of `what` are done; 0 of 0 where that is not known."""
        with self._lock:
            self._steps[what] = (done, of)
            if self.bar is not None:
                self._draw(self.bar)

    def _show(self) -> None:
        from rich.console import Console  # noqa: PLC0415 -- slow to load
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        with self._lock:
            if self._over:
                return
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._draw(self.bar)
            self.bar.start()

    def _draw(self, bar: "Progress") -> None:
        for what, (done, of) in self._steps.items():
            if what not in self._tasks:
                self._tasks[what] = bar.add_task(what, total=None)
            bar.update(self._tasks[what], completed=done, total=of or None)
