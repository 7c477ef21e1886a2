"""Buying answers: whether own replicas are short, whom to ask, and within which quota.

    short? ──► rank ──► claim quota ──► ask ──► first token in time? ──► stream, to its end
                 ▲                                  └── no ──► the next one
                 └── nobody is left ──► own replicas after all, or a refusal

What may be bought is read with the table. Shares of quota are in memory, so a claim mostly asks nobody;
one that is too large for its share asks the database, once for all that wait.
"""

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.db import Database, Tx
from sublet.core.errors import Misconfigured, Unavailable
from sublet.core.vault import Vault
from sublet.gateway.answers import Piece
from sublet.gateway.bought.anthropic import AnthropicSpeech
from sublet.gateway.bought.bedrock import BedrockSpeech
from sublet.gateway.bought.book import Book
from sublet.gateway.bought.call import Cut, End, Failed, Order, SupplierCall, Trouble
from sublet.gateway.bought.gemini import GeminiSpeech
from sublet.gateway.bought.headers import left_of, told_of
from sublet.gateway.bought.metrics import BoughtMetrics
from sublet.gateway.bought.openai import OpenAISpeech
from sublet.gateway.bought.speech import Speech
from sublet.gateway.instance import QUERIES
from sublet.gateway.wire import Headed, Wire
from sublet.suppliers import quotas, service, store
from sublet.suppliers.choice import Candidate, No, Record, Sale, Wanted, claims, rank
from sublet.suppliers.quota import Asked, Limit, Measure, Share, project_scope
from sublet.suppliers.store import Market, Rest
from sublet.suppliers.supplier import Dialect, Source, Terms
from sublet.suppliers.usage import Used

log: Final = logging.getLogger(__name__)

_CONNECT_SECONDS: Final = 5.0
_HEARTBEAT_SECONDS: Final = 30.0  # for a share that stands still
_FIRST_REST: Final = 0.5
_LONGEST_REST: Final = 60.0
_AWAY_SECONDS: Final = (
    60.0  # for a key that is refused, a bill that is unpaid, a model that is gone
)
SPEECHES: Final[Mapping[Dialect, Speech]] = {
    Dialect.OPENAI: OpenAISpeech(),
    Dialect.XAI: OpenAISpeech(of_xai=True),
    Dialect.ANTHROPIC: AnthropicSpeech(),
    Dialect.GEMINI: GeminiSpeech(),
    Dialect.BEDROCK: BedrockSpeech(),
}
_OF_ALL: Final = frozenset({Trouble.KEY, Trouble.UNPAID})  # not of one model alone


@dataclass(slots=True)
class _Claim:
    """What is set aside for one call."""

    parts: list[tuple[Share, int]]


