"""What clients may ask in OpenAI's words.

Nothing is dropped in silence: a parameter that the replicas cannot honour is refused by
name, unless its value asks for nothing (`tools: []`, `n: 1`, `logprobs: false`). Fields that
are only labels for the caller's own books (`user`, `metadata`) are taken and not used.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from sublet.gateway.ask import Api, Ask, Needs
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.reading import decode, plain

_INT64: Final = 2**63

Nothing = Annotated[list[None], Meta(max_length=0)]  # an empty list
Label = Annotated[str, Meta(max_length=1024)]
Stop = Annotated[str, Meta(min_length=1, max_length=500)]
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
DataUrl = Annotated[
    str, Meta(pattern=r"^data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+\Z")
]
FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
MOST_TOOLS: Final = 128
ServiceTier = Literal["auto", "default", "priority", "flex", "batch"]
TokenId = Annotated[str, Meta(pattern=r"^[0-9]{1,9}\Z")]


class TextPart(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str


class ImageUrl(Struct, forbid_unknown_fields=True):
    # No address: a replica must not be made to fetch anything.
    url: DataUrl
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Struct, forbid_unknown_fields=True, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class CalledFunction(Struct, forbid_unknown_fields=True):
    name: FunctionName
    arguments: str


class Called(Struct, forbid_unknown_fields=True):
    """A call of a tool, in an answer that is sent back."""

    id: Label
    function: CalledFunction
    type: Literal["function"] = "function"


class Message(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart | ImagePart], Meta(min_length=1)] | None = None
    tool_calls: list[Called] | None = None
    tool_call_id: Label | None = None
    # What our own answers have when a client sends them back whole.
    refusal: None = None
    annotations: Nothing | None = None
    audio: None = None
    function_call: None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # a hint: "may be left out to save bandwidth"


class TextFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    pass


class JsonFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    pass


class Schema(Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: FunctionName
    schema: dict[str, object]
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    json_schema: Schema


class Function(Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Function


class Named(Struct, forbid_unknown_fields=True):
    name: FunctionName


class ToolChoice(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Named


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
    service_tier: ServiceTier | None = None
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
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None
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
        "audio", "best_of", "echo", "function_call", "functions", "modalities", "n",
        "service_tier", "store", "suffix",
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
    if asked.stream_options is not None and not asked.stream:
        raise Failure(
            Kind.INVALID,
            "stream_options is only allowed when stream is true",
            param="stream_options",
        )
    sampling: dict[str, object] = {}
    for name in _SENT_ON:
        if (value := getattr(asked, name)) is not None:
            sampling[name] = value
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    for stop in stops:
        plain(stop, at="stop")
    include_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    service_tier = tier_of(asked.service_tier)
    if isinstance(asked, ChatBody):
        return Ask.chat(
            asked.model,
            [_message(message, index) for index, message in enumerate(asked.messages)],
            sampling=sampling,
            max_tokens=_max_tokens(asked),
            stream=bool(asked.stream),
            service_tier=service_tier,
            needs=_needs(asked),
            include_usage=include_usage,
        )
    prompt = asked.prompt if isinstance(asked.prompt, str) else asked.prompt[0]
    if not prompt:
        raise Failure(Kind.INVALID, "prompt must not be empty", param="prompt")
    return Ask(
        api=Api.COMPLETION,
        model=asked.model,
        payload={"prompt": plain(prompt, at="prompt"), **sampling},
        max_tokens=asked.max_tokens,
        stream=bool(asked.stream),
        include_usage=include_usage,
        service_tier=service_tier,
        prompt_bytes=len(prompt.encode()),
        messages=1,
    )


def tier_of(asked: ServiceTier | None) -> str | None:
    """Return the tier that is used, which the answer states to who asked."""
    return "default" if asked == "auto" else asked


def _max_tokens(asked: ChatBody) -> int | None:
    if asked.max_completion_tokens is None:
        return asked.max_tokens
    if asked.max_tokens not in (None, asked.max_completion_tokens):
        raise Failure(
            Kind.INVALID,
            "max_tokens and max_completion_tokens say different things: send one",
            param="max_completion_tokens",
        )
    return asked.max_completion_tokens


def _needs(asked: ChatBody) -> Needs:
    top: int | None = None
    if asked.logprobs:
        top = asked.top_logprobs or 0
    elif asked.top_logprobs is not None:
        raise Failure(Kind.INVALID, "top_logprobs needs logprobs: true", param="top_logprobs")
    if not asked.tools and asked.tool_choice not in (None, "none", "auto"):
        raise Failure(Kind.INVALID, "tool_choice needs tools", param="tool_choice")
    if asked.tools and asked.tool_choice == "none":
        asked.tools = None
    form = asked.response_format
    return Needs.of(
        tools=msgspec.to_builtins(asked.tools or []),
        tool_choice=msgspec.to_builtins(asked.tool_choice),
        parallel_tool_calls=asked.parallel_tool_calls,
        response_format=None
        if form is None or isinstance(form, TextFormat)
        else msgspec.to_builtins(form),
        top_logprobs=top,
        images=any(
            isinstance(part, ImagePart)
            for message in asked.messages
            if isinstance(message.content, list)
            for part in message.content
        ),
    )


def _message(message: Message, index: int) -> dict[str, object]:
    """Return a turn in the form that replicas read."""
    at = f"messages[{index}]"
    # "developer" is OpenAI's newer word for "system", which chat templates do not know.
    role = "system" if message.role == "developer" else message.role
    turn: dict[str, object] = {"role": role}
    if (role == "tool") != (message.tool_call_id is not None):
        raise Failure(
            Kind.INVALID,
            f"{at}.tool_call_id belongs to messages of role tool, which need one",
            param=f"{at}.tool_call_id",
        )
    if message.tool_calls and role != "assistant":
        raise Failure(
            Kind.INVALID,
            f"{at}.tool_calls are an assistant's",
            param=f"{at}.tool_calls",
        )
    content = message.content
    if content is None and not message.tool_calls:
        raise Failure(
            Kind.INVALID, f"{at}.content must be text, or parts of it", param=f"{at}.content"
        )
    if isinstance(content, list) and any(isinstance(part, ImagePart) for part in content):
        turn["content"] = msgspec.to_builtins(content)
    elif content is not None:
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content if isinstance(part, TextPart))
        turn["content"] = plain(content, at=f"{at}.content") if "\0" in content else content
    if message.tool_calls:
        turn.setdefault("content", None)
        turn["tool_calls"] = msgspec.to_builtins(message.tool_calls)
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn
