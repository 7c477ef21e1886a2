"""The only place where the gateway's one event loop meets code that waits.

Stores are sync. They run here in a few threads, each call one short transaction, so that
thousands of open streams wait for nothing but their own bytes.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, ParamSpec, TypeVar
from uuid import UUID

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.core.errors import Conflict, NotFound, Unauthorized, Unavailable
from sublet.core.money import Money
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.grant import Grant, Need, decide
from sublet.gateway.instance import Instance
from sublet.gateway.table import Table
from sublet.gateway.tariff import Counts, Tariff
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.metering import store as metering
from sublet.metering.usage import Usage
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Caller, Tenant, digest

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 6
_CALL_SECONDS: Final = 6.0  # longer than any healthy call by far
_KEPT_SECONDS: Final = 2.0  # a revoked key works for so long at most
_KEPT_CALLERS: Final = 10_000
_HOLD: Final = timedelta(minutes=15)  # the longest request and its settlement, with room


class Unsure(Unavailable):
    """The database went away in the middle: what was asked may have been done, or will be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a request used, ready to be charged, however often that is tried."""

    usage: Usage
    counts: Counts
    tariff: Tariff


class Spool:
    def __init__(self, url: str, *, name: str, clock: Clock) -> None:
        url = _bounded(url, name)
        self._db = Database(url, connections=_THREADS, wait_seconds=2)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spool")
        # Its own thread: a pool full of waiting calls must not make this run look dead.
        self._pulse = ThreadPoolExecutor(1, thread_name_prefix="pulse")
        self._clock = clock
        self._callers: OrderedDict[bytes, tuple[float, Caller | Unauthorized]] = OrderedDict()
        self._accounts: dict[UUID, tuple[int, int]] = {}
        self._lock = threading.Lock()  # of _accounts, which threads fill
        self.instance = Instance(name, url, clock)

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

    async def open(self, request_id: UUID, tenant: Tenant, need: Need) -> Grant | Failure:
        """Hold what `need` may cost, or say why the wallet cannot.

        Raises:
            Unsure: whether money is held is not known: void it, later.
            Unavailable: none is held.
        """
        return await self._call(self._open, request_id, tenant, need)

    def _open(self, request_id: UUID, tenant: Tenant, need: Need) -> Grant | Failure:
        try:
            accounts = self._accounts_of(tenant)
        except NotFound:
            return Failure(Kind.UNPAID, "this tenant has no wallet yet: add credit")
        asked: list[Grant] = []
        try:
            return self._hold(request_id, tenant, need, accounts, asked)
        except Unavailable as error:
            if asked:
                raise Unsure(str(error)) from error
            raise

    def _hold(
        self,
        request_id: UUID,
        tenant: Tenant,
        need: Need,
        accounts: tuple[int, int],
        asked: list[Grant],
    ) -> Grant | Failure:
        """As `open`; `asked` gets the grant just before its money is asked for."""
        now = self._clock.now()
        wallet_id, revenue_id = accounts
        with self._db.transaction() as tx:
            # Nobody moves this wallet between the look and the hold.
            tx.execute(ledger.QUERIES["lock_accounts"], {"ids": sorted((wallet_id, revenue_id))})
            decided = decide(need, ledger.get_account(tx, tenant.wallet))
            if isinstance(decided, Grant):
                asked.append(decided)
                transfer = Transfer(
                    id=request_id,
                    debit_account=wallet_id,
                    credit_account=revenue_id,
                    amount=decided.amount,
                    reason="tokens",
                    happened_at=now,
                )
                ledger.hold(
                    tx, transfer, holder=self.instance.holder, expires_at=now + _HOLD, now=now
                )
            return decided

    async def settle(self, bill: Bill) -> Money:
        """Charge what was used and return the rest. Repeating it changes nothing.

        Raises:
            Unavailable: repeat it.
            Unpaid: the hold was gone, and the wallet is empty.
        """
        return await self._call(self._settle, bill)

    def _settle(self, bill: Bill) -> Money:
        with self._db.transaction() as tx:
            return metering.settle(
                tx,
                bill.usage,
                bill.tariff.lines(bill.counts),
                hold_id=bill.usage.id,
                now=self._clock.now(),
            )

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

    def _accounts_of(self, tenant: Tenant) -> tuple[int, int]:
        """Return (wallet, revenue). Ids of accounts never change, so they are kept."""
        with self._lock:
            kept = self._accounts.get(tenant.id)
        if kept is None:
            with self._db.transaction() as tx:
                wallet = ledger.get_account(tx, tenant.wallet)
                revenue = ledger.get_account(tx, tenant.revenue)
            kept = wallet.id, revenue.id
            with self._lock:
                self._accounts[tenant.id] = kept
        return kept

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
