"""The one form that requests of every dialect are taken into."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

import msgspec

from sublet.models.deployment import Feature

_encode: Final = msgspec.json.Encoder().encode
# What says what a request needs: its parameter, by what it is refused for.
PARAMETERS: Final[Mapping[Feature, str]] = MappingProxyType(
    {
        Feature.TOOLS: "tools",
        Feature.JSON: "response_format",
        Feature.LOGPROBS: "logprobs",
        Feature.IMAGES: "messages",
        Feature.EMBEDDINGS: "model",
    }
)


class Api(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


class Needs(NamedTuple):
    """Beside text: what a chat needs of its model, and the parameters that say so."""

    features: frozenset[Feature] = frozenset()
    payload: Mapping[str, object] = MappingProxyType({})

    @classmethod
    def of(
        cls,
        *,
        tools: Sequence[Mapping[str, object]] = (),
        tool_choice: object = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, object] | None = None,
        top_logprobs: int | None = None,
        images: bool = False,
    ) -> Self:
        """Return it in OpenAI's words, which replicas speak; `top_logprobs` None: none at all."""
        features, payload = set(), dict[str, object]()
        if tools:
            features.add(Feature.TOOLS)
            payload["tools"] = tools
            if tool_choice is not None:
                payload["tool_choice"] = tool_choice
            if parallel_tool_calls is not None:
                payload["parallel_tool_calls"] = parallel_tool_calls
        if response_format is not None:
            features.add(Feature.JSON)
            payload["response_format"] = response_format
        if top_logprobs is not None:
            features.add(Feature.LOGPROBS)
            payload |= {"logprobs": True, "top_logprobs": top_logprobs}
        if images:
            features.add(Feature.IMAGES)
        return cls(frozenset(features), payload)


_NOTHING: Final = Needs()


class Keep(NamedTuple):
    """What a caller wants beyond the answer itself: of Responses alone."""

    store: bool
    background: bool
    previous: str | None  # the answer to go on from
    instructions: bool  # is the first message the instructions of this request?
    items: list[dict[str, object]]  # what was asked, in their words


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
    features: frozenset[Feature] = frozenset()  # what its model must do beside text
    keep: Keep | None = None  # None: nothing is kept, and nothing gone on from
    counted: bool = (
        False  # its prompt is not text alone: nobody but the replica says how long it is
    )
    adapter: UUID | None = None  # that its replica is to use

    @property
    def generates(self) -> bool:
        """Has its answer tokens of its own?"""
        return self.api is not Api.EMBEDDING

    @property
    def rich(self) -> bool:
        """May its answer have more than text?"""
        return Feature.TOOLS in self.features or Feature.LOGPROBS in self.features

    @classmethod
    def chat(
        cls,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        sampling: Mapping[str, object] = MappingProxyType({}),
        max_tokens: int | None = None,
        stream: bool = False,
        service_tier: str | None = None,
        echo: Mapping[str, object] = MappingProxyType({}),
        needs: Needs = _NOTHING,
        include_usage: bool = True,
    ) -> Self:
        """Return a chat of such messages, in OpenAI's form; or only its prompt, to be counted."""
        plain = not needs.features and all(
            type(message.get("content")) is str for message in messages
        )
        return cls(
            api=Api.CHAT,
            model=model,
            payload={"messages": messages, **sampling, **needs.payload},
            max_tokens=max_tokens,
            stream=stream,
            include_usage=include_usage,
            service_tier=service_tier,
            prompt_bytes=_bytes_of(messages) if plain else len(_encode(messages)),
            messages=len(messages),
            echo=echo,
            features=needs.features,
            counted=not plain,
        )

    def after(self, before: Sequence[Mapping[str, Any]]) -> Self:
        """Return this chat with what was said `before` in front of it."""
        assert self.keep is not None
        messages = self.payload["messages"]
        assert isinstance(messages, list)
        head = messages[:1] if self.keep.instructions else []
        joined = [*head, *before, *messages[len(head) :]]
        features = set(self.features)
        if any(isinstance(message.get("content"), list) for message in joined):
            features.add(Feature.IMAGES)
        plain = not features and all(type(m.get("content")) is str for m in joined)
        return replace(
            self,
            payload=self.payload | {"messages": joined},
            prompt_bytes=_bytes_of(joined) if plain else len(_encode(joined)),
            messages=len(joined),
            features=frozenset(features),
            counted=not plain,
        )


def _bytes_of(messages: Iterable[Mapping[str, Any]]) -> int:
    return sum(len(message["content"].encode()) for message in messages)


class ToolDelta(NamedTuple):
    """A part of a call of a tool. The first one of a place has id and name."""

    at: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(slots=True)
class ToolCall:
    """A call of a tool, as far as it came."""

    id: str
    name: str
    arguments: str = ""


def gather(calls: dict[int, ToolCall], delta: ToolDelta) -> ToolCall:
    """Add a part to the calls by place; return the one that it is of."""
    call = calls.get(delta.at)
    if call is None:
        call = calls[delta.at] = ToolCall(delta.id or f"call_{delta.at}", delta.name or "")
    call.arguments += delta.arguments
    return call
