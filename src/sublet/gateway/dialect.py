"""What a dialect is: one provider's words for requests, answers, refusals and limits.

The gateway knows one request (`Ask`), one stream of text and counts, one refusal (`Failure`).
A dialect translates to and from them, and decides nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

from sublet.core.money import Money
from sublet.gateway.ask import Ask, ToolDelta
from sublet.gateway.failures import Failure, Headers
from sublet.gateway.grant import Grant
from sublet.gateway.limits import Standing
from sublet.gateway.tariff import Counts


class Reply(Protocol):
    """One answer: its parts, as bytes that are ready to send."""

    @property
    def grant(self) -> Grant: ...

    @property
    def headers(self) -> Headers: ...

    def first(self, counts: Counts | None) -> bytes:
        """Return what comes before any text. `counts`: what is known to be used by then."""

    def text(self, text: str) -> bytes: ...

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        """Return all that follows the text of a stream."""

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        """Return the answer of a call that does not stream."""


@runtime_checkable
class RichReply(Reply, Protocol):
    """An answer that may have more than text: calls of tools, and how likely its tokens were."""

    def part(
        self, text: str, calls: Sequence[ToolDelta], logprobs: bytes | None, counts: Counts | None
    ) -> bytes:
        """Return the next part of a stream, and note it for `whole` and `last`.

        Args:
            text: may be empty.
            calls: parts of calls.
            logprobs: of the text, as JSON in OpenAI's form.
            counts: what is known to be used by now.
        """


@runtime_checkable
class KeptReply(Reply, Protocol):
    """An answer that may be kept and gone on from."""

    @property
    def ask(self) -> Ask: ...

    def kept(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        """Return it whole, also when it was streamed."""

    def said(self, text: str) -> dict[str, object]:
        """Return it as a turn, in the form that replicas read."""

    def not_kept(self) -> None:
        """Say from now on that it could not be kept."""

    def begun(self, status: str) -> bytes:
        """Return it as it is before there is anything of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    parse: Callable[[bytes], Ask]  # raises Failure
    # (ask, grant, 32 hex digits, when in seconds since 1970)
    reply: Callable[[Ask, Grant, str, int], Reply]
    # (failure, request id): status, body and headers of its own
    refuse: Callable[[Failure, str], tuple[int, bytes, Headers]]
    break_off: Callable[[Failure, str], bytes]  # the same as the last event of a begun stream
    limits: Callable[[Sequence[Standing], datetime], Headers]
    request_id: bytes = b"x-request-id"  # the header that the provider's SDK reads it from
    stream_kind: bytes = b"text/event-stream; charset=utf-8"  # the content type of a stream


def grant_headers(grant: Grant) -> Headers:
    """Say how many tokens of output an answer may have, and what made them fewer."""
    headers: Headers = []
    if grant.max_tokens is not None:
        headers.append((b"x-sublet-max-tokens", b"%d" % grant.max_tokens))
    if grant.clipped_by is not None:
        headers.append((b"x-sublet-max-tokens-clipped", grant.clipped_by.value.encode()))
    return headers


def grant_note(grant: Grant, charge: Money | None = None) -> dict[str, object]:
    """Return the field `sublet` of an answer: what it was granted, and what it cost."""
    note: dict[str, object] = {"max_tokens": grant.max_tokens, "clipped_by": grant.clipped_by}
    if charge is not None:
        note["charge_nanos"] = charge.nanos
    return note
