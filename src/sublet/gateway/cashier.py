"""Money for requests: given from purses in memory, spent to a disk, handed over behind them.

    hold ──► (the request runs) ──► settle ──► spool ──► done ┄┄► handed over
      │                               └── nothing used: release
      └── the purse is too small: refill, with all others that wait

A request waits for the ledger only when its tenant's purse is too small, and in the end for the
gateway's own disk. What is on the disk goes to the ledger a moment later, many together.

While the database is away purses give what they have. Then requests are refused, and told why.
While the disk is full or read-only a request ends once it is handed over instead.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, ParamSpec, TypeVar
from uuid import UUID

from sublet.core.errors import Unavailable
from sublet.core.failpoint import failpoint
from sublet.core.ids import new_id
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.grant import CountFirst, Grant, Need
from sublet.gateway.purse import IDLE_SECONDS, RENEW_SECONDS, Purse
from sublet.gateway.spool import Spool
from sublet.gateway.till import Refill, Till, Turn
from sublet.metering.report import Report

log: Final = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_WAIT_SECONDS: Final = 6.0  # for money; longer than any healthy refill by far
_WINDOW_SECONDS: Final = 0.001  # in which the first request after a lull may find company
_HAND_OVER_SECONDS: Final = 0.05  # the same, of reports: mostly nobody waits for those, …
_STEADY_SECONDS: Final = 0.25  # … so where they keep coming the disk is asked for less often
_LULL_SECONDS: Final = 1.0
_MANY: Final = 250  # reports for which it is not worth waiting for more
_MOST: Final = 500  # of either in one transaction
_FEW: Final = 40  # purses that are returned in one
_LOOK_SECONDS: Final = 0.25
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_POOR_SECONDS: Final = 30.0  # for so long who was asked to count is asked at once
_MOST_UNHANDED: Final = 100_000  # reports in memory; about a kilobyte each


@dataclass(slots=True, eq=False)
class _Waiter:
    need: Need
    answer: asyncio.Future[Grant]


@dataclass(slots=True, eq=False)
class _Entry:
    """A report on its way, and who waits until it is safe."""

    report: Report
    safe: asyncio.Future[None]
    file: int | None = None  # of the spool; None: the disk did not take it


@dataclass(slots=True)
class Cashier:
    """Belongs to one event loop."""

    till: Till
    spool: Spool
    idle_seconds: float = IDLE_SECONDS  # then a purse goes back to its wallet
    _purses: dict[UUID, Purse[_Waiter]] = field(default_factory=dict)
    _poor: dict[UUID, float] = field(default_factory=dict)
    _unwritten: deque[_Entry] = field(default_factory=deque)
    _unhanded: deque[_Entry] = field(default_factory=deque)
    _running: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _away: bool = False  # did the database fail to answer the last time?
    _disk_sick: bool = False
    _handed_at: float = float("-inf")  # when reports were last handed over
    _soon: bool = False  # does somebody wait for the next time?
    _threads: dict[str, ThreadPoolExecutor] = field(
        default_factory=lambda: {
            name: ThreadPoolExecutor(1, thread_name_prefix=name)
            for name in ("refill", "write", "hand-over", "return")
        }
    )

    # ── what requests ask ────────────────────────────────────────────────────────────────

    async def hold(self, tenant_id: UUID, need: Need) -> Grant:
        """Return what the request may use; `settle` or `release` it in the end.

        Raises:
            Failure: the wallet cannot pay; or the purse cannot, and the database is away.
            CountFirst: come again with an exact count of the prompt.
            Unavailable: the database did not answer in time.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        purse = self._purse(tenant_id)
        if (grant := purse.take(need, now=now)) is not None:
            return grant
        if not need.counted and self._poor.get(tenant_id, 0) > now:
            raise CountFirst
        if self._away or len(self._unhanded) > _MOST_UNHANDED:
            self._start("refill", self._refill)  # so that it is noticed when it is back
            raise Failure(
                Kind.UNAVAILABLE,
                "the gateway's database does not answer, and what it holds of this tenant's money"
                " is used up; retry",
            )
        waiter = _Waiter(need, loop.create_future())
        purse.waiting.append(waiter)
        self._start("refill", self._refill)
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                return await waiter.answer
        except TimeoutError:
            self._give_up(tenant_id, waiter)
            raise Unavailable("the database is too busy") from None
        except asyncio.CancelledError:
            self._give_up(tenant_id, waiter)
            raise

    def _give_up(self, tenant_id: UUID, waiter: _Waiter) -> None:
        """It may have been answered in the very moment in which nobody waited any more."""
        answer = waiter.answer
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            self.release(tenant_id, answer.result())

    def release(self, tenant_id: UUID, grant: Grant) -> None:
        """Take back a grant of which nothing was used."""
        self._purse(tenant_id).end(grant, used=0)

    async def settle(self, grant: Grant, report: Report, *, soon: bool = False) -> None:
        """Note what was used of a grant; returns once that cannot be lost any more.

        Args:
            grant: what `hold` returned.
            report: of what was used of it.
            soon: somebody waits until it is handed over: a budget, which holds the most for it.
        """
        self._soon = self._soon or soon
        self._purse(report.tenant_id).end(grant, used=report.nanos)
        entry = _Entry(report, asyncio.get_running_loop().create_future())
        self._unwritten.append(entry)
        self._start("write", self._write)
        await entry.safe

    def _purse(self, tenant_id: UUID) -> Purse[_Waiter]:
        purse = self._purses.get(tenant_id)
        if purse is None:
            purse = self._purses[tenant_id] = Purse(tenant_id, self.idle_seconds)
        return purse

    def standing(self) -> tuple[int, int, int]:
        """Return for metrics: nanos held, nanos committed to requests, reports not handed over."""
        purses = self._purses.values()
        held = sum(purse.held for purse in purses)
        committed = sum(purse.committed for purse in purses)
        return held, committed, len(self._unwritten) + len(self._unhanded)

    @property
    def queued(self) -> int:
        """How many requests wait for money."""
        return sum(len(purse.waiting) for purse in self._purses.values())

    # ── the end ──────────────────────────────────────────────────────────────────────────

    async def drain(self, seconds: float) -> int:
        """Hand everything over and return all money; say how many reports are left.

        No request may run any more. What cannot be handed over in time is on the disk, where
        the next run of this name finds it.
        """
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            self._start("return", lambda: self._return(idle_seconds=0))
            if not (self._purses or self._unwritten or self._unhanded):
                break
            await asyncio.sleep(0.01)
        for task in self._running.values():
            task.cancel()
        left = len(self._unwritten) + len(self._unhanded)
        if left or self._purses:
            committed = sum(purse.committed for purse in self._purses.values())
            log.error(
                "gateway.left_open",
                extra={
                    "reports": left, "purses": len(self._purses), "committed_nanos": committed,
                },
            )  # fmt: skip
        return left

    def stop(self) -> None:
        """End the threads. Sync: after the loop ran."""
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)

    async def watch(self) -> None:
        """Return what is idle and renew what grows old, for as long as this runs."""
        self.spool.prepare()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._start("return", lambda: self._return(idle_seconds=self.idle_seconds))
            now = asyncio.get_running_loop().time()
            for tenant_id in [id_ for id_, until in self._poor.items() if until < now]:
                del self._poor[tenant_id]

    # ── holding more ─────────────────────────────────────────────────────────────────────

    async def _refill(self) -> None:
        await asyncio.sleep(_WINDOW_SECONDS)
        while True:
            now = asyncio.get_running_loop().time()
            work: list[tuple[Purse[_Waiter], list[_Waiter], Refill]] = []
            for purse in self._purses.values():
                if purse.waiting and not purse.busy:
                    work.append(self._begin_refill(purse, now))
                    if len(work) == _MOST:
                        break
            if not work:
                return
            refills = [refill for _, _, refill in work]
            try:
                await self._in_thread("refill", self.till.refill, refills)
            except Unavailable as error:
                # Nobody need wait for the end of it; but what was done must be known.
                for _, waiters, _ in work:
                    _tell(waiters, error)
                self._refuse_waiting(error)
                await self._until_done("refill", self.till.refill, refills)
            except Exception as error:
                log.exception("gateway.failed")
                for purse, waiters, refill in work:
                    _tell(waiters, error)
                    purse.rehold(refill.before, at=purse.held_at)
                continue
            for purse, waiters, refill in work:
                self._end_refill(purse, waiters, refill, held_at=now)

    def _begin_refill(
        self, purse: Purse[_Waiter], now: float
    ) -> tuple[Purse[_Waiter], list[_Waiter], Refill]:
        waiters = [waiter for waiter in purse.waiting if not waiter.answer.done()]
        purse.waiting.clear()
        purse.busy = purse.closed = True
        needs = [waiter.need for waiter in waiters]
        asked = sum(need.most.nanos for need in needs)
        refill = Refill(
            tenant_id=purse.tenant_id,
            before=purse.backing,
            free=purse.free,
            needs=needs,
            extra=purse.expect(asked, now=now),
            next_id=new_id(),
        )
        return purse, waiters, refill

    def _end_refill(
        self, purse: Purse[_Waiter], waiters: list[_Waiter], refill: Refill, *, held_at: float
    ) -> None:
        now = asyncio.get_running_loop().time()
        purse.rehold(refill.after, at=held_at)  # as in `_end_turn`
        for waiter, answer in zip(waiters, refill.answers, strict=True):
            if waiter.answer.done():
                continue  # it gave up
            if isinstance(answer, Grant):
                waiter.answer.set_result(purse.give(answer, now=now))
            else:
                if isinstance(answer, CountFirst):
                    self._poor[purse.tenant_id] = now + _POOR_SECONDS
                waiter.answer.set_exception(answer)

    def _refuse_waiting(self, error: Unavailable) -> None:
        for purse in self._purses.values():
            _tell(purse.waiting, error)
            purse.waiting.clear()

    # ── handing over ─────────────────────────────────────────────────────────────────────

    async def _write(self) -> None:
        while self._unwritten:
            entries = [self._unwritten.popleft() for _ in range(len(self._unwritten))]
            reports = [entry.report for entry in entries]
            try:
                file = await self._in_thread("write", self.spool.write, reports)
            except OSError as error:
                if not self._disk_sick:
                    why = error.strerror or str(error)
                    log.error("gateway.spool_sick", extra={"error": why})  # noqa: TRY400
                self._disk_sick = True
            else:
                if self._disk_sick:
                    log.info("gateway.spool_well")
                self._disk_sick = False
                for entry in entries:
                    entry.file = file
                    _set(entry.safe)
            self._unhanded.extend(entries)
            self._start("hand-over", self._hand_over)

    async def _hand_over(self) -> None:
        most = _MOST
        while self._unhanded:
            if len(self._unhanded) < _MANY:
                lull = asyncio.get_running_loop().time() - self._handed_at > _LULL_SECONDS
                soon = lull or self._soon or self._disk_sick  # then requests wait for it, too
                await asyncio.sleep(_HAND_OVER_SECONDS if soon else _STEADY_SECONDS)
            self._soon = False
            entries: list[_Entry] = []
            later: list[_Entry] = []
            while self._unhanded and len(entries) < most:
                entry = self._unhanded.popleft()
                busy = self._purse(entry.report.tenant_id).busy
                (later if busy else entries).append(entry)
            self._unhanded.extendleft(reversed(later))
            if not entries:
                await asyncio.sleep(_WINDOW_SECONDS)
            elif await self._hand_over_these(entries):
                most = min(_MOST, 2 * most)
            elif len(entries) > 1:
                # One of them is more than the database takes: find it, and let the others pass.
                most = max(1, len(entries) // 2)
                self._unhanded.extendleft(reversed(entries))
            else:
                self._give_up_report(entries[0])

    async def _hand_over_these(self, entries: list[_Entry]) -> bool:
        spent: dict[UUID, int] = {}
        for entry in entries:
            tenant_id = entry.report.tenant_id
            spent[tenant_id] = spent.get(tenant_id, 0) + entry.report.nanos
        began = asyncio.get_running_loop().time()
        turns = [self._begin_turn(self._purse(id_), nanos) for id_, nanos in spent.items()]
        done = await self._do_turns([entry.report for entry in entries], turns)
        for turn in turns:
            self._end_turn(turn, spent[turn.tenant_id], done=done, held_at=began)
        if done:
            self._handed_at = asyncio.get_running_loop().time()
            failpoint("gateway.hand_over.before_forgetting")
            self._forget_reports(entries)
        return done

    def _give_up_report(self, entry: _Entry) -> None:
        """A bug, of which repeating would change nothing: it is in the log, and as a gap."""
        self._purse(entry.report.tenant_id).spent -= entry.report.nanos
        log.error("gateway.unhanded", extra={"report": entry.report.line.decode()})
        self._forget_reports([entry])

    def _forget_reports(self, entries: list[_Entry]) -> None:
        files: dict[int, int] = {}
        for entry in entries:
            _set(entry.safe)
            if entry.file is not None:
                files[entry.file] = files.get(entry.file, 0) + 1
        for file, number in files.items():
            self.spool.forget(file, number)

    async def _do_turns(self, reports: list[Report], turns: list[Turn]) -> bool:
        """Returns False when it is the database that cannot take these."""
        try:
            await self._until_done("hand-over", self.till.hand_over, reports, turns)
        except Exception:
            log.exception("gateway.hand_over_failed")
            return False
        return True

    def _begin_turn(self, purse: Purse[_Waiter], spent: int) -> Turn:
        now = asyncio.get_running_loop().time()
        purse.busy = True
        stays = spent > 0 and purse.stays(spent, now=now)
        purse.leaving = 0 if stays else purse.surplus(now=now)
        keep = max(0, purse.held - purse.leaving - spent)
        return Turn(
            tenant_id=purse.tenant_id, before=purse.backing, stays=stays, keep=keep,
            next_id=new_id(),
        )  # fmt: skip

    def _end_turn(self, turn: Turn, spent: int, *, done: bool, held_at: float) -> None:
        purse = self._purse(turn.tenant_id)
        if done:
            purse.spent -= spent
        if done and turn.after is not turn.before:
            # Of the first attempt, which may be the one that did it: it expires by that.
            purse.rehold(turn.after, at=held_at)
        else:
            purse.rehold(turn.before, at=purse.held_at)
        if purse.waiting:
            self._start("refill", self._refill)

    # ── giving back ──────────────────────────────────────────────────────────────────────

    async def _return(self, *, idle_seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        idle, old = [], []
        for purse in list(self._purses.values()):
            resting = now - purse.used_at > idle_seconds
            if purse.unused and resting:
                if purse.hold_id is None:
                    self._forget(purse)
                else:
                    idle.append(purse)
            elif purse.hold_id is not None and not purse.busy and not purse.waiting:
                age = now - purse.held_at
                if age > RENEW_SECONDS or (
                    resting and age > idle_seconds and purse.surplus(now=now)
                ):
                    old.append(purse)
        # A few at a time: who comes back meanwhile waits until his purse is returned.
        for start in range(0, len(idle), _FEW):
            still = [purse for purse in idle[start : start + _FEW] if purse.unused]
            now = asyncio.get_running_loop().time()
            await self._return_these(
                [purse for purse in still if now - purse.used_at > idle_seconds]
            )
        if old:
            began = asyncio.get_running_loop().time()
            turns = [self._begin_turn(purse, 0) for purse in old[:_MOST] if not purse.busy]
            done = await self._do_turns([], turns)
            for turn in turns:
                self._end_turn(turn, 0, done=done, held_at=began)

    async def _return_these(self, purses: list[Purse[_Waiter]]) -> None:
        if not purses:
            return
        for purse in purses:
            purse.busy = purse.closed = True
        ids = [purse.hold_id for purse in purses if purse.hold_id is not None]
        try:
            await self._until_done("return", self.till.give_back, ids)
        except Exception:
            log.exception("gateway.failed")  # it expires
        for purse in purses:
            purse.rehold(None, at=0.0)
            self._forget(purse)
            if purse.waiting:
                self._start("refill", self._refill)

    def _forget(self, purse: Purse[_Waiter]) -> None:
        if purse.unused and purse.hold_id is None:
            self._purses.pop(purse.tenant_id, None)

    # ── threads ──────────────────────────────────────────────────────────────────────────

    async def _in_thread(
        self, name: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        try:
            done = await asyncio.wrap_future(self._threads[name].submit(work, *args, **kwargs))
        except Unavailable:
            self._away = True
            raise
        if name != "write":
            self._away = False
        return done

    async def _until_done(
        self, name: str, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Do it again until the database answers."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._in_thread(name, work, *args, **kwargs)
            except Unavailable:
                log.warning("gateway.database_away", extra={"work": name})
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _start(self, name: str, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Let `work` run, unless it does."""
        running = self._running.get(name)
        # One that is done may still be listed: nobody would do then what came just after it.
        if running is None or running.done():
            task = asyncio.create_task(work())
            self._running[name] = task
            task.add_done_callback(lambda done: self._ended(name, done))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._running.get(name) is task:
            del self._running[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("gateway.failed", exc_info=error)


def _tell(waiters: Iterable[_Waiter], error: Exception) -> None:
    for waiter in waiters:
        if not waiter.answer.done():
            waiter.answer.set_exception(error)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
