"""What many requests ask of the database at about the same time goes there together.

While one batch is in the database the next one collects, so under load nobody waits for a
clock and batches grow by themselves. Only the first to come after a lull waits, for a short
window, in case it has company.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from sublet.core.errors import Unavailable

A = TypeVar("A")
B = TypeVar("B")

MOST: Final = 500  # in one batch
WINDOW_SECONDS: Final = 0.002


class Unsure(Unavailable):
    """The database went away in the middle: what was asked may have been done, or will be."""


@dataclass(slots=True, eq=False)
class _Item(Generic[A, B]):
    asked: A
    answer: asyncio.Future[B | Exception]


class Lane(Generic[A, B]):
    """One batch at a time, in a thread of its own, in the order in which they were asked."""

    def __init__(
        self,
        work: Callable[[list[A]], list[B | Exception]],
        *,
        name: str,
        wait_seconds: float,
        window_seconds: float = WINDOW_SECONDS,
        most: int = MOST,
    ) -> None:
        """Make a lane that has begun nothing yet.

        Args:
            work: sync; returns an answer, or what to raise, for each of those it is given.
            name: its thread's.
            wait_seconds: how long one asks at most.
            window_seconds: how long the first one after a lull waits for company.
            most: how many go together.
        """
        self._work = work
        self._wait_seconds = wait_seconds
        self._window_seconds = window_seconds
        self._most = most
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[_Item[A, B]] = deque()
        self._runner: asyncio.Task[None] | None = None

    async def do(self, asked: A) -> B:
        """Return the answer.

        Raises:
            Unsure: it was begun, and did not end in time.
            Unavailable: it was not begun in time.
            Exception: whatever the work says of this one.
        """
        answer: asyncio.Future[B | Exception] = asyncio.get_running_loop().create_future()
        item = _Item(asked, answer)
        self._waiting.append(item)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(self._wait_seconds):
                got = await asyncio.shield(answer)
        except TimeoutError:
            if item in self._waiting:
                self._waiting.remove(item)
                raise Unavailable("the database is too busy") from None
            # The thread goes on. What it does is safe to repeat, and to void.
            raise Unsure("the database did not answer in time") from None
        if isinstance(got, Exception):
            raise got
        return got

    def stop(self) -> None:
        """End the thread, when it has ended what it does. Sync: after the loop ran."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _run(self) -> None:
        try:
            await asyncio.sleep(self._window_seconds)
            while self._waiting:
                items = [
                    self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))
                ]
                work = self._thread.submit(self._work, [item.asked for item in items])
                answers: list[B | Exception]
                try:
                    answers = await asyncio.wrap_future(work)
                except Exception as error:  # noqa: BLE001 - a bug of the work's: each is told
                    answers = [error] * len(items)
                for item, answer in zip(items, answers, strict=True):
                    if not item.answer.done():
                        item.answer.set_result(answer)
        finally:
            self._runner = None
