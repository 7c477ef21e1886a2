"""Embeddings, in OpenAI's words: read, and refused by the name of the model that has none.

The models here generate text, and their replicas keep nothing that would be an embedding of one.
"""

from typing import Annotated, Final, Literal, NoReturn

import msgspec
from msgspec import Meta, Struct

from sublet.gateway.failures import Failure, Kind
from sublet.gateway.reading import decode
from sublet.gateway.request import Label
from sublet.gateway.table import Table

PATHS: Final = frozenset({"/v1/embeddings", "/openai/v1/embeddings"})

_Some = Meta(min_length=1, max_length=2048)


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    model: str
    input: str | Annotated[list[str | int | list[int]], _Some]
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: Label | None = None


_BODY: Final = msgspec.json.Decoder(Body)


def refuse(body: bytes, table: Table) -> NoReturn:
    """Raises Failure: what is wrong with the body, or that its model has no embeddings."""
    asked = decode(_BODY, body, only_empty=frozenset())
    table.find(asked.model)
    raise Failure(
        Kind.UNSUPPORTED,
        f"model {asked.model!r} has no embeddings: it generates text, as all models here do",
        param="model",
    )
