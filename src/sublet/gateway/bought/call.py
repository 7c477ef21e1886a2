"""One call of a supplier, from the first byte out to the record of what it cost.

It runs by itself: whoever asked for it may leave, and it goes on to the supplier's own count, so that
what was bought is known. It gives its quota back, and notes the purchase, whatever its end.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from sublet.core.ids import new_id
from sublet.gateway.answers import Piece
from sublet.gateway.ask import Ask
from sublet.gateway.bought.headers import request_of, rest_of, tier_of
from sublet.gateway.bought.speech import Nonsense, Reader, Speech, Stopped
from sublet.gateway.tariff import Counts
from sublet.gateway.wire import Headed, Lost, Wire
from sublet.suppliers.choice import Candidate, Wanted
from sublet.suppliers.purchase import Purchase
from sublet.suppliers.supplier import Rates
from sublet.suppliers.usage import Used, check

log: Final = logging.getLogger(__name__)

_SILENCE_SECONDS: Final = 120.0
_DRAIN_SECONDS: Final = 120.0  # for the rest of an answer that nobody waits for any more
_LONGEST_REFUSAL: Final = 1 << 18
_BYTES_A_TOKEN: Final = 4  # where nobody counted


class Trouble(Enum):
    """Why a call came to nothing."""

    BUSY = auto()  # it takes no more just now, and may say for how long
    KEY = auto()  # it does not know us any more
    UNPAID = auto()  # it wants to be paid first
    GONE = auto()  # it has no such model
    REQUEST = auto()  # it takes no such request: another one would not either
    FAILED = auto()


_TROUBLES: Final = {
    400: Trouble.REQUEST, 401: Trouble.KEY, 402: Trouble.UNPAID, 403: Trouble.KEY,
    404: Trouble.GONE, 413: Trouble.REQUEST, 422: Trouble.REQUEST, 429: Trouble.BUSY,
    503: Trouble.BUSY, 529: Trouble.BUSY,
}  # fmt: skip


class Failed(Exception):
    """It came to nothing before a byte of an answer."""

    def __init__(self, trouble: Trouble, rest_seconds: float | None = None) -> None:
        super().__init__(trouble.name)
        self.trouble = trouble
        self.rest_seconds = rest_seconds


class Cut(Exception):
    """It broke off after some of the answer had come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is wanted, and by whom."""

    ask: Ask
    tenant_id: UUID
    request_id: str
    wanted: Wanted
    most_output: int
    deadline: float  # of the first token, whoever gives it


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a call ended."""

    used: Used | None  # None: nobody said
    nanos: int
    billed: bool  # may the supplier want money for it?


