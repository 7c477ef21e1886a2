"""Who calls, and what is sold: looked up in Postgres, in threads, and remembered for a while.

The gateway's one event loop never waits for the database: stores are sync, and run here in a
few threads, each call one short transaction.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, ParamSpec, Protocol, TypeVar
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.db import Database, Tx, one
from sublet.core.errors import Unauthorized, Unavailable
from sublet.gateway.instance import QUERIES, Instance
from sublet.gateway.limits import Limiter
from sublet.gateway.table import Table
from sublet.models import store as models
from sublet.models.scaling import Load
from sublet.tenants import limits
from sublet.tenants import store as tenants
from sublet.tenants.limit import LimitBook
from sublet.tenants.tenant import Caller, KeyId, Signer, digest

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 4
_CALL_SECONDS: Final = 6.0  # longer than any healthy call by far
_KEPT_SECONDS: Final = 2.0  # a revoked key works for so long at most …
_AWAY_SECONDS: Final = 300.0  # … unless the database is away: then for as long as purses last
# Revocations are read with the table, for all keys at once. This long after it was looked up a
# key is looked up again all the same: its revocation may bear the time of a clock far behind.
_RENEW_SECONDS: Final = 150.0
_LOOK_BACK: Final = timedelta(minutes=10)  # transactions and clocks are no further apart
_KEPT_CALLERS: Final = 10_000
_FORGET_EVERY: Final = timedelta(minutes=1)

_Found = Caller | Unauthorized


class _LookUp(Protocol):
    """Finds one caller; raises Unauthorized."""

    def __call__(self, tx: Tx, *, now: datetime) -> Caller: ...


class Directory:
    def __init__(self, db: Database, instance: Instance, clock: Clock) -> None:
        self._db = db
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="directory")
        # Its own thread: a pool full of waiting calls must not make this run look dead.
        self._pulse = ThreadPoolExecutor(1, thread_name_prefix="pulse")
        self._clock = clock
        self._callers: OrderedDict[bytes, tuple[float, _Found]] = OrderedDict()
        self._looking: dict[bytes, asyncio.Task[_Found]] = {}
        self._checked = float("-inf")  # when revocations were last read
        self._away = False  # did the database fail to answer the last time?
        self._instance = instance
        self.book = LimitBook()  # the limits of everybody, read with the table
        self._others = False  # do other gateways live?
        self._forgot = datetime.min.replace(tzinfo=UTC)  # when signatures were last forgotten

    def stop(self) -> None:
        """End the threads. Sync: after the loop ran."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._pulse.shutdown(wait=True, cancel_futures=True)

    def now(self) -> datetime:
        return self._clock.now()

    @property
    def instance_id(self) -> UUID:
        return self._instance.id

    @property
    def name(self) -> str:
        """Of this gateway."""
        return self._instance.name

    async def transact(self, work: Callable[[Tx], T]) -> T:
        """Do a small work in a transaction.

        Raises:
            Unavailable: the database is away.
        """
        return await self._call(self._transact, work)

    def _transact(self, work: Callable[[Tx], T]) -> T:
        with self._db.transaction() as tx:
            return work(tx)

    async def beat(self) -> bool:
        """As `Instance.beat`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pulse, self._instance.beat)

    async def read_table(self) -> Table:
        """Read what is sold, and forget the keys that were revoked.

        Raises:
            Unavailable: the database is away.
        """
        began = asyncio.get_running_loop().time()
        table, revoked = await self._call(self._read_table)
        if revoked:
            for mark, (_, found) in list(self._callers.items()):
                if isinstance(found, Caller) and found.key_id in revoked:
                    del self._callers[mark]
        self._checked = began
        return table

    def _read_table(self) -> tuple[Table, set[KeyId]]:
        with self._db.transaction() as tx:
            since = self._clock.now() - _LOOK_BACK
            self.book = limits.read_book(tx, self.book)
            return Table.read(tx, now=self._clock.now()), tenants.list_revoked(tx, since=since)

    async def share_rates(self, limiter: Limiter) -> None:
        """Tell other gateways what passed here, and hear what passed there, if there are others.

        Raises:
            Unavailable: the database is away.
        """
        told = limiter.tell(self._instance.name) if self._others else []
        limiter.hear(await self._call(self._share_rates, told))

    async def tell_loads(self, loads: Mapping[str, Load]) -> None:
        """Say what this gateway has of each deployment now.

        Raises:
            Unavailable: the database is away.
        """
        await self._call(self._tell_loads, loads)

    def _tell_loads(self, loads: Mapping[str, Load]) -> None:
        with self._db.transaction() as tx:
            models.put_load(tx, self._instance.name, loads, now=self._clock.now())

    def _share_rates(self, told: list[limits.Use]) -> list[limits.Use]:
        now = self._clock.now()
        with self._db.transaction() as tx:
            self._others = self._instance.has_company(tx, now=now)
            if not self._others:
                return []
            return limits.share_rates(tx, self._instance.name, told, now=now)

    async def find_caller(self, key: str) -> Caller:
        """As `tenants.store.find_caller`, remembered: a key that is revoked is known for two seconds.

        While the database is away, who was known before it went stays known for five minutes.

        Raises:
            Unauthorized: there is no such key, or it was revoked or has expired.
            Unavailable: the key is new here, and the database is away.
        """
        return await self._find(digest(key), partial(tenants.find_caller, key=key), "API key")

    async def find_signer(self, access_key_id: str) -> Signer:
        """As `find_caller`, of who signs: whether the signature is right is not looked at."""
        found = await self._find(
            digest(f"access key {access_key_id}"),
            partial(tenants.find_signer, access_key_id=access_key_id),
            "access key",
        )
        assert isinstance(found, Signer)
        return found

    async def use_signature(self, signature: str, *, good_for: timedelta) -> bool:
        """Note that a signature was used, for all gateways; say whether it is the first time.

        Raises:
            Unavailable: the database is away.
        """
        if self._away:  # nobody waits for what the last one waited for in vain
            raise Unavailable("the database does not answer")
        return await self._call(self._use_signature, signature, good_for)

    def _use_signature(self, signature: str, good_for: timedelta) -> bool:
        now = self._clock.now()
        with self._db.transaction() as tx:
            if now - self._forgot > _FORGET_EVERY:
                self._forgot = now
                tx.execute(QUERIES["forget_signatures"], {"before": now - good_for})
            row = {"signature": signature, "now": now}
            return one(tx, QUERIES["use_signature"], row) is not None

    async def _find(self, mark: bytes, look_up: _LookUp, what: str) -> Caller:
        now = asyncio.get_running_loop().time()
        kept = self._callers.get(mark)
        age = _AWAY_SECONDS if kept is None else now - self._known_at(kept)
        if kept is not None and age < _KEPT_SECONDS:
            found = kept[1]
            if now - kept[0] > _RENEW_SECONDS:
                self._look(mark, look_up)
        elif kept is not None and age < _AWAY_SECONDS and self._away:
            found = kept[1]  # nobody waits for what the last one waited for in vain
            self._look(mark, look_up)
        else:
            try:
                found = await asyncio.shield(self._look(mark, look_up))
            except Unavailable:
                if kept is None or age >= _AWAY_SECONDS:
                    raise
                found = kept[1]
        if isinstance(found, Unauthorized):
            raise Unauthorized(str(found))
        if found.expires_at is not None and found.expires_at <= self._clock.now():
            raise Unauthorized(f"this {what} has expired; make a new one")
        return found

    def _known_at(self, kept: tuple[float, _Found]) -> float:
        """Return when it was last found to be so."""
        at, found = kept
        # A key that was refused may have been made meanwhile: of that we hear nothing.
        return max(at, self._checked) if isinstance(found, Caller) else at

    def _look(self, mark: bytes, look_up: _LookUp) -> asyncio.Task[_Found]:
        """Look a key up; at once for all that ask meanwhile."""
        task = self._looking.get(mark)
        if task is None:
            task = self._looking[mark] = asyncio.create_task(self._look_up(mark, look_up))
            task.add_done_callback(lambda done: self._looked(mark, done))
        return task

    def _looked(self, mark: bytes, task: asyncio.Task[_Found]) -> None:
        del self._looking[mark]
        if not task.cancelled():
            task.exception()  # whoever waits is told; nobody may

    async def _look_up(self, mark: bytes, look_up: _LookUp) -> _Found:
        began = asyncio.get_running_loop().time()
        found: _Found
        try:
            found = await self._call(self._find_caller, look_up)
        except Unauthorized as error:
            found = error
        self._callers[mark] = began, found
        self._callers.move_to_end(mark)
        if len(self._callers) > _KEPT_CALLERS:
            self._callers.popitem(last=False)
        return found

    def _find_caller(self, look_up: _LookUp) -> Caller:
        with self._db.transaction() as tx:
            return look_up(tx, now=self._clock.now())

    async def _call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        work = self._threads.submit(function, *args, **kwargs)
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                done = await asyncio.wrap_future(work)
        except TimeoutError:
            self._away = True
            raise Unavailable("the database is too busy") from None
        except Unavailable:
            self._away = True
            raise
        except Unauthorized:
            self._away = False
            raise
        self._away = False
        return done
