"""Resolving holds: each one in the end, also when Postgres is away or the client is gone.

What cannot be done now is tried again in the background, with the same ids, until it lands
or this process ends. What is then still open is returned by the next run of this name.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final
from uuid import UUID

from sublet.core.errors import Unavailable, Unpaid
from sublet.gateway.spool import Spool
from sublet.gateway.till import Bill

log: Final = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0


class Resolver:
    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._tasks: set[asyncio.Task[None]] = set()

    async def settle(self, bill: Bill) -> None:
        """Charge what was used; returns once it is charged, or is left to the background."""
        await self._do(lambda: self._settle(bill), request=bill.usage.id)

    async def void(self, request_id: UUID) -> None:
        """Return a hold; returns once it is returned, or is left to the background."""
        await self._do(lambda: self._void(request_id), request=request_id)

    def void_unsure(self, request_id: UUID) -> None:
        """Return a hold of which nobody knows whether it was made, or will be in a moment."""
        self.detach(self._void_unsure(request_id))

    def detach(self, work: Coroutine[object, object, None]) -> None:
        """Let `work` go on by itself; `drain` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def drain(self, seconds: float) -> int:
        """Wait for the background, then end it; say how much was left undone."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
            log.error("gateway.left_open", extra={"requests": len(left)})
        return len(left)

    async def _do(self, step: Callable[[], Awaitable[None]], *, request: UUID) -> None:
        try:
            await step()
        except Unavailable:
            log.warning("gateway.resolve_later", extra={"request": str(request)})
            self.detach(self._until_done(step))

    async def _until_done(self, step: Callable[[], Awaitable[None]]) -> None:
        pause = _FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            try:
                return await step()
            except Unavailable:
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _settle(self, bill: Bill) -> None:
        try:
            await self._spool.settle(bill)
        except Unpaid:
            # Its hold expired and the money is spent: ours to bear.
            log.exception("gateway.uncharged", extra={"request": str(bill.usage.id)})
        except Unavailable:
            raise
        except Exception:
            # A bug, of which repeating would change nothing: at least the money returns.
            log.exception("gateway.unsettled", extra={"request": str(bill.usage.id)})
            await self._void(bill.usage.id)

    async def _void(self, request_id: UUID) -> None:
        await self._spool.void(request_id)

    async def _void_unsure(self, request_id: UUID) -> None:
        # A commit may still land after we gave up waiting for it, so look more than once.
        for pause in (0.0, 2.0, 10.0, 30.0):
            await asyncio.sleep(pause)
            while True:
                try:
                    held = await self._spool.void(request_id)
                except Unavailable:
                    await asyncio.sleep(1)
                else:
                    break
            if held:
                return

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("gateway.failed", exc_info=error)
