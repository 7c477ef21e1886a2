"""Answers in the background: the client has its id at once, and fetches the answer later.

A request like any other, with money held and settled; only nobody listens. To cancel one is to
hang up: the engine stops, and what was generated until then is charged. Any gateway may be told
to cancel or delete an answer; the one that works on it looks twice a second.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from msgspec import Raw

from sublet.core.errors import Unavailable
from sublet.core.money import Money
from sublet.gateway.ask import Ask
from sublet.gateway.dialect import Dialect, KeptReply, Reply
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.kept import Kept, Record, record_failed, with_response
from sublet.gateway.tariff import Counts

if TYPE_CHECKING:
    from sublet.gateway.tracing import Trace

log: Final = logging.getLogger(__name__)

# What of ours their SDK has a word for; the rest is "server_error".
_CODES: Final[Mapping[Kind, str]] = {
    Kind.RATE_LIMITED: "rate_limit_exceeded",
    Kind.OVER_LIMIT: "rate_limit_exceeded",
    Kind.INVALID: "invalid_prompt",
    Kind.TOO_LONG: "invalid_prompt",
}
_STORE_SECONDS: Final = 60.0  # to try again while the database is away


class Quiet:
    """An exchange without a client."""

    def __init__(
        self, dialect: Dialect, id_: UUID, *, created: int, request_id: str | None = None
    ) -> None:
        """`created`: in seconds since 1970; `request_id`: where it is not told by the id."""
        self.dialect = dialect
        self.id = id_
        self.created = created
        self.request_id = request_id or f"req_{id_.hex}"
        self.trace: Trace | None = None  # its client's trace ended when it had its id
        self.begun = False
        self.clogged = False
        self.body: bytes | None = None
        self.gone = False
        self._on_gone: Callable[[], None] | None = None

    def when_gone(self, tell: Callable[[], None]) -> None:
        self._on_gone = tell
        if self.gone:
            tell()

    def hang_up(self) -> None:
        if not self.gone:
            self.gone = True
            if self._on_gone is not None:
                self._on_gone()

    async def respond(
        self, status: int, body: bytes, *, headers: Headers | None = None, kind: bytes | None = None
    ) -> None:
        assert (status, kind) == (200, None), (status, kind, headers)
        self.body = body

    async def begin(self, headers: Headers) -> None:
        raise AssertionError(f"nothing streams in the background: {headers}")

    async def write(self, data: bytes) -> None:
        raise AssertionError(f"nothing streams in the background: {len(data)}")

    async def end(self, data: bytes) -> None:
        raise AssertionError(f"nothing streams in the background: {len(data)}")


class Background:
    """Those that this process works on."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._running: dict[UUID, Quiet] = {}

    async def run(
        self,
        quiet: Quiet,
        tenant_id: UUID,
        begun: Record,
        serve: Callable[[], Coroutine[Any, Any, None]],
        end: Callable[[bytes], Record],
    ) -> None:
        """Serve one to its end, and keep that.

        Args:
            quiet: gets the answer.
            tenant_id: whose it is.
            begun: what is kept of it by now.
            serve: serves it.
            end: makes of the answer what is kept.
        """
        self._running[quiet.id] = quiet
        record = record_failed(begun, message="it was broken off")
        try:
            await serve()
            if quiet.body is not None:
                record = end(quiet.body)
            else:
                record = with_response(begun, {"status": "cancelled"})
        except Failure as failure:
            code = _CODES.get(failure.kind, "server_error")
            record = record_failed(begun, code=code, message=failure.message)
        except Unavailable:
            record = record_failed(begun, message="the gateway's database was away; ask again")
        finally:
            del self._running[quiet.id]
            await self._end(tenant_id, quiet.id, record)

    async def _end(self, tenant_id: UUID, id_: UUID, record: Record) -> None:
        until = asyncio.get_running_loop().time() + _STORE_SECONDS
        while True:
            try:
                await self._kept.end(tenant_id, id_, record)
                return
            except Unavailable:
                if asyncio.get_running_loop().time() > until:
                    log.error("gateway.response_lost", extra={"response": str(id_)})  # noqa: TRY400
                    return
                await asyncio.sleep(1)

    async def look(self) -> None:
        """Hang up those that were cancelled or deleted."""
        if not self._running:
            return
        wanted = await self._kept.still_wanted(list(self._running))
        for id_, quiet in list(self._running.items()):
            if id_ not in wanted:
                quiet.hang_up()


def ended(begun: Record, body: bytes, said: Mapping[str, object]) -> Record:
    """Return what is kept of an answer that came to its end.

    Args:
        begun: what was kept of it, or would have been.
        body: the answer.
        said: the same as a turn, in the form that replicas read.
    """
    return msgspec.structs.replace(
        begun, response=Raw(body), messages=[*begun.messages, dict(said)]
    )


def begun(ask: Ask, body: bytes = b"{}") -> Record:
    """Return what is kept of an answer before its end."""
    keep, messages = ask.keep, ask.payload["messages"]
    assert keep is not None
    assert isinstance(messages, list)
    return Record(
        response=Raw(body),
        messages=messages[1:] if keep.instructions else messages,
        items=keep.items,
        background=keep.background,
    )


async def keep(
    kept: Kept, tenant_id: UUID, id_: UUID, reply: Reply, said: tuple[str, str, Counts, Money]
) -> dict[str, object]:
    """Keep an answer where that was asked for; of one in the background, who runs it does.

    Args:
        kept: where.
        tenant_id: whose it is.
        id_: the request's.
        reply: the answer.
        said: its text, why it ended, what it used and what that costs.

    Returns:
        the answer as a turn, in the form that replicas read.
    """
    assert isinstance(reply, KeptReply)
    ask = reply.ask
    turn = reply.said(said[0])
    if ask.keep is not None and ask.keep.store and not ask.keep.background:
        try:
            await kept.add(tenant_id, id_, ended(begun(ask), reply.kept(*said), turn))
        except Unavailable:
            reply.not_kept()  # it is paid, and here it is
    return turn
