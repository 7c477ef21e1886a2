"""Our answers in OpenAI's words. A golden test holds every field against their SDK."""

from dataclasses import dataclass, field
from typing import Final

import msgspec

from sublet.core.money import Money
from sublet.gateway.failures import Headers
from sublet.gateway.grant import Grant
from sublet.gateway.request import Api, Ask
from sublet.gateway.table import Offer, Table
from sublet.gateway.tariff import Counts
from sublet.market.price import Price

_encode: Final = msgspec.json.Encoder().encode
_DONE: Final = b"data: [DONE]\n\n"


@dataclass(slots=True, kw_only=True)
class Reply:
    """One answer: its parts, as bytes that are ready to send."""

    ask: Ask
    grant: Grant
    id: str  # 32 hex digits
    created: int
    _head: bytes = field(init=False)  # of every chunk, up to its choices

    def __post_init__(self) -> None:
        name = "chat.completion.chunk" if self.ask.api is Api.CHAT else "text_completion"
        self._head = b"data: " + _encode(self._frame(name))[:-1]

    @property
    def headers(self) -> Headers:
        """How many tokens of output it may have, and what made them fewer."""
        grant = self.grant
        headers: Headers = []
        if grant.max_tokens is not None:
            headers.append((b"x-sublet-max-tokens", b"%d" % grant.max_tokens))
        if grant.clipped_by is not None:
            headers.append((b"x-sublet-max-tokens-clipped", grant.clipped_by.value.encode()))
        return headers

    def first(self) -> bytes:
        """Return the chunk before any text: a chat's role, and what was granted."""
        return self._chunk(
            b'{"role":"assistant","content":""}' if self._chat else b'""',
            tail=b',"sublet":' + _encode(self._note()),
        )

    def text(self, text: str) -> bytes:
        encoded = _encode(text)
        return self._chunk(b'{"content":' + encoded + b"}" if self._chat else encoded)

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        """Return all that follows the text: the reason, the usage if asked for, the end."""
        parts = [self._chunk(b"{}" if self._chat else b'""', reason=_encode(finish_reason))]
        if self.ask.include_usage:
            usage = _encode(_usage(counts))
            note = _encode(self._note(charge))
            parts.append(
                self._head + b',"choices":[],"usage":' + usage + b',"sublet":' + note + b"}\n\n"
            )
        parts.append(_DONE)
        return b"".join(parts)

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        """Return the answer of a call that does not stream."""
        choice: dict[str, object] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
        if self._chat:
            choice["message"] = {
                "role": "assistant", "content": text, "refusal": None, "annotations": [],
            }  # fmt: skip
        else:
            choice["text"] = text
        frame = self._frame("chat.completion" if self._chat else "text_completion")
        return _encode(
            frame | {"choices": [choice], "usage": _usage(counts), "sublet": self._note(charge)}
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

    def _note(self, charge: Money | None = None) -> dict[str, object]:
        note: dict[str, object] = {
            "max_tokens": self.grant.max_tokens,
            "clipped_by": self.grant.clipped_by,
        }
        if charge is not None:
            note["charge_nanos"] = charge.nanos
        return note

    def _chunk(self, content: bytes, *, reason: bytes = b"null", tail: bytes = b"") -> bytes:
        return b"".join(
            (
                self._head,
                b',"choices":[{"index":0,',
                b'"delta":' if self._chat else b'"text":',
                content,
                b',"logprobs":null,"finish_reason":',
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
