"""What all requests of a gateway share, and how one is broken off from outside."""

import asyncio
import itertools
import logging
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final
from uuid import UUID

from sublet.core.errors import Unavailable
from sublet.gateway.ask import Ask
from sublet.gateway.background import Background
from sublet.gateway.batches.service import Batches
from sublet.gateway.bought.buyer import Buyer
from sublet.gateway.bound import Bounds
from sublet.gateway.budgets import Budgets
from sublet.gateway.cashier import Cashier
from sublet.gateway.demand import Demand
from sublet.gateway.directory import Directory
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.files import Files
from sublet.gateway.fine_tuning import FineTuning
from sublet.gateway.kept import Kept
from sublet.gateway.limits import Limiter
from sublet.gateway.metrics import Metrics
from sublet.gateway.replica import Replicas
from sublet.gateway.table import Offer, Table
from sublet.gateway.tariff import Counts
from sublet.gateway.tracing import Tracer
from sublet.metering.usage import Outcome

log: Final = logging.getLogger(__name__)

MAX_SECONDS: Final = 600.0  # of one request; its hold outlives it


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a replica that streams may let its client wait."""

    first_token_seconds: float = 120.0  # its queue and the reading of the prompt are in it
    stall_seconds: float = 60.0  # between two tokens

    def due(
        self, *, now: float, began_at: float, waits: bool, clogged: bool, moved_at: float
    ) -> tuple[float, "Why"]:
        """Return when a request is to be broken off, if nothing more comes, and why.

        Args:
            now: the present instant.
            began_at: when it was sent.
            waits: a client waits for each token.
            clogged: it is the client who is slow.
            moved_at: when the last text went out; 0: none did.
        """
        ends, why = began_at + MAX_SECONDS, Why.TIMED_OUT
        if waits:
            if clogged:
                sooner, what = now + self.stall_seconds, Why.STALLED
            elif moved_at:
                sooner, what = moved_at + self.stall_seconds, Why.STALLED
            else:
                sooner, what = began_at + self.first_token_seconds, Why.SILENT
            if sooner < ends:
                ends, why = sooner, what
        return ends, why


@dataclass(slots=True, kw_only=True)
class Service:
    """What all requests share."""

    source: str  # what usages say of who counted them: the engine, as told to this gateway …
    supplier: str  # … or a supplier, told to this gateway, …
    tokeniser: str  # … or nobody until this gateway asked for the tokens of a text
    directory: Directory
    cashier: Cashier
    replicas: Replicas
    limiter: Limiter
    budgets: Budgets
    kept: Kept
    background: Background
    files: Files
    batches: Batches
    tuning: FineTuning
    buyer: Buyer | None = None  # of answers that own replicas are short of
    patience: Patience = Patience()
    demand: Demand = field(default_factory=Demand)
    metrics: Metrics = field(default_factory=Metrics)
    tracer: Tracer | None = None
    table: Table = field(default_factory=Table)
    bounds: Bounds = field(default_factory=Bounds)
    sequence: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    # The same of what the gateway counted itself: a source of its own, so that it can be told apart.
    tokenised: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    # And of what suppliers counted.
    supplied: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    running: set["Stop"] = field(default_factory=set)
    _detached: set[asyncio.Task[None]] = field(default_factory=set)

    async def refresh(self) -> None:
        """Read the table anew, and what may be bought; keep the last one when that fails."""
        try:
            self.table = await self.directory.read_table()
            self.demand.served_by = self.table.served_by()
            self.limiter.put(self.directory.book)
            if self.buyer is not None:
                self.buyer.take(await self.directory.transact(self.buyer.read))
        except Unavailable:
            log.warning("gateway.table_kept")

    def show(self) -> None:
        """Note for metrics what is so now."""
        held, committed, reports = self.cashier.standing()
        self.metrics.show(
            {
                "workers": 1,
                "running": len(self.running),
                "queued": self.cashier.queued,
                "replica_requests": self.replicas.routing.load.total(),
                "held_nanos": held,
                "committed_nanos": committed,
                "reports_waiting": reports,
            }
        )

    def sold_outside(self, ask: Ask) -> bool:
        """Say whether its answer may be bought, too. Batches live on what is left over here."""
        sold = self.buyer is not None and self.buyer.sells(ask.model) and ask.generates
        return sold and ask.service_tier != "batch"

    def offer(self, model: str, tenant_id: UUID) -> Offer:
        """Return what is sold to a tenant under a name, and note that it was asked for.

        Raises:
            Failure: nothing is.
        """
        offer = self.table.seen_by(tenant_id).find(model)
        self.demand.asked(model, at=self.directory.now())
        return offer

    def served(
        self, model: str, outcome: Outcome, counts: Counts, times: tuple[float, float, float]
    ) -> None:
        """Count an answer, for metrics and for scaling.

        Args:
            model: what was asked.
            outcome: how it ended.
            counts: what is charged.
            times: when it began, when its first token came (0: it had none), and when its last.
        """
        began_at, first_at, last_at = times
        self.metrics.served(
            model,
            outcome,
            counts,
            first_seconds=first_at - began_at if first_at else None,
            rest_seconds=last_at - first_at,
        )
        self.demand.first(model, began_at, first_at)

    async def was_reclaimed(self, failure: Failure, model: str, tenant_id: UUID) -> bool:
        """Say whether a replica broke off because an internal job took its GPUs."""
        if failure.kind is not Kind.MODEL_FAILED:
            return False
        await self.refresh()
        offer = self.table.seen_by(tenant_id).offers.get(model)
        if offer is None or offer.ready:
            return False
        return offer.refusal().kind is Kind.RECLAIMED

    def cut(self) -> None:
        """End what still runs."""
        for stop in list(self.running):
            stop.now(Why.CUT)

    def detach(self, work: Coroutine[object, object, None]) -> None:
        """Let `work` go on by itself; `drain` waits for it."""
        task = asyncio.create_task(work)
        self._detached.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._detached.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("gateway.failed", exc_info=error)

    async def drain(self, seconds: float) -> None:
        """Wait for what goes on by itself, then hand over all money; see `Cashier.drain`."""
        until = asyncio.get_running_loop().time() + seconds
        if self._detached:
            await asyncio.wait(self._detached, timeout=seconds)
        if self.buyer is not None:
            await self.buyer.drain(max(0.1, until - asyncio.get_running_loop().time()))
        await self.cashier.drain(max(0.1, until - asyncio.get_running_loop().time()))
        await self.budgets.drain(max(0.1, until - asyncio.get_running_loop().time()))


class Why(Enum):
    HUNG_UP = auto()
    TIMED_OUT = auto()
    SILENT = auto()
    STALLED = auto()
    CUT = auto()  # this gateway is stopping


class Stop:
    """Breaks a request off, once, from outside its task."""

    __slots__ = ("_task", "closed", "why")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self.closed = False
        self.why: Why | None = None

    def now(self, why: Why) -> None:
        if not self.closed and self.why is None:
            assert self._task is not None
            self.why = why
            self._task.cancel()

    def was_ours(self) -> bool:
        """Say whether the cancellation that just came was this one, and take it back."""
        if self.why is None:
            return False
        assert self._task is not None
        self._task.uncancel()
        return True


def why_cut(stop: Stop, patience: Patience, *, model: str) -> Failure:
    """Return what to say of a request that was broken off, by us or by its time."""
    if stop.why is Why.CUT:
        return Failure(Kind.STOPPING, "this gateway is stopping; retry")
    if stop.why is Why.SILENT:
        return Failure(
            Kind.SILENT,
            f"model {model!r} gave no first token in {patience.first_token_seconds:g} seconds",
        )
    if stop.why is Why.STALLED:
        return Failure(
            Kind.STALLED,
            f"model {model!r} gave no further token in {patience.stall_seconds:g} seconds;"
            " what came is charged",
        )
    return Failure(Kind.TIMED_OUT, f"a request may take {MAX_SECONDS:.0f} seconds")


def facts(
    request_id: str, tenant: str, model: str, outcome: Outcome, counts: Counts | None
) -> dict[str, object]:
    """Return what a log line says of a request: never what was asked or answered."""
    said: dict[str, object] = {
        "request": request_id, "tenant": tenant, "model": model, "outcome": outcome.value,
    }  # fmt: skip
    if counts is not None:
        said["input_tokens"] = counts.input_tokens
        said["cache_read_tokens"] = counts.cache_read_tokens
        said["output_tokens"] = counts.output_tokens
    return said
