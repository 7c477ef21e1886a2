"""Our answers in OpenAI's words. A golden test holds every field against their SDK."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

import msgspec

from sublet.core.money import Money
from sublet.gateway.ask import Api, Ask, ToolCall, ToolDelta, gather
from sublet.gateway.dialect import Dialect, grant_headers, grant_note
from sublet.gateway.failures import Failure, Headers
from sublet.gateway.grant import Grant
from sublet.gateway.limits import Standing, span
from sublet.gateway.request import parse
from sublet.gateway.table import Offer, Table
from sublet.gateway.tariff import Counts
from sublet.market.price import Price

_encode: Final = msgspec.json.Encoder().encode
_DONE: Final = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Reply:
    """One answer: its parts, as bytes that are ready to send."""

    ask: Ask
    grant: Grant
    id: str  # 32 hex digits
    created: int
    _made: bytes = b""
    _calls: dict[int, ToolCall] = field(default_factory=dict)
    _logprobs: list[bytes] = field(default_factory=list)

    @property
    def _head(self) -> bytes:
        """Of every chunk, up to its choices."""
        if not self._made:
            name = "chat.completion.chunk" if self.ask.api is Api.CHAT else "text_completion"
            self._made = b"data: " + _encode(self._frame(name))[:-1]
        return self._made

    @property
    def headers(self) -> Headers:
        return grant_headers(self.grant)

    def first(self, counts: Counts | None) -> bytes:  # noqa: ARG002 -- it says that at the end
        """Return the chunk before any text: a chat's role, and what was granted."""
        return self._chunk(
            b'{"role":"assistant","content":""}' if self._chat else b'""',
            tail=b',"sublet":' + _encode(grant_note(self.grant)),
        )

    def text(self, text: str) -> bytes:
        encoded = _encode(text)
        return self._chunk(b'{"content":' + encoded + b"}" if self._chat else encoded)

    def part(
        self,
        text: str,
        calls: Sequence[ToolDelta],
        logprobs: bytes | None,
        counts: Counts | None,  # noqa: ARG002 -- it says that at the end
    ) -> bytes:
        """Return a chunk with text, calls of tools and logprobs; note them for a whole answer."""
        delta: dict[str, object] = {}
        if text:
            delta["content"] = text
        if calls:
            delta["tool_calls"] = [self._call(call) for call in calls]
        if logprobs is not None:
            self._logprobs.append(logprobs)
        return self._chunk(_encode(delta), logprobs=logprobs or b"null")

    def _call(self, delta: ToolDelta) -> dict[str, object]:
        first = delta.at not in self._calls
        call = gather(self._calls, delta)
        part: dict[str, object] = {"index": delta.at}
        if first:
            part |= {"id": call.id, "type": "function"}
        named = {"name": call.name} if first else {}
        return part | {"function": named | {"arguments": delta.arguments}}

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        """Return all that follows the text: the reason, the usage if asked for, the end."""
        parts = [self._chunk(b"{}" if self._chat else b'""', reason=_encode(finish_reason))]
        if self.ask.include_usage:
            usage = _encode(_usage(counts))
            note = _encode(grant_note(self.grant, charge))
            parts.append(
                self._head + b',"choices":[],"usage":' + usage + b',"sublet":' + note + b"}\n\n"
            )
        parts.append(_DONE)
        return b"".join(parts)

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        """Return the answer of a call that does not stream."""
        choice: dict[str, object] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
        if self._chat:
            message: dict[str, object] = {
                "role": "assistant", "content": text, "refusal": None, "annotations": [],
            }  # fmt: skip
            if self._calls:
                message["content"] = text or None
                message["tool_calls"] = [
                    {
                        "id": call.id, "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for call in self._calls.values()
                ]  # fmt: skip
            choice["message"] = message
            if self._logprobs:
                choice["logprobs"] = msgspec.Raw(self._logprobs[0])
        else:
            choice["text"] = text
        frame = self._frame("chat.completion" if self._chat else "text_completion")
        return _encode(
            frame
            | {
                "choices": [choice],
                "usage": _usage(counts),
                "sublet": grant_note(self.grant, charge),
            }
        )

    @property
    def _chat(self) -> bool:
        return self.ask.api is Api.CHAT

    def _frame(self, name: str) -> dict[str, object]:
        frame: dict[str, object] = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{self.id}",
            "object": name,
            "created": self.created,
            "model": self.ask.model,
        }
        if self.ask.service_tier is not None:
            frame["service_tier"] = self.ask.service_tier
        return frame

    def _chunk(
        self,
        content: bytes,
        *,
        reason: bytes = b"null",
        tail: bytes = b"",
        logprobs: bytes = b"null",
    ) -> bytes:
        return b"".join(
            (
                self._head,
                b',"choices":[{"index":0,',
                b'"delta":' if self._chat else b'"text":',
                content,
                b',"logprobs":',
                logprobs,
                b',"finish_reason":',
                reason,
                b"}]",
                b',"usage":null' if self.ask.include_usage else b"",
                tail,
                b"}\n\n",
            )
        )


