"""One line of a batch: a request like any other, without a client, and with nobody in its way.

    claimed ──► hold ──► generate ──► keep answer and report ──► settle ──► done
                  └── no replica, no money just now, reclaimed: put back, and nothing is charged

Its answer and what it used are kept in one step, before the money moves: what is kept is charged by
whoever ends the batch, even if this gateway is gone by then; what is not kept is charged to nobody.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Final

from sublet.core.failpoint import failpoint
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.gateway.ask import Ask
from sublet.gateway.background import Quiet
from sublet.gateway.batches.store import Line, source_of
from sublet.gateway.dialect import Dialect, Reply
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.flow import Serving
from sublet.gateway.grant import Grant, Need
from sublet.gateway.limits import Subject
from sublet.gateway.service import Service
from sublet.gateway.tariff import Counts
from sublet.metering.report import Report
from sublet.tenants.tenant import Caller, Tenant

TIER: Final = "batch"

# (the answer, what it used) → was it kept?
Keeps = Callable[[bytes, Report], Awaitable[bool]]


class Taken(Exception):
    """The line is somebody else's by now: what came of it here is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """Who pays for a batch."""

    caller: Caller
    tenant: Tenant
    subjects: tuple[Subject, ...]  # its budgets; a batch is within no rate


def payer(caller: Caller, tenant: Tenant, subjects: tuple[Subject, ...]) -> Payer:
    """Return who pays, held to budgets alone: rates are for interactive traffic."""
    budgets = tuple(Subject(one.whose, None, None, None, one.budgets) for one in subjects)
    return Payer(caller=caller, tenant=tenant, subjects=budgets)


def ask_of(words: Dialect, body: bytes) -> Ask:
    """Read a line's request.

    Raises:
        Failure: what is wrong with it.
    """
    ask = words.parse(body)
    if ask.stream:
        raise _unsupported("stream", "a batch streams nothing")
    if ask.keep is not None and (ask.keep.store or ask.keep.background):
        name = "background" if ask.keep.background else "store"
        raise _unsupported(name, "a batch's answers are in its output file")
    if ask.keep is not None and ask.keep.previous is not None:
        raise _unsupported("previous_response_id", "each request of a batch stands alone")
    return replace(ask, service_tier=TIER)


def _unsupported(name: str, why: str) -> Failure:
    return Failure(Kind.UNSUPPORTED, f"Unsupported value of '{name}': {why}", param=name)


class LineServing(Serving):
    """Serves one line."""

    def __init__(
        self, service: Service, words: Dialect, line: Line, ask: Ask, payer: Payer,
        *, created: int, keeps: Keeps,
    ) -> None:  # fmt: skip
        self._line = line
        self._keeps = keeps
        self._reply: Reply | None = None
        self.settles = False  # it is answered, and must not be broken off any more

        def reply(ask: Ask, grant: Grant, hexed: str, created: int) -> Reply:
            self._reply = words.reply(ask, grant, hexed, created)
            return self._reply

        # Its use has one id, but a replica takes no request twice: each try has a name of its own.
        self.request_id = f"req_{new_id().hex}"
        quiet = Quiet(
            replace(words, reply=reply), line.id, created=created, request_id=self.request_id
        )
        super().__init__(service, quiet, ask, payer.caller, payer.tenant, payer.subjects)

    def _number(self) -> tuple[str, int]:
        return source_of(self._line.batch_id), self._line.number

    def _outstanding(self, need: Need) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()  # nothing grows for what runs on what is left over

    async def _settle(self, grant: Grant, report: Report, counts: Counts) -> None:
        self.settles = True
        assert self._reply is not None
        assert self._finish_reason is not None
        body = self._reply.whole(
            "".join(self._texts), self._finish_reason, counts, Money(report.nanos)
        )
        failpoint("gateway.batch.answered")
        if not await asyncio.shield(self._keeps(body, report)):
            self._granted = grant  # nothing of it is used: it goes back
            raise Taken
        failpoint("gateway.batch.kept")
        await super()._settle(grant, report, counts)
