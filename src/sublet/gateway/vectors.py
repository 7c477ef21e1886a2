"""Embeddings by Bedrock's InvokeModel, in Titan's and Cohere's words."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from sublet.core.money import Money
from sublet.gateway.ask import Ask
from sublet.gateway.embeddings import Vectors, ask_for
from sublet.gateway.embeddings import read as read_vectors
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.reading import decode
from sublet.gateway.tariff import Counts

_encode: Final = msgspec.json.Encoder().encode
_Text = Annotated[str, Meta(min_length=1)]
# Vectors have length 1 here, and numbers of 32 bits.
_Floats = Annotated[list[Literal["float"]], Meta(min_length=1, max_length=1)]


class Titan(Struct, forbid_unknown_fields=True, rename="camel"):
    input_text: _Text
    dimensions: None = None
    normalize: Literal[True] | None = None
    embedding_types: _Floats | None = None


class Cohere(Struct, forbid_unknown_fields=True):
    texts: Annotated[list[_Text], Meta(min_length=1, max_length=96)]
    # The models here read a text in the same way, whatever it is for.
    input_type: Literal["search_document", "search_query", "classification", "clustering"]
    truncate: Literal["NONE"] | None = None
    embedding_types: _Floats | None = None
    output_dimension: None = None
    images: None = None


_TITAN: Final = msgspec.json.Decoder(Titan)
_COHERE: Final = msgspec.json.Decoder(Cohere)
_ONLY_EMPTY: Final = frozenset(
    {
        "dimensions", "embeddingTypes", "embedding_types", "images", "normalize",
        "output_dimension", "truncate",
    }
)  # fmt: skip


class TitanReply(Vectors):
    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:  # noqa: ARG002
        (vector,) = read_vectors(text)
        return _encode(
            {
                "embedding": vector,
                "embeddingsByType": {"float": vector},
                "inputTextTokenCount": counts.prompt_tokens,
                "sublet": {"charge_nanos": charge.nanos},
            }
        )


class CohereReply(Vectors):
    typed = False  # does it say of what type its numbers are?

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:  # noqa: ARG002
        vectors = read_vectors(text)
        return _encode(
            {
                "id": self.id,
                "response_type": "embeddings_by_type" if self.typed else "embeddings_floats",
                "embeddings": {"float": vectors} if self.typed else vectors,
                "texts": self.ask.payload["input"],
                "sublet": {"charge_nanos": charge.nanos},
            }
        )


class CohereTypedReply(CohereReply):
    typed = True


def read(
    fields: Mapping[str, object], body: bytes, *, model: str, stream: bool
) -> tuple[type[Vectors], Ask] | None:
    """Return how a body that asks for embeddings is answered, and what it asks; None: it does not.

    Raises:
        Failure: what is wrong with it, and in which parameter.
    """
    if "inputText" not in fields and "texts" not in fields:
        return None
    if stream:
        raise Failure(Kind.UNSUPPORTED, "embeddings do not stream: call InvokeModel")
    if "inputText" in fields:
        titan = decode(_TITAN, body, only_empty=_ONLY_EMPTY)
        return TitanReply, ask_for(model, [titan.input_text], at="inputText")
    cohere = decode(_COHERE, body, only_empty=_ONLY_EMPTY)
    words = CohereReply if cohere.embedding_types is None else CohereTypedReply
    return words, ask_for(model, cohere.texts, at="texts")
