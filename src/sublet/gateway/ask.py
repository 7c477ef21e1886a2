"""The one form that requests of every dialect are taken into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Self


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

    @classmethod
    def chat(
        cls,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        sampling: Mapping[str, object] = MappingProxyType({}),
        max_tokens: int | None = None,
        stream: bool = False,
        service_tier: str | None = None,
        echo: Mapping[str, object] = MappingProxyType({}),
    ) -> Self:
        """Return a chat of such messages (`role`, `content`); or only its prompt, to be counted."""
        return cls(
            api=Api.CHAT,
            model=model,
            payload={"messages": messages, **sampling},
            max_tokens=max_tokens,
            stream=stream,
            include_usage=True,
            service_tier=service_tier,
            prompt_bytes=sum(len(message["content"].encode()) for message in messages),
            messages=len(messages),
            echo=echo,
        )
