"""The only place where the gateway's one event loop meets code that waits.

Stores are sync. They run here in a few threads, each call one short transaction, so that
thousands of open streams wait for nothing but their own bytes. Holds and settlements, which
every request needs, have a lane each, where those of many requests share a transaction.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Final, ParamSpec, TypeVar
from uuid import UUID

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.core.errors import Conflict, NotFound, Unauthorized, Unavailable
from sublet.core.money import Money
from sublet.gateway.grant import Grant, Need
from sublet.gateway.instance import Instance
from sublet.gateway.lane import Lane, Unsure
from sublet.gateway.table import Table
from sublet.gateway.till import Asked, Bill, Till
from sublet.ledger import store as ledger
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Caller, Tenant, digest

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 6
_LANES: Final = 2
_CALL_SECONDS: Final = 6.0  # longer than any healthy call by far
_KEPT_SECONDS: Final = 2.0  # a revoked key works for so long at most
_KEPT_CALLERS: Final = 10_000


class Spool:
    def __init__(self, url: str, *, name: str, clock: Clock) -> None:
        url = _bounded(url, name)
        self._db = Database(url, connections=_THREADS + _LANES, wait_seconds=2)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spool")
        # Its own thread: a pool full of waiting calls must not make this run look dead.
        self._pulse = ThreadPoolExecutor(1, thread_name_prefix="pulse")
        self._clock = clock
        self._callers: OrderedDict[bytes, tuple[float, Caller | Unauthorized]] = OrderedDict()
        self.instance = Instance(name, url, clock)
        till = Till(self._db, holder=self.instance.holder, clock=clock)
        self._holds = Lane(till.open_many, name="holds", wait_seconds=_CALL_SECONDS)
        self._settlements = Lane(till.settle_many, name="settlements", wait_seconds=_CALL_SECONDS)

    # ── one run ──────────────────────────────────────────────────────────────────────────

    def start(self, *, wait_seconds: float) -> int:
        """Take the name and return what earlier runs held. Sync: before the loop runs.

        Raises:
            Misconfigured: the name is taken.
            Unavailable: the database did not answer.
        """
        self._db.__enter__()
        return self.instance.start(self._db, wait_seconds=wait_seconds)

    def stop(self) -> None:
        """End the threads, then the connections. Sync: after the loop ran."""
        self._holds.stop()
        self._settlements.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._pulse.shutdown(wait=True, cancel_futures=True)
        self.instance.stop()
        self._db.__exit__(None, None, None)

    async def beat(self) -> bool:
        """As `Instance.beat`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pulse, self.instance.beat)

    async def read_table(self) -> Table:
        return await self._call(self._read_table)

    def _read_table(self) -> Table:
        with self._db.transaction() as tx:
            return Table.read(tx)

    # ── callers ──────────────────────────────────────────────────────────────────────────

    async def find_caller(self, key: str) -> Caller:
        """As `tenants.store.find_caller`, remembered for two seconds."""
        now, mark = asyncio.get_running_loop().time(), digest(key)
        kept = self._callers.get(mark)
        if kept is not None and now - kept[0] < _KEPT_SECONDS:
            found = kept[1]
        else:
            try:
                found = await self._call(self._find_caller, key)
            except Unauthorized as error:
                found = error
            self._callers[mark] = now, found
            self._callers.move_to_end(mark)
            if len(self._callers) > _KEPT_CALLERS:
                self._callers.popitem(last=False)
        if isinstance(found, Unauthorized):
            raise Unauthorized(str(found))
        if found.expires_at is not None and found.expires_at <= self._clock.now():
            raise Unauthorized("this API key has expired; make a new one")
        return found

    def _find_caller(self, key: str) -> Caller:
        with self._db.transaction() as tx:
            return tenants.find_caller(tx, key, now=self._clock.now())

    # ── money ────────────────────────────────────────────────────────────────────────────

    async def open(self, request_id: UUID, tenant: Tenant, need: Need) -> Grant:
        """Hold what `need` may cost.

        Raises:
            Failure: the wallet cannot pay; says why.
            Unsure: whether money is held is not known: void it, later.
            Unavailable: none is held.
        """
        return await self._holds.do(Asked(id=request_id, tenant=tenant, need=need))

    async def settle(self, bill: Bill) -> Money:
        """Charge what was used and return the rest. Repeating it changes nothing.

        Raises:
            Unavailable: repeat it.
            Unpaid: the hold was gone, and the wallet is empty.
        """
        return await self._settlements.do(bill)

    async def void(self, request_id: UUID) -> bool:
        """Return all of a hold. Repeating it changes nothing.

        Returns:
            False when there is no such hold.

        Raises:
            Unavailable: repeat it.
        """
        return await self._call(self._void, request_id)

    def _void(self, request_id: UUID) -> bool:
        try:
            with self._db.transaction() as tx:
                ledger.void(tx, request_id, now=self._clock.now())
        except NotFound:
            return False
        except Conflict:
            return True  # it expired, so the money is back
        return True

    def now(self) -> datetime:
        return self._clock.now()

    # ── threads ──────────────────────────────────────────────────────────────────────────

    async def _call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        work = self._threads.submit(function, *args, **kwargs)
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                # Shielded: only here it is known whether the work had begun.
                return await asyncio.shield(asyncio.wrap_future(work))
        except TimeoutError:
            if work.cancel():
                raise Unavailable("the database is too busy") from None
            # The thread goes on. What it does is safe to repeat, and to void.
            raise Unsure("the database did not answer in time") from None


def _bounded(url: str, name: str) -> str:
    """Let no statement wait for ever: a thread that waits is one that nobody else has."""
    options = conninfo_to_dict(url).get("options") or ""
    return make_conninfo(
        url,
        application_name=f"sublet gateway {name}",
        tcp_user_timeout=10_000,
        options=f"{options} -c lock_timeout=4s -c statement_timeout=5s".strip(),
    )
