"""A request's life: count, hold, generate, settle, and only then the last bytes.

    count ──► hold ──► generate ──► settle ──► [DONE]
      │         │          ├── hung up ───► ask the replica for the final count ──► settle
      │         │          └── broke off, cut ──► settle what was delivered, or void ──► error
      └─────────┴──► error, nothing held

The client is listened to all the while: when it hangs up, the connection to the replica is
closed at once, which stops the engine, whether or not a first token had come.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from sublet.core.errors import Unavailable
from sublet.gateway.exchange import Exchange
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.grant import Grant, Need
from sublet.gateway.lane import Unsure
from sublet.gateway.limits import Limiter
from sublet.gateway.openai import Reply
from sublet.gateway.replica import Broken, Gone, Piece, Replicas, reclaimed
from sublet.gateway.request import Ask
from sublet.gateway.resolver import Resolver
from sublet.gateway.spool import Spool
from sublet.gateway.table import Offer, Table
from sublet.gateway.tariff import Counts
from sublet.gateway.till import Bill
from sublet.metering.store import price_of
from sublet.metering.usage import Outcome, Usage
from sublet.models.deployment import Replica
from sublet.tenants.tenant import Caller, Tenant

log: Final = logging.getLogger(__name__)
T = TypeVar("T")

MAX_SECONDS: Final = 600.0  # of one request; its hold outlives it
_LAST_BYTES_SECONDS: Final = 30.0  # for a client that reads too slowly
# The replica refused before it began, so another one may be asked.
_ELSEWHERE: Final = frozenset({Kind.MODEL_BUSY, Kind.RECLAIMED})


@dataclass(slots=True, kw_only=True)
class Service:
    """What all requests share."""

    spool: Spool
    replicas: Replicas
    resolver: Resolver
    limiter: Limiter
    cut: asyncio.Future[None]  # done when streams must end now
    table: Table = field(default_factory=Table)
    sequence: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def refresh(self) -> None:
        """Read the table anew; keep the last one when that fails."""
        try:
            self.table = await self.spool.read_table()
        except Unavailable:
            log.warning("gateway.table_kept")


class Serving:
    def __init__(
        self, service: Service, exchange: Exchange, ask: Ask, caller: Caller, tenant: Tenant
    ) -> None:
        self._service = service
        self._exchange = exchange
        self._ask = ask
        self._caller = caller
        self._tenant = tenant
        self._asked: Replica | None = None  # who generates
        self._seen: Counts | None = None  # what it had used, when last it said
        self._delivered: Counts | None = None  # the same, when the client last got text
        self._finish_reason: str | None = None
        self._texts: list[str] = []  # of an answer that is not streamed

    async def run(self) -> None:
        """Serve it to the end.

        Raises:
            Failure: what the client is to be told; nothing is held any more.
            Unavailable: the database is away; what may be held is voided in the background.
        """
        service, ask = self._service, self._ask
        offer = service.table.find(ask.model)
        if offer.tariff is None:
            raise Failure(Kind.NOT_READY, f"model {ask.model!r} has no price yet")
        prompt_tokens = await self._ask_one(lambda it: service.replicas.count(it, ask))
        context_tokens = offer.deployment.context_tokens
        if prompt_tokens >= context_tokens:
            raise Failure(
                Kind.TOO_LONG,
                f"the input has {prompt_tokens} tokens and the context of model {ask.model!r}"
                f" holds {context_tokens}, input and output together",
                param="messages" if "messages" in ask.payload else "prompt",
            )
        need = Need(
            prompt_tokens=prompt_tokens,
            max_tokens=ask.max_tokens,
            context_left=context_tokens - prompt_tokens,
            tariff=offer.tariff,
        )
        key, now = self._caller.key_id, asyncio.get_running_loop().time
        service.limiter.reserve(key, need.most_tokens, now=now())
        used = 0
        try:
            used = await self._hold_and_generate(need)
        finally:
            service.limiter.give_back(key, need.most_tokens - used, now=now())

    async def _hold_and_generate(self, need: Need) -> int:
        """Return how many tokens it used."""
        exchange, service = self._exchange, self._service
        try:
            grant = await service.spool.open(exchange.id, self._tenant, need)
        except Unsure:
            service.resolver.void_unsure(exchange.id)
            raise
        reply = Reply(
            ask=self._ask,
            grant=grant,
            id=exchange.id.hex,
            created=int(service.spool.now().timestamp()),
        )
        hang_up = asyncio.ensure_future(exchange.hang_up())
        work = asyncio.create_task(self._generate(reply))
        try:
            done, _ = await asyncio.wait(
                {hang_up, work, service.cut},
                timeout=MAX_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work not in done:
                work.cancel()
                await asyncio.wait({work})
            gone = hang_up.done()
        finally:
            hang_up.cancel()
            work.cancel()
        if work.cancelled():
            if gone:
                service.resolver.detach(self._settle_hung_up(grant))
                return 0 if self._seen is None else _total(self._seen)
            return await self._break_off(grant, self._why_cut(), None)
        match work.exception():
            case None:
                return await self._complete(reply)
            case Broken() as error:
                return await self._break_off(grant, error.failure, error.counts)
            case Failure() as failure:
                return await self._break_off(grant, failure, None)
            case error:
                await service.resolver.void(exchange.id)
                raise error

    # ── generating ───────────────────────────────────────────────────────────────────────

    async def _generate(self, reply: Reply) -> None:
        await self._ask_one(lambda replica: self._generate_on(replica, reply))

    async def _generate_on(self, replica: Replica, reply: Reply) -> None:
        self._asked = replica
        stream = self._service.replicas.generate(
            replica,
            self._ask,
            max_tokens=reply.grant.max_tokens,
            request_id=self._exchange.request_id,
        )
        async with stream as batches:
            async for pieces in batches:
                await self._take(pieces, reply)
        if self._finish_reason is None:
            raise Broken(Failure(Kind.MODEL_FAILED, f"model {self._ask.model!r} broke off; retry"))

    async def _take(self, pieces: list[Piece], reply: Reply) -> None:
        """Note what came, and hand its text on before the next is read."""
        for piece in pieces:
            self._seen = piece.counts or self._seen
            self._finish_reason = piece.finish_reason or self._finish_reason
        texts = [piece.text for piece in pieces if piece.text]
        if not self._ask.stream:
            self._texts += texts
        elif texts:
            data = b"".join(map(reply.text, texts))
            if not self._exchange.begun:
                await self._exchange.begin(reply.headers)
                data = reply.first() + data
            await self._exchange.write(data)
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
            offer = self._service.table.find(self._ask.model)
            replica = self._service.replicas.pick(offer.ready, tried=tried)
            if replica is None:
                raise failure or self._nobody(offer)
            tried.append(replica)
            try:
                return await call(replica)
            except Gone:
                await self._service.refresh()
            except Broken as error:
                if error.failure.kind not in _ELSEWHERE or self._seen is not None:
                    raise
                failure = error.failure

    def _nobody(self, offer: Offer) -> Failure:
        if not offer.ready:
            return offer.refusal()
        return Failure(
            Kind.NOT_READY, f"model {self._ask.model!r} is not ready: its replica does not answer"
        )

    # ── ending ───────────────────────────────────────────────────────────────────────────

    async def _complete(self, reply: Reply) -> int:
        exchange, grant = self._exchange, reply.grant
        if self._seen is None:
            # It ended well and never said what it used: what is not known is not priced.
            log.error("gateway.uncounted", extra=self._facts(Outcome.FAILED))
            return await self._break_off(
                grant, Failure(Kind.MODEL_FAILED, "the model did not count its tokens"), None
            )
        assert self._finish_reason is not None
        counts = self._believed(self._seen, grant)
        self._delivered = counts
        await self._charge(grant, counts, Outcome.COMPLETED)
        charge = price_of(grant.tariff.lines(counts))
        try:
            async with asyncio.timeout(_LAST_BYTES_SECONDS):
                if not self._ask.stream:
                    whole = reply.whole("".join(self._texts), self._finish_reason, counts, charge)
                    await exchange.respond(200, whole, headers=reply.headers)
                    return _total(counts)
                if not exchange.begun:  # it had nothing to say
                    await exchange.begin(reply.headers)
                    await exchange.write(reply.first())
                await exchange.end(reply.last(self._finish_reason, counts, charge))
        except TimeoutError:
            log.warning("gateway.slow_client", extra=self._facts(Outcome.COMPLETED))
        return _total(counts)

    async def _break_off(self, grant: Grant, failure: Failure, counts: Counts | None) -> int:
        """Charge what was delivered, nothing if nothing was, then raise `failure`."""
        if failure.kind is Kind.MODEL_FAILED and await self._was_reclaimed():
            failure = reclaimed(self._ask)
        # A replica that is reclaimed in order says what it generated, all of it sent on.
        counts = counts or self._delivered
        if self._delivered is None or counts is None:
            await self._service.resolver.void(self._exchange.id)
            raise failure
        reclaim = failure.kind is Kind.RECLAIMED
        outcome = Outcome.RECLAIMED if reclaim else Outcome.FAILED
        await self._charge(grant, self._believed(counts, grant), outcome)
        raise failure

    async def _settle_hung_up(self, grant: Grant) -> None:
        """Charge exactly what was generated until the engine stopped."""
        counts = self._seen
        if self._asked is not None:
            replicas, request_id = self._service.replicas, self._exchange.request_id
            try:
                final = await replicas.usage(self._asked, request_id)
                if final is None:
                    # Perhaps our request is still on its way in: look once more.
                    await asyncio.sleep(0.3)
                    final = await replicas.usage(self._asked, request_id)
                counts = final or counts
            except Gone:
                pass  # with what we saw: never more
        if counts is None or not _total(counts):
            await self._service.resolver.void(self._exchange.id)
        else:
            await self._charge(grant, self._believed(counts, grant), Outcome.ABORTED)

    async def _charge(self, grant: Grant, counts: Counts, outcome: Outcome) -> None:
        service, id_ = self._service, self._exchange.id
        delivered = 0 if self._delivered is None else self._delivered.output_tokens
        usage = Usage(
            id=id_,
            source=f"gateway:{service.spool.instance.id}",
            sequence=next(service.sequence),
            tenant_id=self._tenant.id,
            api_key_id=self._caller.key_id,
            model=self._ask.model,
            request_id=self._exchange.request_id,
            input_tokens=counts.input_tokens,
            cached_input_tokens=counts.cached_input_tokens,
            output_tokens=counts.output_tokens,
            delivered_tokens=min(delivered, counts.output_tokens),
            outcome=outcome,
            happened_at=service.spool.now(),
        )
        await service.resolver.settle(Bill(usage=usage, counts=counts, tariff=grant.tariff))
        log.info("gateway.charged", extra=self._facts(outcome, counts))

    def _believed(self, counts: Counts, grant: Grant) -> Counts:
        believed = counts.at_most(prompt_tokens=grant.prompt_tokens, output_tokens=grant.max_tokens)
        if believed != counts:
            log.error("gateway.overcounted", extra=self._facts(Outcome.FAILED, counts))
        return believed

    async def _was_reclaimed(self) -> bool:
        """Say whether the replica broke off because an internal job took its GPUs."""
        await self._service.refresh()
        offer = self._service.table.offers.get(self._ask.model)
        if offer is None or offer.ready:
            return False
        return offer.refusal().kind is Kind.RECLAIMED

    def _why_cut(self) -> Failure:
        if self._service.cut.done():
            return Failure(Kind.STOPPING, "this gateway is stopping; retry")
        return Failure(Kind.TIMED_OUT, f"a request may take {MAX_SECONDS:.0f} seconds")

    def _facts(self, outcome: Outcome, counts: Counts | None = None) -> dict[str, object]:
        """What a log line says: never what was asked or answered."""
        facts: dict[str, object] = {
            "request": self._exchange.request_id,
            "tenant": str(self._tenant.id),
            "model": self._ask.model,
            "outcome": outcome.value,
        }
        if counts is not None:
            facts["input_tokens"] = counts.input_tokens
            facts["cached_input_tokens"] = counts.cached_input_tokens
            facts["output_tokens"] = counts.output_tokens
        return facts


def _total(counts: Counts) -> int:
    return counts.prompt_tokens + counts.output_tokens
