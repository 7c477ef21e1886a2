"""What a gateway does for batches: reads their files, answers lines, writes results.

Twice a second, and whenever a line ends, it looks what interactive traffic leaves over of each
model's idle replicas, on all gateways together, and takes lines for that. When there is less, it
puts lines back: interactive requests do not wait for them.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from sublet.core.db import Database, Tx
from sublet.core.errors import NotFound, Unavailable
from sublet.core.vault import Vault
from sublet.gateway.batches import lines, store
from sublet.gateway.batches.line import LineServing, Taken, ask_of, payer
from sublet.gateway.batches.results import Results
from sublet.gateway.batches.room import Room, room
from sublet.gateway.batches.store import Batch, Dialect, Line, Me, Open, State, bound_to
from sublet.gateway.batches.words import WORDS, answered, refused
from sublet.gateway.dialect import Dialect as Words
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.service import Service
from sublet.metering.report import Report
from sublet.models import catalogue, stored
from sublet.models import store as models
from sublet.models.chest import SealedFile
from sublet.models.deployment import Deployment
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Caller, KeyId, Role, Tenant, TenantId

log: Final = logging.getLogger(__name__)
T = TypeVar("T")

_LOOK_SECONDS: Final = 0.5
_BREATH_SECONDS: Final = 0.02  # between two looks: what ends meanwhile is made up for at once
_HEARD: Final = timedelta(seconds=10)  # gateways say every second what they have
_MOST_RUNNING: Final = 256  # lines of one gateway
_MOST_TROUBLES: Final = 5
_KNOWN: Final = 64  # batches whose file is kept open
# Nobody is to blame, or it is over soon: the line waits for as long as its batch may.
_WAITS: Final = frozenset(
    {
        Kind.MODEL_BUSY, Kind.NO_IDLE, Kind.NOT_READY, Kind.RECLAIMED, Kind.UNAVAILABLE,
        Kind.STOPPING, Kind.IN_FLIGHT, Kind.RATE_LIMITED,
    }
)  # fmt: skip
# It may be the line: it is tried so often and no more.
_TROUBLES: Final = frozenset(
    {Kind.MODEL_FAILED, Kind.SILENT, Kind.STALLED, Kind.TIMED_OUT, Kind.INTERNAL}
)


class _Shares(NamedTuple):
    """What one look found."""

    lines: list[Line]  # claimed
    asked: list[str]  # models that lines wait for
    over: dict[str, int]  # by model: so many lines should give way


@dataclass(slots=True)
class _Known:
    """What lines of one batch share."""

    open: Open
    words: Words
    caller: Caller
    tenant: Tenant
    file: SealedFile


@dataclass(slots=True, eq=False)
class _Run:
    line: Line
    task: asyncio.Task[None] | None = None
    serving: LineServing | None = None


@dataclass(slots=True, kw_only=True)
class Worker:
    """Belongs to one event loop."""

    service: Service
    db: Database
    me: Me
    vault: Vault
    _runs: list[_Run] = field(default_factory=list)
    _known: dict[UUID, _Known] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _chore: asyncio.Task[None] | None = None
    _stopping: bool = False

    async def run(self) -> None:
        """Work for as long as this runs."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._news.wait()
            await asyncio.sleep(_BREATH_SECONDS)
            self._news.clear()
            try:
                await self._look()
            except Unavailable:
                log.warning("gateway.batches_wait")
            except Exception:
                log.exception("gateway.failed")

    async def stop(self) -> None:
        """Put back what runs; what was answered is kept first."""
        self._stopping = True
        for run in list(self._runs):
            self._break_off(run)
        tasks = [run.task for run in self._runs if run.task is not None]
        if self._chore is not None:
            tasks.append(self._chore)
            self._chore.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        with contextlib.suppress(Unavailable):
            await self._transact(lambda tx: store.put_all_back(tx, self.me))

    # ── looking what there is to do ──────────────────────────────────────────────────────

    async def _look(self) -> None:
        if self._stopping:
            return
        now = self.service.directory.now()
        await self._transact(lambda tx: store.adopt(tx, self.me, now=now))
        if self._chore is None or self._chore.done():
            batch = await self._transact(lambda tx: store.claim_batch(tx, self.me, now=now))
            if batch is not None:
                self._chore = asyncio.create_task(self._take_up(batch))
        shares = await self._transact(self._claim)
        for model in shares.asked:
            self.service.demand.asked(model, at=now)  # one that rests at none comes up
        for model, number in shares.over.items():
            # Interactive requests need the room: the youngest lines give way.
            for run in [run for run in self._runs if run.line.model == model][-number:]:
                self._break_off(run)
        for line in shares.lines:
            run = _Run(line)
            self._runs.append(run)
            run.task = asyncio.create_task(self._run(run))

    def _claim(self, tx: Tx) -> _Shares:
        """Share out what is left over, and take it. In a thread."""
        now = self.service.directory.now()
        shares = _Shares([], [], {})
        wanted = store.list_models(tx, now=now)
        if not wanted or not store.lock_claims(tx):
            return shares
        loads = models.list_loads(tx, since=now - _HEARD)
        running = store.count_running(tx)
        deployments = {one.name: one for one in models.list_deployments(tx)}
        for name in wanted:
            deployment = deployments.get(name)
            if deployment is None or not deployment.wanted:  # whoever asks is told so
                left = Room(free=_MOST_RUNNING, over=0)
            else:
                shares.asked.append(name)
                left = room(
                    self.service.table.idle(name), deployment, loads.get(name),
                    slots=_slots(tx, deployment), running=running.get(name, 0),
                )  # fmt: skip
            if left.over:
                shares.over[name] = left.over
            most = min(left.free, _MOST_RUNNING - len(self._runs) - len(shares.lines))
            if most > 0:
                shares.lines.extend(store.claim_lines(tx, self.me, name, most=most, now=now))
        return shares

    def _break_off(self, run: _Run) -> None:
        if run.task is not None and (run.serving is None or not run.serving.settles):
            run.task.cancel()

    async def _learn(self, batch_id: UUID) -> _Known:
        """Return what lines of a batch share."""
        if (known := self._known.get(batch_id)) is not None:
            return known
        now, shelf = self.service.directory.now(), self.service.files.shelf

        def look(tx: Tx) -> _Known:
            (one,) = store.list_open(tx, [batch_id])
            tenant = tenants.get_tenant(tx, TenantId(one.tenant_id))
            caller = Caller(
                key_id=KeyId(one.api_key_id), role=Role.TENANT, tenant=tenant, expires_at=None
            )
            file = stored.get(tx, one.tenant_id, one.input_file, now=now)
            opened = stored.open_file(tx, file, shelf=shelf)
            return _Known(one, WORDS[one.endpoint], caller, tenant, opened)

        known = await self._transact(look)
        if len(self._known) >= _KNOWN:
            del self._known[next(iter(self._known))]
        self._known[batch_id] = known
        return known

    # ── a line ───────────────────────────────────────────────────────────────────────────

    async def _run(self, run: _Run) -> None:
        line = run.line
        try:
            await self._answer(run, await self._learn(line.batch_id))
        except Taken:
            pass
        except asyncio.CancelledError:
            await self._put_back(line, seconds=None)
        except Unavailable:
            await self._put_back(line, seconds=2.0)
        except Exception as error:  # noqa: BLE001 - the last line: nothing else is running it
            facts = {
                "batch": str(line.batch_id),
                "line": line.number,
                "error": type(error).__name__,
            }
            log.error("gateway.failed", extra=facts)  # noqa: TRY400 - its message may hold a prompt
            await self._put_back(line, seconds=2.0)
        finally:
            self._runs.remove(run)
            self._news.set()

    async def _answer(self, run: _Run, known: _Known) -> None:
        line, open_, words = run.line, known.open, known.words
        files = self.service.files
        text = await files.aside(known.file.read, line.start, line.bytes)
        asked = lines.read(text)
        request_id = f"req_{line.id.hex}"

        async def keeps(body: bytes, report: Report) -> bool:
            assert run.serving is not None
            answer = answered(open_.dialect, asked.custom_id, run.serving.request_id, body)
            return await self._end(line, answer, report)

        try:
            ask = ask_of(words, bytes(asked.body))
            subjects = self.service.limiter.find(known.caller.key_id, known.tenant.id)
            run.serving = LineServing(
                self.service, words, line, ask, payer(known.caller, known.tenant, subjects),
                created=int(self.service.directory.now().timestamp()), keeps=keeps,
            )  # fmt: skip
            await run.serving.run()
        except Failure as failure:
            trouble = failure.kind in _TROUBLES and line.troubles + 1 < _MOST_TROUBLES
            if failure.kind in _WAITS or trouble:
                await self._put_back(line, seconds=failure.after_seconds or 1.0, trouble=trouble)
                return
            said = refused(open_.dialect, words, asked.custom_id, request_id, failure)
            await self._end(line, said, None)

    async def _end(self, line: Line, answer: bytes, report: Report | None) -> bool:
        sealed = self.vault.seal(answer.decode(), bound_to=bound_to(line.batch_id, line.number))
        written = None if report is None else report.line
        return await self._until_done(
            lambda tx: store.end_line(tx, self.me, line, answer=sealed, report=written)
        )

    async def _put_back(self, line: Line, *, seconds: float | None, trouble: bool = False) -> None:
        later = None
        if seconds is not None:
            later = self.service.directory.now() + timedelta(seconds=seconds)
        await self._until_done(
            lambda tx: store.put_back(tx, self.me, line, not_before=later, trouble=trouble)
        )

    async def _until_done(self, work: Callable[[Tx], T]) -> T:
        """Do it again until the database answers: an answer is worth waiting for."""
        while True:
            try:
                return await self._transact(work)
            except Unavailable:
                await asyncio.sleep(1)

    # ── a batch as a whole ───────────────────────────────────────────────────────────────

    async def _take_up(self, batch: Batch) -> None:
        try:
            if batch.state is State.VALIDATING:
                await self._validate(batch)
            else:
                await Results(self.service, self.db, self.me, self.vault).write(batch)
        except (Unavailable, Failure, NotFound) as error:
            log.warning("gateway.batch_waits", extra={"batch": str(batch.id), "why": str(error)})
            await asyncio.sleep(1)
        except Exception:
            log.exception("gateway.failed")
            await asyncio.sleep(5)
        finally:
            with contextlib.suppress(Unavailable):
                await self._transact(lambda tx: store.let_go(tx, self.me, batch.id))
            self._news.set()

    async def _validate(self, batch: Batch) -> None:
        files, now = self.service.files, self.service.directory.now()
        shelf = files.shelf

        def open_file(tx: Tx) -> SealedFile:
            file = stored.get(tx, batch.tenant_id, batch.input_file, now=now)
            return stored.open_file(tx, file, shelf=shelf)

        opened = await self._transact(open_file)
        read = await files.aside(
            lambda: lines.check(stored.lines(opened, most=lines.LONGEST), endpoint=batch.endpoint)
        )
        if batch.dialect is Dialect.OPENAI:  # of Anthropic's each is told by itself
            lines.check_models(read, self._missing(batch, read))

        def note(tx: Tx) -> None:
            if read.errors:
                store.fail(tx, self.me, batch.id, read, now=now)
            else:
                store.begin(tx, self.me, batch.id, read, now=now)

        # In a thread of its own: fifty thousand rows take longer than a look.
        await files.aside(self._in_transaction, note)

    def _missing(self, batch: Batch, read: store.Read) -> dict[str, str | None]:
        """Return {model: why a batch cannot ask it, or None}."""
        table = self.service.table.seen_by(batch.tenant_id)
        found: dict[str, str | None] = {}
        for model in {model for _, model, _, _ in read.lines}:
            try:
                table.find(model).tariff_of("batch")
                found[model] = None
            except Failure as failure:
                found[model] = failure.message
        return found

    def _in_transaction(self, work: Callable[[Tx], T]) -> T:
        with self.db.transaction() as tx:
            return work(tx)

    async def _transact(self, work: Callable[[Tx], T]) -> T:
        return await self.service.directory.transact(work)


def _slots(tx: Tx, deployment: Deployment) -> int:
    """Return how many requests one of its replicas answers at a time; one, where nobody says it."""
    try:
        return catalogue.recipe_of(tx, deployment).slots
    except NotFound:
        return 1
