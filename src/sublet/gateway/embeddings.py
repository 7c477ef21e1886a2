"""Embeddings, in OpenAI's words. What is charged is their input; they have no output."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from sublet.core.money import Money
from sublet.gateway import openai
from sublet.gateway.ask import Api, Ask
from sublet.gateway.dialect import Dialect
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.grant import Grant
from sublet.gateway.reading import decode, plain
from sublet.gateway.request import Label
from sublet.gateway.tariff import Counts
from sublet.models.deployment import Feature

_encode: Final = msgspec.json.Encoder().encode
MOST_INPUTS: Final = 2048
_Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Tokens = Annotated[list[_Token], Meta(min_length=1)]
_Text = Annotated[str, Meta(min_length=1)]


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    model: str
    input: _Text | Annotated[list[_Text | _Token | _Tokens], Meta(min_length=1)]
    dimensions: None = None  # the models here were not trained to be cut off
    encoding_format: Literal["float", "base64"] | None = None
    user: Label | None = None


_BODY: Final = msgspec.json.Decoder(Body)
_ONLY_EMPTY: Final = frozenset({"dimensions"})


def parse(body: bytes) -> Ask:
    """Read a body of `/v1/embeddings`.

    Raises:
        Failure: what is wrong with it, and in which parameter.
    """
    asked = decode(_BODY, body, only_empty=_ONLY_EMPTY)
    given = [asked.input] if isinstance(asked.input, str) else asked.input
    tokens = [one for one in given if isinstance(one, int)]
    inputs = [one for one in given if not isinstance(one, int)]
    if tokens and inputs:
        raise Failure(
            Kind.INVALID, "input must not mix tokens with texts or lists of tokens", param="input"
        )
    return ask_for(asked.model, [tokens] if tokens else inputs, form=asked.encoding_format)


def ask_for(
    model: str, inputs: Sequence[str | list[int]], *, form: str | None = None, at: str = "input"
) -> Ask:
    """Return what is asked of a replica; `at`: the parameter that the inputs came in.

    Raises:
        Failure: there are too many.
    """
    if len(inputs) > MOST_INPUTS:
        raise Failure(Kind.INVALID, f"{at} may have {MOST_INPUTS} elements at most", param=at)
    return Ask(
        api=Api.EMBEDDING,
        model=model,
        payload={
            "input": [plain(one, at=at) if isinstance(one, str) else one for one in inputs],
            "encoding_format": form or "float",
        },
        max_tokens=0,
        stream=False,
        include_usage=True,
        service_tier=None,
        prompt_bytes=sum(len(one.encode() if isinstance(one, str) else one) for one in inputs),
        messages=len(inputs),
        features=frozenset({Feature.EMBEDDINGS}),
    )


@dataclass(slots=True)
class Vectors(ABC):
    """An answer that is vectors; how it is written is the subclass's."""

    ask: Ask
    grant: Grant
    id: str  # 32 hex digits
    created: int

    @property
    def headers(self) -> Headers:
        return []

    def first(self, counts: Counts | None) -> bytes:
        raise AssertionError(f"embeddings do not stream: {counts}")

    def text(self, text: str) -> bytes:
        raise AssertionError(f"embeddings do not stream: {len(text)}")

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        raise AssertionError(f"embeddings do not stream: {finish_reason} {counts} {charge}")

    @abstractmethod
    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        """`text`: the list of vectors as JSON."""


class Reply(Vectors):
    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:  # noqa: ARG002
        tokens = counts.prompt_tokens
        return _encode(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": vector}
                    for index, vector in enumerate(read(text))
                ],
                "model": self.ask.model,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                "sublet": {"charge_nanos": charge.nanos},
            }
        )


def read(text: str) -> list[Raw]:
    """Return the vectors of an answer, each as the JSON that it came as."""
    return msgspec.json.decode(text, type=list[Raw])


EMBEDDINGS: Final = Dialect(
    parse=parse,
    reply=Reply,
    refuse=openai.CHAT.refuse,
    break_off=openai.CHAT.break_off,
    limits=openai.CHAT.limits,
)
