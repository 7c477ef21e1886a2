"""Who calls, and what is sold: looked up in Postgres, in threads, and remembered for a while.

The gateway's one event loop never waits for the database: stores are sync, and run here in a
few threads, each call one short transaction.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Final, ParamSpec, TypeVar

from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.core.errors import Unauthorized, Unavailable
from sublet.gateway.instance import Instance
from sublet.gateway.table import Table
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Caller, digest

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 4
_CALL_SECONDS: Final = 6.0  # longer than any healthy call by far
_KEPT_SECONDS: Final = 2.0  # a revoked key works for so long at most …
_STALE_SECONDS: Final = 1.0  # … and is looked up again behind a call's back after this
_AWAY_SECONDS: Final = 300.0  # … unless the database is away: then for as long as purses last
_KEPT_CALLERS: Final = 10_000

_Found = Caller | Unauthorized


class Directory:
    def __init__(self, db: Database, instance: Instance, clock: Clock) -> None:
        self._db = db
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="directory")
        # Its own thread: a pool full of waiting calls must not make this run look dead.
        self._pulse = ThreadPoolExecutor(1, thread_name_prefix="pulse")
        self._clock = clock
        self._callers: OrderedDict[bytes, tuple[float, _Found]] = OrderedDict()
        self._looking: dict[bytes, asyncio.Task[_Found]] = {}
        self._instance = instance

    def stop(self) -> None:
        """End the threads. Sync: after the loop ran."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._pulse.shutdown(wait=True, cancel_futures=True)

    def now(self) -> datetime:
        return self._clock.now()

    async def beat(self) -> bool:
        """As `Instance.beat`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pulse, self._instance.beat)

    async def read_table(self) -> Table:
        return await self._call(self._read_table)

    def _read_table(self) -> Table:
        with self._db.transaction() as tx:
            return Table.read(tx)

    async def find_caller(self, key: str) -> Caller:
        """As `tenants.store.find_caller`, remembered for two seconds.

        While the database is away, who was known before it went stays known for five minutes.

        Raises:
            Unauthorized: there is no such key, or it was revoked or has expired.
            Unavailable: the key is new here, and the database is away.
        """
        now = asyncio.get_running_loop().time()
        mark = digest(key)
        kept = self._callers.get(mark)
        age = _AWAY_SECONDS if kept is None else now - kept[0]
        if kept is not None and age < _KEPT_SECONDS:
            found = kept[1]
            if age > _STALE_SECONDS:
                self._look(key, mark)
        else:
            try:
                found = await asyncio.shield(self._look(key, mark))
            except Unavailable:
                if kept is None or age >= _AWAY_SECONDS:
                    raise
                found = kept[1]
        if isinstance(found, Unauthorized):
            raise Unauthorized(str(found))
        if found.expires_at is not None and found.expires_at <= self._clock.now():
            raise Unauthorized("this API key has expired; make a new one")
        return found

    def _look(self, key: str, mark: bytes) -> asyncio.Task[_Found]:
        """Look a key up; at once for all that ask meanwhile."""
        task = self._looking.get(mark)
        if task is None:
            task = self._looking[mark] = asyncio.create_task(self._look_up(key, mark))
            task.add_done_callback(lambda done: self._looked(mark, done))
        return task

    def _looked(self, mark: bytes, task: asyncio.Task[_Found]) -> None:
        del self._looking[mark]
        if not task.cancelled():
            task.exception()  # whoever waits is told; nobody may

    async def _look_up(self, key: str, mark: bytes) -> _Found:
        began = asyncio.get_running_loop().time()
        found: _Found
        try:
            found = await self._call(self._find_caller, key)
        except Unauthorized as error:
            found = error
        self._callers[mark] = began, found
        self._callers.move_to_end(mark)
        if len(self._callers) > _KEPT_CALLERS:
            self._callers.popitem(last=False)
        return found

    def _find_caller(self, key: str) -> Caller:
        with self._db.transaction() as tx:
            return tenants.find_caller(tx, key, now=self._clock.now())

    async def _call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        work = self._threads.submit(function, *args, **kwargs)
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                return await asyncio.wrap_future(work)
        except TimeoutError:
            raise Unavailable("the database is too busy") from None
