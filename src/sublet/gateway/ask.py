"""The one form that requests of every dialect are taken into."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Api(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, checked. `payload` is what a replica gets, but for how many tokens."""

    api: Api
    model: str
    payload: dict[str, object]
    max_tokens: int | None  # None: as many as context and wallet allow
    stream: bool
    include_usage: bool
    service_tier: str | None  # what to say in the answer: only who asked is told
    prompt_bytes: int  # of all text in it; a list of tokens has as many as tokens
    messages: int
    echo: Mapping[str, object] = field(default_factory=dict)  # of it, what the answer says again