class SupplierCall:
    """Made and started inside the event loop."""

    def __init__(
        self,
        order: Order,
        candidate: Candidate,
        *,
        wire: Wire,
        speech: Speech,
        key: str,
        now: Callable[[], datetime],
        ended: Callable[["SupplierCall", End], Awaitable[None]],
    ) -> None:
        self.order = order
        self.candidate = candidate
        self.tier = order.wanted.tier  # as which it is served, as far as is known
        self.first_at: float | None = None
        self.head: Headed | None = None  # once it is there
        self.delivered_bytes = 0  # of the answer: what its client got
        self._wire = wire
        self._speech = speech
        self._key = key
        self._now = now
        self._ended = ended
        self._reader: Reader = speech.reader()
        self._queue: asyncio.Queue[list[Piece] | Exception | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._left = self._cut = False
        self._began_at = 0.0
        self._used: Used | None = None
        self._complete = False

    @property
    def key(self) -> tuple[str, str]:
        return self.candidate.source.key

    @property
    def seconds_to_first(self) -> float:
        """How long its first token took."""
        assert self.first_at is not None
        return self.first_at - self._began_at

    def start(self) -> asyncio.Task[None]:
        self._began_at = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._run())
        return self._task

    # ── whoever asked ────────────────────────────────────────────────────────────────────

    async def next(self) -> list[Piece] | None:
        """Return what came next; None: it has ended well.

        Raises:
            Failed: nothing will come.
            Cut: nothing more will.
        """
        got = await self._queue.get()
        if isinstance(got, Exception):
            raise got
        return got

    def leave(self) -> None:
        """Nobody waits for it any more: let it go on to its count, within bounds."""
        if self._task is not None and not self._task.done() and not self._left:
            self._left = True
            asyncio.get_running_loop().call_later(_DRAIN_SECONDS, self.cut)

    def cut(self) -> None:
        """End it now."""
        if self._task is not None and not self._task.done() and not self._cut:
            self._cut = True
            self._task.cancel()

    async def final(self) -> Counts | None:
        """Return what is to be charged for it once it has ended: what was delivered, no more."""
        assert self._task is not None
        await asyncio.wait([self._task])
        counts = self.counts
        if counts is None or self._reader.answer_bytes <= self.delivered_bytes:
            return counts
        # The supplier's engine ran on to the end of an answer of which the client has a part.
        share = self.delivered_bytes / self._reader.answer_bytes
        return Counts(
            input_tokens=counts.input_tokens,
            cache_read_tokens=counts.cache_read_tokens,
            cache_write_tokens=counts.cache_write_tokens,
            output_tokens=int(counts.output_tokens * share),
            reasoning_tokens=counts.reasoning_tokens,
        )

    @property
    def counts(self) -> Counts | None:
        """What it used, as the gateway counts; None: the supplier did not say."""
        used = self._used
        if used is None:
            return None
        return Counts(
            input_tokens=used.input,
            cache_read_tokens=used.cache_read,
            cache_write_tokens=used.cache_write + used.cache_write_long,
            output_tokens=used.output,
            reasoning_tokens=used.reasoning,
        )

    # ── the call itself ──────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        said: Exception | None = None
        try:
            await self._speak()
        except (Failed, Cut) as error:
            said = error
        except (Lost, Nonsense, Stopped):
            said = Cut() if self.first_at is not None else Failed(Trouble.FAILED)
        except asyncio.CancelledError:
            if not self._cut:
                raise
            said = Cut()
        except Exception:
            log.exception("supplier.failed", extra={"supplier": self.key[0]})
            said = Failed(Trouble.FAILED) if self.first_at is None else Cut()
        try:
            await self._ended(self, self._end())
        finally:
            self._queue.put_nowait(said)

    async def _speak(self) -> None:
        source, order = self.candidate.source, self.order
        request = self._speech.request(
            order.ask, source, key=self._key, tier=order.wanted.tier, most_output=order.most_output
        )
        address, raw = _written(source.supplier.url, request.path, request.headers, request.body)
        try:
            answer = await self._wire.send(
                address, raw, silence_seconds=_SILENCE_SECONDS, repeatable=False
            )
        except Lost as error:
            raise Failed(Trouble.FAILED) from error
        assert isinstance(answer, Headed)
        try:
            if answer.status != 200:
                body = await answer.read_all(most=_LONGEST_REFUSAL)
                rest = rest_of(answer.headers, body, self._now())
                self.head = answer
                raise Failed(_TROUBLES.get(answer.status, Trouble.FAILED), rest)
            self.head = answer
            self.tier = tier_of(answer.headers) or self.tier
            await self._listen(answer)
        finally:
            answer.close(said_all=self._reader.done)

    async def _listen(self, answer: Headed) -> None:
        reader = self._reader
        while not reader.done:
            data = await answer.read()
            if not data:
                raise Cut if self.first_at is not None else Failed(Trouble.FAILED)
            pieces = reader.feed(data)
            self.tier = reader.tier or self.tier
            if any(piece.text or piece.calls or piece.finish_reason for piece in pieces):
                if self.first_at is None:
                    self.first_at = asyncio.get_running_loop().time()
                self._queue.put_nowait(pieces)
        if reader.final and reader.used is not None:
            self._used = check(
                reader.used,
                most_output=self.order.most_output,
                answer_bytes=reader.answer_bytes,
            )
        self._complete = True

    # ── its end ──────────────────────────────────────────────────────────────────────────

    @property
    def billed(self) -> bool:
        """May the supplier want money for it? A refusal costs nothing."""
        return self.head is not None and self.head.status == 200

    def _end(self) -> End:
        if not self.billed:
            return End(used=None, nanos=0, billed=False)
        used = self._told_or_guessed()
        return End(used=self._used, nanos=self.rates.cost(used).nanos, billed=True)

    @property
    def rates(self) -> Rates:
        """The prices of the tier as which it was served; of the one asked for, where it has none."""
        return self.candidate.source.rates.get(self.tier, self.candidate.rates)

    def _told_or_guessed(self) -> Used:
        """Return what it used: as it says, else as far as it said and by the length of the rest."""
        if self._used is not None:
            return self._used
        said = self._reader.used or Used()
        shown = self._reader.answer_bytes + self._reader.thought_bytes
        output = max(said.made, -(-shown // _BYTES_A_TOKEN))
        fresh = said.input if said.prompt else self.order.wanted.expected_input
        return Used(
            input=fresh,
            cache_read=said.cache_read,
            cache_write=said.cache_write,
            cache_write_long=said.cache_write_long,
            output=output,
            doubt="it did not say what it used",
        )

    def purchase(self) -> Purchase:
        """Return what goes on record."""
        source, order, rates = self.candidate.source, self.order, self.rates
        used = self._told_or_guessed()
        if rates.tier != self.tier:
            used = used.doubted(f"served as {self.tier}, which has no price")
        basis = "estimated"
        if self._used is not None:
            basis = "reported"
        elif self._reader.used is not None:
            basis = "partly"
        outcome = "aborted" if self._left else "completed"
        assert self.head is not None
        return Purchase(
            id=new_id(),
            supplier=source.supplier.name,
            model=source.model,
            deployment=source.deployment,
            tenant_id=order.tenant_id,
            request_id=order.request_id,
            supplier_request=(self._reader.request or request_of(self.head.headers)),
            asked_tier=order.wanted.tier,
            tier=rates.tier,
            price_id=rates.id,
            used=used,
            amount_nanos=rates.cost(used).nanos,
            outcome=outcome if self._complete else "failed",
            basis=basis,
            first_token_ms=None if self.first_at is None else round(self.seconds_to_first * 1000),
            happened_at=self._now(),
        )


def _written(
    url: str, path: str, headers: Mapping[str, str], body: bytes
) -> tuple[tuple[str, int], bytes]:
    """Return where a request goes, and all of its bytes."""
    parts = urlsplit(url)
    assert parts.hostname, url
    lines = [
        f"POST {parts.path}{path} HTTP/1.1", f"host: {parts.netloc}",
        "content-type: application/json", "accept-encoding: identity", "user-agent: sublet",
        f"content-length: {len(body)}",
    ]  # fmt: skip
    lines += [f"{name}: {value}" for name, value in headers.items()]
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return (parts.hostname, port), ("\r\n".join(lines) + "\r\n\r\n").encode() + body