def _usage(counts: Counts) -> dict[str, object]:
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.total,
        "prompt_tokens_details": {"cached_tokens": counts.cache_read_tokens},
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
    }


def models(table: Table) -> bytes:
    """Return the list of what is sold."""
    sold = [_model(offer) for offer in table.offers.values() if offer.sold]
    return _encode({"object": "list", "data": sold})


def model(offer: Offer) -> bytes:
    return _encode(_model(offer))


def deleted(name: str) -> bytes:
    return _encode({"id": name, "object": "model", "deleted": True})


def _model(offer: Offer) -> dict[str, object]:
    tariff = offer.tariff
    return {
        "id": offer.deployment.name,
        "object": "model",
        "created": 0,  # OpenAI's field; nothing depends on it
        "owned_by": "sublet",
        "sublet": {
            "state": offer.state,
            "context_tokens": offer.deployment.context_tokens,
            "features": sorted(offer.deployment.features),
            "prices": None
            if tariff is None
            else {
                "input": _price(tariff.input),
                "cache_read": _price(tariff.cache_read),
                "cache_write": _price(tariff.cache_write),
                "output": _price(tariff.output),
                "reasoning": _price(tariff.reasoning),
            },
        },
    }


def _price(price: Price) -> dict[str, object]:
    rate = price.rate
    return {"nanos": rate.nanos, "per_tokens": rate.per, "currency": rate.currency}


def _refuse(failure: Failure, request_id: str) -> tuple[int, bytes, Headers]:  # noqa: ARG001
    return failure.status, _error(failure), []


def _break_off(failure: Failure, request_id: str) -> bytes:  # noqa: ARG001
    # Never [DONE] after it: the answer must not look whole.
    return b"data: " + _error(failure) + b"\n\n"


def _error(failure: Failure) -> bytes:
    row = failure.row
    error = {
        "message": failure.message, "type": row.type, "param": failure.param, "code": row.code,
    }  # fmt: skip
    return _encode({"error": error})


def _limits(standings: Sequence[Standing], now: datetime) -> Headers:  # noqa: ARG001
    headers: Headers = []
    for name, size, left, full_seconds in standings:
        key = name.encode()
        headers += [
            (b"x-ratelimit-limit-" + key, b"%d" % size),
            (b"x-ratelimit-remaining-" + key, b"%d" % left),
            (b"x-ratelimit-reset-" + key, span(full_seconds).encode()),
        ]
    return headers


def _dialect(api: Api) -> Dialect:
    return Dialect(
        parse=partial(parse, api), reply=Reply, refuse=_refuse, break_off=_break_off, limits=_limits
    )


CHAT: Final = _dialect(Api.CHAT)
COMPLETION: Final = _dialect(Api.COMPLETION)
