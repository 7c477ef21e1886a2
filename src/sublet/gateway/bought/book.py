"""Purchases on their way into the record: on this gateway's disk first, handed over behind.

What a supplier will want money for is known here alone until it is recorded, so it is brought to the
disk before its request ends. Ids keep one that is handed over twice from counting twice.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.core.errors import Unavailable
from sublet.core.failpoint import failpoint
from sublet.gateway.spool import Spool, read
from sublet.suppliers.purchase import Bought, Purchase, record

log: Final = logging.getLogger(__name__)

_TOGETHER_SECONDS: Final = 0.05  # in which others may come, to be handed over with it
_AT_ONCE: Final = 500
_PAUSE_SECONDS: Final = 0.5  # while the database is away


class Book:
    """Belongs to one event loop; the database is called in a thread."""

    def __init__(self, spool: Spool, db: Database, clock: Clock) -> None:
        self._spool = spool
        self._db = db
        self._clock = clock
        self._writes = ThreadPoolExecutor(1, thread_name_prefix="purchases")
        self._hands = ThreadPoolExecutor(1, thread_name_prefix="purchases-over")
        self._unhanded: deque[tuple[Bought, int | None]] = deque()  # and their files
        self._running: asyncio.Task[None] | None = None

    async def note(self, purchase: Purchase) -> None:
        """Keep it; returns once it cannot be lost any more, or once the disk has refused it."""
        bought = Bought.write(purchase)
        file: int | None = None
        loop = asyncio.get_running_loop()
        try:
            file = await loop.run_in_executor(self._writes, self._spool.write, [bought])
        except OSError as error:
            log.error("purchases.spool_sick", extra={"error": str(error)})  # noqa: TRY400
        self._unhanded.append((bought, file))
        failpoint("gateway.purchase.noted")
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._hand_over())

    @property
    def waiting(self) -> int:
        return len(self._unhanded)

    async def _hand_over(self) -> None:
        loop = asyncio.get_running_loop()
        while self._unhanded:
            await asyncio.sleep(_TOGETHER_SECONDS)
            some = [self._unhanded.popleft() for _ in range(min(_AT_ONCE, len(self._unhanded)))]
            try:
                await loop.run_in_executor(self._hands, self._record, [one for one, _ in some])
            except Exception as error:
                self._unhanded.extendleft(reversed(some))
                if not isinstance(error, Unavailable):
                    log.exception("purchases.unhanded")
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            for _, file in some:
                if file is not None:
                    self._spool.forget(file, 1)

    def _record(self, bought: Sequence[Bought]) -> None:
        with self._db.transaction() as tx:
            record(tx, bought, now=self._clock.now())

    async def drain(self, seconds: float) -> None:
        """Wait until all is handed over; what is not is on the disk."""
        if self._running is not None:
            await asyncio.wait([self._running], timeout=seconds)
            self._running.cancel()

    def stop(self) -> None:
        """End the threads. Sync: after the loop ran."""
        self._writes.shutdown(wait=True, cancel_futures=True)
        self._hands.shutdown(wait=True, cancel_futures=True)


def recover(spool: Spool, db: Database, clock: Clock) -> int:
    """Record what earlier runs of this name left on the disk; say how many were new.

    Raises:
        Unavailable: the database did not answer; all of it is still there.
    """
    new = 0
    for path in spool.left_behind():
        bought = list(read(path, Bought.read))
        with db.transaction() as tx:
            new += record(tx, bought, now=clock.now())
        path.unlink()
    return new
