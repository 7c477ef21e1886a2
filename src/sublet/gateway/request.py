"""What clients may ask in OpenAI's words.

Nothing is dropped in silence: a parameter that the replicas cannot honour is refused by
name, unless its value asks for nothing (`tools: []`, `n: 1`, `logprobs: false`). Fields that
are only labels for the caller's own books (`user`, `metadata`) are taken and not used.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from sublet.gateway.ask import Api, Ask
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.reading import decode, plain

_INT64: Final = 2**63

Nothing = Annotated[list[None], Meta(max_length=0)]  # an empty list
Label = Annotated[str, Meta(max_length=1024)]
Stop = Annotated[str, Meta(min_length=1, max_length=500)]
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenId = Annotated[str, Meta(pattern=r"^[0-9]{1,9}\Z")]


class TextPart(Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class Message(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Meta(min_length=1)]
    # What our own answers have when a client sends them back whole.
    refusal: None = None
    annotations: Nothing | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # a hint: "may be left out to save bandwidth"


class TextFormat(Struct, forbid_unknown_fields=True):
    type: Literal["text"]


class Sampling(Struct, forbid_unknown_fields=True, kw_only=True):
    """What both calls have."""

    model: str
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=300)] | None = None
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    service_tier: Literal["auto", "default"] | None = None
    n: Literal[1] | None = None
    # Labels.
    user: Label | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None


class ChatBody(Sampling, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    # Taken when they ask for nothing.
    store: Literal[False] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None


class CompletionBody(Sampling, forbid_unknown_fields=True, kw_only=True):
    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=1)]
    logprobs: None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None


_CHAT: Final = msgspec.json.Decoder(ChatBody)
_COMPLETION: Final = msgspec.json.Decoder(CompletionBody)
# What OpenAI has and our replicas do not honour, wherever its value asks for something.
_ONLY_EMPTY: Final = frozenset(
    {
        "audio", "best_of", "echo", "function_call", "functions", "logprobs", "modalities", "n",
        "parallel_tool_calls", "response_format", "service_tier", "store", "suffix",
        "tool_choice", "tools", "top_logprobs",
    }
)  # fmt: skip
_SENT_ON: Final = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop",
)  # fmt: skip


def parse(api: Api, body: bytes) -> Ask:
    """Read one request.

    Raises:
        Failure: what is wrong with it, and in which parameter.
    """
    if api is Api.CHAT:
        return _ask(decode(_CHAT, body, only_empty=_ONLY_EMPTY))
    return _ask(decode(_COMPLETION, body, only_empty=_ONLY_EMPTY))


def _ask(asked: ChatBody | CompletionBody) -> Ask:
    payload: dict[str, object] = {}
    max_tokens = asked.max_tokens
    prompt_bytes, number = 0, 1
    if isinstance(asked, ChatBody):
        api = Api.CHAT
        messages, number = [], len(asked.messages)
        for index, message in enumerate(asked.messages):
            content = _content(message, index)
            prompt_bytes += len(content.encode())
            messages.append({"role": _role(message), "content": content})
        payload["messages"] = messages
        if asked.max_completion_tokens is not None:
            if max_tokens not in (None, asked.max_completion_tokens):
                raise Failure(
                    Kind.INVALID,
                    "max_tokens and max_completion_tokens say different things: send one",
                    param="max_completion_tokens",
                )
            max_tokens = asked.max_completion_tokens
    else:
        api = Api.COMPLETION
        prompt = asked.prompt if isinstance(asked.prompt, str) else asked.prompt[0]
        if not prompt:
            raise Failure(Kind.INVALID, "prompt must not be empty", param="prompt")
        payload["prompt"] = plain(prompt, at="prompt")
        prompt_bytes = len(prompt.encode())
    if asked.stream_options is not None and not asked.stream:
        raise Failure(
            Kind.INVALID,
            "stream_options is only allowed when stream is true",
            param="stream_options",
        )
    for name in _SENT_ON:
        if (value := getattr(asked, name)) is not None:
            payload[name] = value
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    for stop in stops:
        plain(stop, at="stop")
    return Ask(
        api=api,
        model=asked.model,
        payload=payload,
        max_tokens=max_tokens,
        stream=bool(asked.stream),
        include_usage=asked.stream_options is not None and bool(asked.stream_options.include_usage),
        service_tier=None if asked.service_tier is None else "default",
        prompt_bytes=prompt_bytes,
        messages=number,
    )


def _role(message: Message) -> str:
    # "developer" is OpenAI's newer word for "system", which chat templates do not know.
    return "system" if message.role == "developer" else message.role


def _content(message: Message, index: int) -> str:
    content = message.content
    if not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    return plain(content, at=f"messages[{index}].content") if "\0" in content else content
