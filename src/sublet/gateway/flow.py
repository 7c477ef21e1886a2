"""A request's life: hold, generate, settle, and only then the last bytes.

    hold ──► generate ──► settle ──► [DONE]
      │         ├── hung up ───► ask the replica for the final count ──► settle
      │         └── broke off, cut ──► settle what was delivered, or release ──► error
      └──► error, nothing held

The client is listened to all the while: when it hangs up, the connection to the replica is
closed at once, which stops the engine, whether or not a first token had come.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, TypeVar

from sublet.core.failpoint import failpoint
from sublet.core.money import Money
from sublet.gateway.answers import Broken, Gone, Piece, reclaimed
from sublet.gateway.ask import Ask
from sublet.gateway.background import Quiet, keep
from sublet.gateway.bought.call import SupplierCall
from sublet.gateway.bought.outside import ELSEWHERE, Outside
from sublet.gateway.dialect import Reply, RichReply
from sublet.gateway.exchange import Exchange
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.grant import CountFirst, Grant, Need
from sublet.gateway.limits import Subject, budgets_of
from sublet.gateway.service import Service, Stop, Why, facts, why_cut
from sublet.gateway.tariff import Counts
from sublet.metering.report import Report
from sublet.metering.usage import Outcome, Usage
from sublet.models.deployment import Replica
from sublet.tenants.tenant import Caller, Tenant

log: Final = logging.getLogger(__name__)
T = TypeVar("T")

_LAST_BYTES_SECONDS: Final = 30.0  # for a client that reads too slowly


class Serving:
    def __init__(
        self,
        service: Service,
        exchange: Exchange | Quiet,
        ask: Ask,
        caller: Caller,
        tenant: Tenant,
        subjects: tuple[Subject, ...],
    ) -> None:
        self._service = service
        self._exchange = exchange
        self._ask = ask
        self._caller = caller
        self._tenant = tenant
        self._subjects = subjects  # whose limits it is within
        self._budgeted = False  # is something held in a budget for it?
        self._granted: Grant | None = None  # what it has to pay out of, or to give back
        self.turn: dict[str, object] = {}  # the answer as a turn, of one that may be kept
        self._left = False  # did the client hang up? What it used is then found out beside.
        self._asked: Replica | None = None  # who generates
        self._outside: Outside | None = None  # where it may be bought, too
        self._seen: Counts | None = None  # what it had used, when last it said
        self._delivered: Counts | None = None  # the same, when the client last got text
        self._finish_reason: str | None = None
        self._texts: list[str] = []  # of an answer that is not streamed, or was not counted
        self._said: list[str] = []  # beside text, of tools: only to be counted
        self._tokenised = False  # were its tokens counted from its text?
        self._timer: asyncio.TimerHandle | None = None
        # When it was sent, when its first text came, and when the last.
        self._began_at = self._first_at = self._moved_at = 0.0

    async def run(self) -> None:
        """Serve it to the end.

        Raises:
            Failure: what the client is to be told; nothing is held any more.
            Unavailable: the database is away, and the tenant's purse is too small.
        """
        limiter, trace = self._service.limiter, self._exchange.trace
        limiter.begin(self._subjects)
        error: str | None = "cancelled"
        if trace is not None:
            trace.ask(self._ask, tenant=str(self._tenant.id))
        try:
            await self._run()
            error = None
        except Failure as failure:
            error = failure.row.code
            raise
        finally:
            limiter.end(self._subjects)
            if trace is not None and not self._left:
                trace.end_call(error)

    async def _run(self) -> None:
        service, ask = self._service, self._ask
        offer = service.offer(ask.model, self._tenant.id)
        tariff = offer.tariff_for(ask)
        offer.check(ask)
        self._ask = ask = offer.complete(ask)
        outside = not offer.ready and service.sold_outside(ask)
        if not offer.ready and not outside:
            raise offer.refusal()
        bounds = service.bounds
        need = (bounds.need_outside if outside else bounds.need)(ask, offer, tariff)
        if need is not None:
            try:
                await self._reserve(need)
            except CountFirst:
                pass
            else:
                return
        prompt_tokens = await self.count()
        await self._reserve(service.bounds.counted(ask, offer, tariff, prompt_tokens))

    async def count(self) -> int:
        """Return how many tokens the prompt has for this model.

        Raises:
            Failure: the model is not there, or cannot say.
        """
        offer = self._service.offer(self._ask.model, self._tenant.id)
        if not offer.ready:
            raise offer.refusal()
        replicas, ask = self._service.replicas, self._ask
        try:
            return await self._ask_one(lambda replica: replicas.count(replica, ask))
        except Broken as error:
            raise error.failure from error

    async def _reserve(self, need: Need) -> None:
        """Take what it may use at most out of the key's limit, and give back what it did not."""
        limiter, subjects = self._service.limiter, self._subjects
        now = asyncio.get_running_loop().time
        try:
            limiter.reserve(subjects, need.most_tokens, now=now())
        except Failure as failure:
            if need.counted:
                raise
            raise CountFirst from failure  # a bound is no reason to refuse anybody
        used = 0
        try:
            failpoint("gateway.request.admitted")
            if len(subjects) > 1 or subjects[0].budgets:
                await self._hold_budgets(need)
            try:
                grant = await self._service.cashier.hold(self._tenant.id, need)
            except BaseException:
                self._release_budgets()
                raise
            self._granted = grant
            try:
                failpoint("gateway.request.held")
                with self._outstanding(need):
                    used = await self._serve(grant)
            except BaseException:
                self._release()
                raise
        finally:
            limiter.give_back(subjects, need.most_tokens - used, now=now())

    def _outstanding(self, need: Need) -> AbstractContextManager[None]:
        return self._service.demand.runs(self._ask.model, need.most_tokens)

    async def _hold_budgets(self, need: Need) -> None:
        if not (budgets := budgets_of(self._subjects)):
            return
        try:
            await self._service.budgets.hold(self._exchange.id, budgets, need.most.nanos)
        except Failure as failure:
            if need.counted:
                raise
            raise CountFirst from failure
        self._budgeted = True

    def _release_budgets(self) -> None:
        if self._budgeted:
            self._budgeted = False
            self._service.budgets.release(self._exchange.id)

    def _release(self) -> None:
        """Take back what was granted, unless it was paid for or given back already."""
        if self._granted is not None:
            grant, self._granted = self._granted, None
            self._service.cashier.release(self._tenant.id, grant)
            self._release_budgets()

    async def _serve(self, grant: Grant) -> int:
        """Return how many tokens it used."""
        exchange, service = self._exchange, self._service
        reply = exchange.dialect.reply(self._ask, grant, exchange.id.hex, exchange.created)
        loop = asyncio.get_running_loop()
        stop = Stop()
        service.running.add(stop)
        self._began_at = loop.time()
        self._look(loop, stop)
        failure: Failure | None = None
        counts: Counts | None = None
        try:
            try:
                exchange.when_gone(lambda: stop.now(Why.HUNG_UP))
                await self._generate(reply)
            finally:
                stop.closed = True
                if self._timer is not None:
                    self._timer.cancel()
                service.running.discard(stop)
        except asyncio.CancelledError:
            if not stop.was_ours():
                raise
            if stop.why is Why.HUNG_UP:
                self._left = True
                if self._outside is not None:
                    self._outside.leave()
                service.detach(self._settle_hung_up(grant))
                return 0 if self._seen is None else self._seen.total
            failure = why_cut(stop, service.patience, model=self._ask.model)
        except Broken as error:
            failure, counts = error.failure, error.counts
        except Failure as error:
            failure = error
        if failure is not None:
            if self._outside is not None:
                self._outside.cut()
            return await self._break_off(grant, failure, counts)
        return await self._complete(reply)

    def _look(self, loop: asyncio.AbstractEventLoop, stop: Stop) -> None:
        """Break it off when it takes too long, or look again then. One timer at a time."""
        patience, now = self._service.patience, loop.time()
        ends, why = patience.due(
            now=now,
            began_at=self._began_at,
            # What is not streamed says nothing until its end.
            waits=self._ask.stream,
            clogged=self._exchange.clogged,
            moved_at=self._moved_at,
        )
        if ends <= now:
            stop.now(why)
        else:
            # Its first token may come at once, and then it is the next that is waited for.
            again = min(ends, now + patience.stall_seconds)
            self._timer = loop.call_at(again, self._look, loop, stop)

    async def _generate(self, reply: Reply) -> None:
        own = partial(self._ask_one, lambda replica: self._generate_on(replica, reply))
        if not self._service.sold_outside(self._ask):
            return await own()
        self._outside = Outside(self._service, self._ask, self._tenant.id)
        return await self._outside.generate(
            reply.grant,
            request_id=self._exchange.request_id,
            began_at=self._began_at,
            own=own,
            begun=lambda: self._seen is not None or self._exchange.begun or bool(self._texts),
            take=lambda pieces: self._take(pieces, reply),
        )

    async def _generate_on(self, replica: Replica, reply: Reply) -> None:
        self._asked = replica
        if (trace := self._exchange.trace) is not None:
            trace.asked(self._ask.model, replica.url)
        await self._service.replicas.generate(
            replica,
            self._ask,
            max_tokens=reply.grant.max_tokens,
            request_id=self._exchange.request_id,
            take=lambda pieces: self._take(pieces, reply),
        )
        if self._finish_reason is None:
            raise Broken(Failure(Kind.MODEL_FAILED, f"model {self._ask.model!r} broke off; retry"))

    async def _take(self, pieces: list[Piece], reply: Reply) -> None:
        """Note what came, and hand its text on before the next is read."""
        if self._ask.rich:
            await self._take_rich(pieces, reply)
            return
        texts = []
        for text, finish_reason, counts, _, _ in pieces:
            if counts is not None:
                self._seen = counts
            if self._finish_reason is None:
                self._finish_reason = finish_reason  # the first one stands
            if text:
                texts.append(text)
        if not self._ask.stream:
            self._texts += texts
        elif texts:
            if self._seen is None:
                self._texts += texts
            head = b"" if self._exchange.begun else reply.first(self._seen)
            await self._send(head + b"".join(map(reply.text, texts)), reply)

    async def _take_rich(self, pieces: list[Piece], reply: Reply) -> None:
        """As `_take`, of an answer that may have more than text."""
        assert isinstance(reply, RichReply)
        parts: list[bytes] = []
        begins = self._ask.stream and not self._exchange.begun
        for text, finish_reason, counts, calls, logprobs in pieces:
            if counts is not None:
                self._seen = counts
            if self._finish_reason is None:
                self._finish_reason = finish_reason
            if text or calls:
                if begins and not parts:
                    parts.append(reply.first(self._seen))
                parts.append(reply.part(text, calls, logprobs, self._seen))
                if not self._ask.stream or self._seen is None:
                    self._texts.append(text)
                    self._said += [(call.name or "") + call.arguments for call in calls]
        if parts and self._ask.stream:
            await self._send(b"".join(parts), reply)

    async def _send(self, part: bytes, reply: Reply) -> None:
        if not self._exchange.begun:
            failpoint("gateway.request.before_first_bytes")
            await self._exchange.begin(reply.headers)
        await self._exchange.write(part)
        self._moved_at = asyncio.get_running_loop().time()
        self._first_at = self._first_at or self._moved_at
        self._delivered = self._seen

    async def _ask_one(self, call: Callable[[Replica], Awaitable[T]]) -> T:
        """Ask a ready replica; while one is gone or busy, the next.

        Raises:
            Failure: none is left.
            Broken: one took the request and failed.
        """
        tried: list[Replica] = []
        failure: Failure | None = None
        while True:
            offer = self._service.offer(self._ask.model, self._tenant.id)
            replica = self._service.replicas.pick(offer.ready, self._ask, tried=tried)
            if replica is None:
                raise failure or offer.nobody(self._ask)
            tried.append(replica)
            try:
                return await call(replica)
            except Gone:
                await self._service.refresh()
            except Broken as error:
                if error.failure.kind not in ELSEWHERE or self._seen is not None:
                    raise
                failure = error.failure

    @property
    def _call(self) -> SupplierCall | None:
        return None if self._outside is None else self._outside.call

    async def _complete(self, reply: Reply) -> int:
        exchange, grant, service = self._exchange, reply.grant, self._service
        if self._seen is None:
            self._seen = await self._tokenise(grant)
        if self._seen is None:
            # It ended well and nobody can say what it used: what is not known is not priced.
            log.error("gateway.uncounted", extra=self._facts(Outcome.FAILED))
            return await self._break_off(
                grant, Failure(Kind.MODEL_FAILED, "the model did not count its tokens"), None
            )
        assert self._finish_reason is not None
        counts = self._believed(self._seen, grant)
        self._delivered = counts
        failpoint("gateway.request.generated")
        charge = await self._charge(grant, counts, Outcome.COMPLETED)
        failpoint("gateway.request.settled")
        if self._ask.keep is not None:
            said = "".join(self._texts), self._finish_reason, counts, charge
            self.turn = await keep(service.kept, self._tenant.id, exchange.id, reply, said)
        try:
            async with asyncio.timeout(_LAST_BYTES_SECONDS):
                if not self._ask.stream:
                    whole = reply.whole("".join(self._texts), self._finish_reason, counts, charge)
                    await exchange.respond(200, whole, headers=reply.headers)
                    failpoint("gateway.request.answered")
                    return counts.total
                if not exchange.begun:  # it had nothing to say
                    await exchange.begin(reply.headers)
                    await exchange.write(reply.first(self._seen))
                await exchange.end(reply.last(self._finish_reason, counts, charge))
        except TimeoutError:
            log.warning("gateway.slow_client", extra=self._facts(Outcome.COMPLETED))
        return counts.total

    async def _break_off(self, grant: Grant, failure: Failure, counts: Counts | None) -> int:
        """Charge what was delivered, nothing if nothing was, then raise `failure`."""
        if self._call is None and await self._service.was_reclaimed(
            failure, self._ask.model, self._tenant.id
        ):
            failure = reclaimed(self._ask)
        if self._exchange.begun and self._seen is None:
            self._seen = self._delivered = await self._tokenise(grant)
        # A replica that is reclaimed in order says what it generated, all of it sent on.
        counts = counts or self._delivered
        if self._delivered is None or counts is None:
            raise failure  # all of it is given back
        outcome = Outcome.RECLAIMED if failure.kind is Kind.RECLAIMED else Outcome.FAILED
        await self._charge(grant, self._believed(counts, grant), outcome)
        raise failure

    async def _settle_hung_up(self, grant: Grant) -> None:
        """Charge exactly what was generated until the engine stopped."""
        try:
            counts = await self._count_hung_up(grant)
            if counts is not None and counts.total:
                await self._charge(grant, self._believed(counts, grant), Outcome.ABORTED)
        finally:
            self._release()
            if self._exchange.trace is not None:
                self._exchange.trace.end_call("client_closed")

    async def _count_hung_up(self, grant: Grant) -> Counts | None:
        counts = self._seen
        if self._call is not None:
            return await self._call.final()
        if self._asked is not None:
            request_id = self._exchange.request_id
            counts = await self._service.replicas.final(self._asked, request_id) or counts
        if counts is None and self._exchange.begun:
            counts = self._delivered = await self._tokenise(grant)
        return counts

    async def _tokenise(self, grant: Grant) -> Counts | None:
        """Count what was delivered from its text; None: nobody can. The usage says who counted."""
        if self._asked is None:
            return None
        prompt = grant.prompt_tokens if grant.counted else None
        text = "".join(self._texts + self._said) if self._ask.generates else ""
        counts = await self._service.replicas.reconcile(self._asked, self._ask, prompt, text)
        self._tokenised = counts is not None
        return counts

    async def _charge(self, grant: Grant, counts: Counts, outcome: Outcome) -> Money:
        """Note the use for good, and return what it costs."""
        service = self._service
        delivered = 0 if self._delivered is None else self._delivered.completion_tokens
        source, sequence = self._number()
        tariff = grant.tariff
        if self._outside is not None and self._call is not None:
            tariff = self._outside.tariff(grant, counts)
        usage = Usage(
            id=self._exchange.id,
            source=source, sequence=sequence,
            tenant_id=self._tenant.id, api_key_id=self._caller.key_id, model=self._ask.model,
            request_id=self._exchange.request_id,
            input_tokens=counts.input_tokens,
            cache_read_tokens=counts.cache_read_tokens,
            cache_write_tokens=counts.cache_write_tokens,
            output_tokens=counts.output_tokens,
            reasoning_tokens=counts.reasoning_tokens,
            delivered_tokens=min(delivered, counts.completion_tokens),
            outcome=outcome, happened_at=service.directory.now(),
        )  # fmt: skip
        times = self._began_at, self._first_at, self._moved_at
        service.served(self._ask.model, outcome, counts, times)
        report = Report.write(usage, tariff.lines(counts))
        if (trace := self._exchange.trace) is not None:
            trace.used(
                counts, Money(report.nanos), outcome,
                response_id=self._exchange.request_id,
                finish_reason=self._finish_reason,
                first_seconds=self._first_at - self._began_at if self._first_at else None,
            )  # fmt: skip
        self._granted = None
        await self._settle(grant, report, counts)
        log.debug("gateway.charged", extra=self._facts(outcome, counts))
        return Money(report.nanos)

    def _number(self) -> tuple[str, int]:
        """Return who counted, and the number of this report among its own."""
        service = self._service
        if self._call is not None:
            return service.supplier, next(service.supplied)
        if self._tokenised:
            return service.tokeniser, next(service.tokenised)
        return service.source, next(service.sequence)

    async def _settle(self, grant: Grant, report: Report, counts: Counts) -> None:  # noqa: ARG002
        await self._service.cashier.settle(grant, report, soon=self._budgeted)

    def _believed(self, counts: Counts, grant: Grant) -> Counts:
        if not grant.counted:
            self._service.bounds.learn(self._ask, counts.prompt_tokens)
        believed = counts.at_most(
            prompt_tokens=grant.prompt_tokens, output_tokens=grant.most_output
        )
        if believed is not counts:
            log.error("gateway.overcounted", extra=self._facts(Outcome.FAILED, counts))
        return believed

    def _facts(self, outcome: Outcome, counts: Counts | None = None) -> dict[str, object]:
        """What a log line says: never what was asked or answered."""
        who = self._exchange.request_id, str(self._tenant.id), self._ask.model
        return facts(*who, outcome, counts)
