"""Budgets: what a request may cost at most is held in Postgres before it starts.

    hold ──► (the request runs) ──► its usage is handed over, and the hold turns into what was spent
      └── nothing used: release

Unlike purses nothing is given ahead: a budget may be small, and several gateways give from it, so
each request asks. Those that ask within a few milliseconds do so in one transaction. Who has no
budget does not come here. While the database is away nothing is given.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.core.errors import Unavailable
from sublet.core.failpoint import failpoint
from sublet.core.money import Money
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.limits import whose_limit
from sublet.tenants import limits as store
from sublet.tenants.limit import Limit, LimitKind, Standing

log: Final = logging.getLogger(__name__)

_WAIT_SECONDS: Final = 6.0
_MOST: Final = 500  # in one transaction


@dataclass(slots=True, eq=False)
class _Waiter:
    ask: store.Ask
    answer: asyncio.Future[Standing | None]


class Budgets:
    """Belongs to one event loop."""

    def __init__(self, db: Database, *, holder: str, clock: Clock) -> None:
        self._db = db
        self._holder = holder
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="budgets")
        self._waiting: list[_Waiter] = []
        self._unused: list[UUID] = []
        self._running: asyncio.Task[None] | None = None

    async def hold(self, usage_id: UUID, budgets: Sequence[Limit], nanos: int) -> None:
        """Hold the most that a request can cost in each of its budgets.

        Raises:
            Failure: one of them has not enough left.
            Unavailable: the database does not answer.
        """
        ask = store.Ask(usage_id=usage_id, budgets=budgets, nanos=nanos)
        waiter = _Waiter(ask, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._start()
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                short = await waiter.answer
        except TimeoutError:
            raise Unavailable("the database is too busy") from None
        if short is not None:
            raise refusal(short, nanos, self._clock.now())

    def release(self, usage_id: UUID) -> None:
        """Return the holds of a request that used nothing."""
        self._unused.append(usage_id)
        self._start()

    async def drain(self, seconds: float) -> None:
        """Wait until all is returned; no request may run any more."""
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=seconds)
            if self._running is not None:
                self._running.cancel()  # what is left expires, or is swept by the next run

    def stop(self) -> None:
        """End the thread. Sync: after the loop ran."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        if self._running is None:
            self._running = asyncio.create_task(self._work())

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting or self._unused:
                left = [waiter for waiter in self._waiting if not waiter.answer.done()]
                waiting, self._waiting = left[:_MOST], left[_MOST:]
                unused, self._unused = self._unused, []
                asks = [waiter.ask for waiter in waiting]
                try:
                    answers = await loop.run_in_executor(self._thread, self._do, asks, unused)
                except Exception as error:
                    if not isinstance(error, Unavailable):
                        log.exception("gateway.failed")
                    # It may have taken effect all the same.
                    self._unused += unused
                    for waiter in waiting:
                        self._unused.append(waiter.ask.usage_id)
                        if not waiter.answer.done():
                            waiter.answer.set_exception(error)
                    await asyncio.sleep(0.1)
                    continue
                for waiter, answer in zip(waiting, answers, strict=True):
                    if not waiter.answer.done():
                        waiter.answer.set_result(answer)
                    elif answer is None:  # who asked did not wait for it
                        self._unused.append(waiter.ask.usage_id)
        finally:
            self._running = None

    def _do(self, asks: Sequence[store.Ask], unused: Sequence[UUID]) -> list[Standing | None]:
        answers: list[Standing | None] = []
        with self._db.transaction("budgets") as tx:
            if unused:
                store.release_budgets(tx, unused)
            if asks:
                now = self._clock.now()
                answers = store.hold_budgets(tx, asks, holder=self._holder, now=now)
            failpoint("gateway.budgets.held")
        return answers


def refusal(short: Standing, nanos: int, now: datetime) -> Failure:
    """Say which budget, what is left of it, and when it returns."""
    limit = short.limit
    budget = f"{whose_limit(limit)}'s budget"
    period = {
        LimitKind.DAY: "a day", LimitKind.MONTH: "a month", LimitKind.LIFETIME: "in all",
    }[limit.kind]  # fmt: skip
    returns = limit.kind.returns(now)
    if returns is None:
        when = "it does not return: raise the budget"
    else:
        when = f"it returns at {returns:%Y-%m-%dT%H:%M:%SZ}"
    amount = Money(limit.amount)
    asked = f"this request can cost up to {Money(nanos)}, and this {budget} is {amount} {period}"
    stands = (
        f"{Money(short.spent_nanos)} is spent, {Money(short.held_nanos)} held by what runs now,"
        f" {Money(short.left_nanos)} left"
    )
    if nanos > limit.amount:
        return Failure(
            Kind.OVER_BUDGET, f"{asked}: set a lower max_tokens, shorten the input, or raise it"
        )
    if short.spent_nanos + nanos <= limit.amount:
        return Failure(
            Kind.IN_FLIGHT,
            f"{asked}: {stands}; retry when some of what runs has ended",
        )
    advice = "set a lower max_tokens, or wait" if short.left_nanos else "wait"
    return Failure(
        Kind.BUDGET_SPENT,
        f"{asked}: {stands}; {when}" + ("" if returns is None else f"; {advice}"),
        after_seconds=None if returns is None else (returns - now).total_seconds(),
    )
