"""A progress bar for what turns out to take long, on stderr, for people only."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Whatever is done sooner needs no bar.
PATIENCE_SECONDS: Final = 2.0


class Waiting:
    """Shows how far work is, once it has taken two seconds.

    Nothing is printed where stderr is no terminal, and the bar leaves no trace.
    """

    def __init__(self, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._shows_at = time.monotonic() + patience_seconds
        self._terminal = sys.stderr.isatty()
        self.bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def told(self, what: str, done: int, of: int) -> None:
        """Say that `done` of `of` units of `what` are done."""
        if not self._terminal or time.monotonic() < self._shows_at:
            return
        if self.bar is None:
            self.bar = self._started()
        if what not in self._tasks:
            self._tasks[what] = self.bar.add_task(what, total=of)
        self.bar.update(self._tasks[what], completed=done, total=of)

    @staticmethod
    def _started() -> "Progress":
        from rich.console import Console  # noqa: PLC0415 -- slow to load
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        bar.start()
        return bar