@dataclass(slots=True)
class Buyer:
    """Belongs to one event loop."""

    db: Database
    clock: Clock
    book: Book
    vault: Vault | None
    holder: str  # this gateway's name
    instance: UUID
    metrics: BoughtMetrics = field(default_factory=BoughtMetrics)
    market: Market = field(default_factory=Market)
    own: Counter[str] = field(default_factory=Counter)  # tokens that own replicas have of us
    _peers: int = 1
    _keys: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # as sealed, and opened
    _records: dict[tuple[str, str], Record] = field(default_factory=dict)
    _rests: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    _news: dict[tuple[str, str], Rest] = field(default_factory=dict)  # rests to tell
    _shares: dict[int, Share] = field(default_factory=dict)
    _claims: dict[SupplierCall, _Claim] = field(default_factory=dict)
    _sales: dict[SupplierCall, Sale] = field(default_factory=dict)
    _wires: dict[str, Wire] = field(default_factory=dict)
    _running: set[asyncio.Task[None]] = field(default_factory=set)
    _settling: asyncio.Task[None] | None = None
    _settled_at: float = 0.0

    # ── what may be bought ───────────────────────────────────────────────────────────────

    def read(self, tx: Tx) -> tuple[Market, dict[str, bytes], int]:
        """Look at the database; sync. `take` what it returns."""
        now = self.clock.now()
        market = store.read_market(tx, now=now)
        if not market.sources:
            return market, {}, 1
        row = tx.execute(QUERIES["count_gateways"], {"now": now}).fetchone()
        assert row is not None
        return market, store.list_keys(tx), max(1, row["gateways"])

    def take(self, read: tuple[Market, dict[str, bytes], int]) -> None:
        self.market, keys, self._peers = read
        self.metrics.market_read()
        for name, sealed in keys.items():
            if self._keys.get(name, (b"", ""))[0] != sealed:
                self._open(name, sealed)
        for limit in self.market.limits:
            share = self._shares.get(limit.id)
            if share is None:
                self._shares[limit.id] = Share(limit=limit)
            else:
                share.limit = limit
        loop_now = asyncio.get_running_loop().time()
        for rest in self.market.rests:
            left = (rest.until - self.clock.now()).total_seconds()
            known = self._rests.get((rest.supplier, rest.model), (0.0, 0))
            self._rests[rest.supplier, rest.model] = max(known[0], loop_now + left), known[1]

    def _open(self, name: str, sealed: bytes) -> None:
        try:
            if self.vault is None:
                raise Misconfigured("this gateway has no key to open what is sealed")
            key = self.vault.open(sealed, bound_to=service.bound_to(name))
        except Misconfigured as error:
            log.error("supplier.sealed", extra={"supplier": name, "error": str(error)})  # noqa: TRY400
            self._keys.pop(name, None)
            return
        self._keys[name] = sealed, key
        for known in [known for known in self._rests if known[0] == name]:
            del self._rests[known]  # what rested because of the one before

    def sells(self, deployment: str) -> bool:
        return deployment in self.market.sources

    def is_short(self, deployment: str, *, target_tokens: int, ready: int) -> bool:
        """Say whether own replicas have as much to do as they shall have."""
        return self.own[deployment] * self._peers >= target_tokens * ready

    # ── buying ───────────────────────────────────────────────────────────────────────────

    async def buy(
        self,
        order: Order,
        sale: Sale,
        *,
        asked: Callable[[SupplierCall], None],
        take: Callable[[list[Piece]], Awaitable[None]],
    ) -> SupplierCall | None:
        """Buy an answer, and give what comes to `take`.

        Args:
            order: what is wanted.
            sale: what our buyer pays for it.
            asked: is told who is asked, before anything comes.
            take: as the gateway takes what replicas say.

        Returns:
            the call, at its end; None: nobody could be asked, or answered in time.

        Raises:
            Cut: it broke off in the middle.
            Failed: no supplier would take such a request.
        """
        loop = asyncio.get_running_loop()
        deployment = order.ask.model
        sources = self.market.sources.get(deployment, ())
        terms = self.market.terms.get(deployment, Terms())
        now = loop.time()
        candidates, nos = rank(sources, order.wanted, sale, terms, self._records, now=now)
        able = [one for one in candidates if self._may_ask(one, order, nos)]
        try:
            for place, candidate in enumerate(able):
                left = order.deadline - loop.time()
                if left <= 0:
                    break
                claim = await self._claim(candidate, order.wanted, nos)
                if claim is None:
                    continue
                call = self._start(order, candidate, claim, sale)
                asked(call)
                patience = candidate.source.supplier.first_token_ms / 1000
                # The last one has all the time that is left.
                limit = left if place == len(able) - 1 else min(left, patience)
                try:
                    async with asyncio.timeout(limit):
                        pieces = await call.next()
                except TimeoutError:
                    call.cut()
                    self._note_failure(call, Failed(Trouble.FAILED))
                    nos[No.FAILED] += 1
                    continue
                except Failed as failed:
                    self._note_failure(call, failed)
                    nos[No.FAILED] += 1
                    if failed.trouble is Trouble.REQUEST:
                        raise
                    continue
                await self._hand_on(call, pieces, take)
                return call
        finally:
            for no, count in nos.items():
                self.metrics.not_bought(no, count)
        return None

    async def _hand_on(
        self,
        call: SupplierCall,
        pieces: list[Piece] | None,
        take: Callable[[list[Piece]], Awaitable[None]],
    ) -> None:
        while pieces is not None:
            await take(pieces)
            call.delivered_bytes += sum(
                len(piece.text.encode())
                + sum(len(one.arguments.encode()) + len((one.name or "").encode())
                      for one in piece.calls)
                for piece in pieces
            )  # fmt: skip
            try:
                pieces = await call.next()
            except (Cut, Failed) as error:
                self._record(call).note(at=asyncio.get_running_loop().time(), ok=False)
                raise Cut from error
        loop_now = asyncio.get_running_loop().time()
        self._record(call).note(at=loop_now, ok=True)
        self._rests.pop(call.key, None)
        await take([Piece("", None, call.counts)])

    def _may_ask(self, candidate: Candidate, order: Order, nos: Counter[No]) -> bool:
        source = candidate.source
        if source.supplier.name not in self._keys:
            nos[No.RESTS] += 1
            return False
        if SPEECHES[source.supplier.dialect].unable(order.ask) is not None or (
            order.wanted.tier == "batch"
        ):
            nos[No.UNABLE] += 1
            return False
        now = asyncio.get_running_loop().time()
        for key in (source.key, (source.supplier.name, "")):
            if self._rests.get(key, (0.0, 0))[0] > now:
                nos[No.RESTS] += 1
                return False
        return True

    def _start(self, order: Order, candidate: Candidate, claim: _Claim, sale: Sale) -> SupplierCall:
        supplier = candidate.source.supplier
        call = SupplierCall(
            order,
            candidate,
            wire=self._wire(supplier.url),
            speech=SPEECHES[supplier.dialect],
            key=self._keys[supplier.name][1],
            now=self.clock.now,
            ended=self._ended,
        )
        self._claims[call], self._sales[call] = claim, sale
        task = call.start()
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return call

    def _wire(self, url: str) -> Wire:
        wire = self._wires.get(url)
        if wire is None:
            context = ssl.create_default_context() if url.startswith("https:") else None
            wire = Wire(context=context, make=Headed, connect_seconds=_CONNECT_SECONDS)
            self._wires[url] = wire
        return wire

    # ── how it went ──────────────────────────────────────────────────────────────────────

    async def _ended(self, call: SupplierCall, end: End) -> None:
        """Give back what was set aside, and put on record what was bought."""
        self._give_back(call, end)
        record, loop_now = self._record(call), asyncio.get_running_loop().time()
        if call.first_at is not None:
            record.first(at=loop_now, seconds=call.seconds_to_first)
        if end.used is not None:
            record.input(cached=end.used.cache_read, total=end.used.prompt)
        if call.head is not None:
            self._hear(call.candidate.source, call.head)
        if end.billed:
            purchase = call.purchase()
            self.metrics.bought(purchase)
            await self.book.note(purchase)

    def _give_back(self, call: SupplierCall, end: End) -> None:
        claim, sale = self._claims.pop(call), self._sales.pop(call)
        used = end.used
        for share, amount in claim.parts:
            share.end(amount, amount if _unknown(share, end) else _used(share, used, end, sale))

    def _hear(self, source: Source, answer: Headed) -> None:
        limits = self._limits_of(source)
        for measure, amount, left, until in left_of(answer.headers, self.clock.now()):
            found = told_of(limits, measure, amount, left, until)
            if found is not None:
                limit, told = found
                self._shares.setdefault(limit.id, Share(limit=limit)).heard = told

    def _limits_of(self, source: Source) -> list[Limit]:
        scope = project_scope(source.supplier.project)
        return [
            limit
            for limit in self.market.limits
            if limit.scope == scope and limit.model in (None, source.model)
        ]

    def _note_failure(self, call: SupplierCall, failed: Failed) -> None:
        loop_now = asyncio.get_running_loop().time()
        if failed.trouble is Trouble.REQUEST:
            return
        self._record(call).note(at=loop_now, ok=False)
        of_all = failed.trouble in _OF_ALL
        key = (call.key[0], "") if of_all else call.key
        row = self._rests.get(key, (0.0, 0))[1]
        seconds = failed.rest_seconds
        if seconds is None:
            away = of_all or failed.trouble is Trouble.GONE
            seconds = _AWAY_SECONDS if away else min(_LONGEST_REST, _FIRST_REST * 2 ** min(row, 8))
        self._rests[key] = loop_now + seconds, row + 1
        why = failed.trouble.name.lower()
        log.warning(
            "supplier.rests",
            extra={"supplier": key[0], "model": key[1], "why": why, "seconds": round(seconds, 3)},
        )
        if seconds >= 1:  # the other gateways shall know
            until = self.clock.now() + timedelta(seconds=seconds)
            self._news[key] = Rest(supplier=key[0], model=key[1], until=until, why=why)

    def _record(self, call: SupplierCall) -> Record:
        return self._records.setdefault(call.key, Record())

    # ── quota ────────────────────────────────────────────────────────────────────────────

    async def _claim(self, candidate: Candidate, wanted: Wanted, nos: Counter[No]) -> _Claim | None:
        """Set aside what it may use at most, of every limit; None: one has not enough left."""
        parts = [
            (self._shares.setdefault(limit.id, Share(limit=limit)), amount)
            for limit, amount in claims(candidate, wanted, self.market.limits)
        ]
        if any(amount > share.limit.amount for share, amount in parts):
            nos[_no(parts)] += 1
            return None
        if self._take(parts):
            return _Claim(parts)
        for share, amount in parts:
            share.wanted += amount
        try:
            await self._settle_with_others()
        except Unavailable:
            log.warning("supplier.quota_unknown")
        finally:
            for share, amount in parts:
                share.wanted -= amount
        if self._take(parts):
            return _Claim(parts)
        nos[_no(parts)] += 1
        return None

    def _take(self, parts: Sequence[tuple[Share, int]]) -> bool:
        now = asyncio.get_running_loop().time()
        taken: list[tuple[Share, int]] = []
        for share, amount in parts:
            if not share.take(amount, now=now):
                for before, back in taken:
                    before.undo(back)
                return False
            taken.append((share, amount))
        return True

    async def _settle_with_others(self) -> None:
        """Settle once more, with all who wait for it; not with one that began before."""
        if self._settling is not None:
            with suppress(Unavailable):
                await asyncio.shield(self._settling)
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle())
            self._settling.add_done_callback(self._settle_done)
        await asyncio.shield(self._settling)

    def _settle_done(self, task: asyncio.Task[None]) -> None:
        self._settling = None
        if not task.cancelled():
            task.exception()  # whoever waits is told

    async def _settle(self) -> None:
        """Tell the database what was used, and have it say what this process may use.

        Raises:
            Unavailable: it did not answer: until it does nothing is taken of these shares.
        """
        asked = {
            id_: share.ask(self.holder, str(self.instance))
            for id_, share in self._shares.items()
            if not share.settling
        }
        asked |= {
            id_: share.again(self.holder, str(self.instance))
            for id_, share in self._shares.items()
            if id_ not in asked
        }
        loop = asyncio.get_running_loop()
        held = await loop.run_in_executor(None, self._settle_all, asked)
        for id_, one in asked.items():
            self._shares[id_].answered(one, held.get(id_, 0))
            if id_ not in held and not self._shares[id_].flying:
                del self._shares[id_]  # the limit is gone
        self._settled_at = loop.time()

    def _settle_all(self, asked: Mapping[int, Asked]) -> dict[int, int]:
        news, self._news = self._news, {}
        with self.db.transaction() as tx:
            for rest in news.values():
                store.put_rest(tx, rest)
            return quotas.settle_all(tx, asked)

    async def watch(self) -> None:
        """Tell what was used and give back what is not needed, for as long as this runs."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            stale = loop.time() - self._settled_at > _HEARTBEAT_SECONDS
            shares = self._shares.values()
            if (
                self._news
                or any(share.news or share.settling for share in shares)
                or (stale and any(share.held for share in shares))
            ):
                with suppress(Unavailable):
                    await self._settle_with_others()

    # ── the end ──────────────────────────────────────────────────────────────────────────

    async def drain(self, seconds: float) -> None:
        """Let what runs end, hand over what was bought, and give all quota back."""
        until = asyncio.get_running_loop().time() + seconds
        if self._running:
            await asyncio.wait(set(self._running), timeout=seconds)
        await self.book.drain(max(0.1, until - asyncio.get_running_loop().time()))
        if self._shares:
            with suppress(Unavailable):
                await self._settle_with_others()

    def close(self) -> None:
        for wire in self._wires.values():
            wire.close()


def _no(parts: Sequence[tuple[Share, int]]) -> No:
    loses = any(
        share.limit.measure is Measure.LOSS and amount > share.free for share, amount in parts
    )
    return No.LOSS if loses else No.QUOTA


def _unknown(share: Share, end: End) -> bool:
    """May it have used all that was set aside, as nobody said what it used?"""
    return end.billed and end.used is None and share.limit.measure is not Measure.REQUESTS


def _used(share: Share, used: Used | None, end: End, sale: Sale) -> int:
    """Return what a call used of a limit."""
    if share.limit.measure is Measure.REQUESTS:
        return 1  # also when it was refused: they count those, too
    if used is None:
        return 0
    match share.limit.measure:
        case Measure.TOKENS:
            return used.total
        case Measure.INPUT_TOKENS:
            return used.prompt
        case Measure.OUTPUT_TOKENS:
            return used.made
        case Measure.SPEND:
            return end.nanos
        case Measure.LOSS:
            paid = sum(sale.nanos[kind] * quantity for kind, quantity in used.quantities())
            return max(0, end.nanos - int(paid))
