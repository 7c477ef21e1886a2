"""What clients may ask in the words of Responses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from sublet.core.ids import new_id
from sublet.gateway.ask import Ask, Keep, Needs
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.reading import decode, plain
from sublet.gateway.request import (
    MOST_TOOLS,
    DataUrl,
    FunctionName,
    JsonFormat,
    Label,
    Nothing,
    ServiceTier,
    TextFormat,
    Tokens,
    tier_of,
)


class InputText(Struct, forbid_unknown_fields=True, tag_field="type", tag="input_text"):
    text: str


class OutputText(Struct, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    text: str
    annotations: Nothing | None = None
    logprobs: Nothing | None = None


class InputImage(Struct, forbid_unknown_fields=True, tag_field="type", tag="input_image"):
    image_url: DataUrl
    detail: Literal["auto", "low", "high"] | None = None
    file_id: None = None


class Message(Struct, forbid_unknown_fields=True, kw_only=True):
    """A turn, in the short form, or as an earlier answer's item sent back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputText | OutputText | InputImage], Meta(min_length=1)]
    type: Literal["message"] | None = None
    id: Label | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCall(Struct, forbid_unknown_fields=True):
    """A call of a tool, in an earlier answer that is sent back."""

    call_id: Label
    name: FunctionName
    arguments: str
    type: Literal["function_call"]
    id: Label | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class FunctionCallOutput(Struct, forbid_unknown_fields=True):
    call_id: Label
    output: str | Annotated[list[InputText], Meta(min_length=1)]
    type: Literal["function_call_output"]
    id: Label | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class FunctionTool(Struct, forbid_unknown_fields=True, omit_defaults=True):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class SchemaFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    name: FunctionName
    schema: dict[str, object]
    description: str | None = None
    strict: bool | None = None


class NamedFunction(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    name: FunctionName


class Text(Struct, forbid_unknown_fields=True):
    format: TextFormat | JsonFormat | SchemaFormat | None = None


class Reasoning(Struct, forbid_unknown_fields=True):
    """Asks for nothing."""

    effort: Literal["none"] | None = None
    summary: None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_obfuscation: bool | None = None  # a hint: "may be left out to save bandwidth"


class Prompt(Struct, forbid_unknown_fields=True, kw_only=True):
    """What can be counted: a request without what is said of its answer."""

    model: str
    input: str | Annotated[list[msgspec.Raw], Meta(min_length=1)]
    instructions: str | None = None
    conversation: None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: Label | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MOST_TOOLS)] | None = None
    truncation: Literal["disabled"] | None = None


class Body(Prompt, forbid_unknown_fields=True, kw_only=True):
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    service_tier: ServiceTier | None = None
    store: bool | None = None  # their default is to store; ours is not, and the answer says so
    background: bool | None = None
    include: Nothing | None = None
    max_tool_calls: None = None
    top_logprobs: Literal[0] | None = None
    prompt: None = None
    # Labels.
    user: Label | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None


class _Kind(Struct):
    type: str | None = None


_KIND: Final = msgspec.json.Decoder(_Kind)
_ITEMS: Final[dict[str, msgspec.json.Decoder[Message | FunctionCall | FunctionCallOutput]]] = {
    "message": msgspec.json.Decoder(Message),
    "function_call": msgspec.json.Decoder(FunctionCall),
    "function_call_output": msgspec.json.Decoder(FunctionCallOutput),
}
_ONLY_EMPTY_ITEM: Final = frozenset({"type"})
_BODY: Final = msgspec.json.Decoder(Body)
_PROMPT: Final = msgspec.json.Decoder(Prompt)
_ONLY_EMPTY: Final = frozenset(
    {
        "conversation", "include", "max_tool_calls", "parallel_tool_calls", "prompt", "reasoning",
        "service_tier", "text", "tools",
        "top_logprobs", "truncation",
    }
)  # fmt: skip


def parse(body: bytes) -> Ask:
    """Read a body of `/v1/responses`.

    Raises:
        Failure: what is wrong with it, and in which parameter.
    """
    asked = decode(_BODY, body, only_empty=_ONLY_EMPTY)
    sampling: dict[str, object] = {}
    for name in ("temperature", "top_p"):
        if (value := getattr(asked, name)) is not None:
            sampling[name] = value
    echo = {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "temperature": asked.temperature,
        "tool_choice": msgspec.to_builtins(asked.tool_choice) or "auto",
        "top_p": asked.top_p,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "text": {"format": _format_echo(asked)},
        "tools": [
            {"description": None, "parameters": None, "strict": None} | msgspec.to_builtins(tool)
            for tool in asked.tools or []
        ],
        "user": asked.user,
        "safety_identifier": asked.safety_identifier,
        "prompt_cache_key": asked.prompt_cache_key,
        "store": bool(asked.store),
        "background": bool(asked.background),
        "previous_response_id": asked.previous_response_id,
    }
    messages = _messages(asked)
    ask = Ask.chat(
        asked.model,
        messages,
        sampling=sampling,
        max_tokens=asked.max_output_tokens,
        stream=bool(asked.stream),
        service_tier=tier_of(asked.service_tier) or "default",
        echo=echo,
        needs=_needs(asked, messages),
    )
    return replace(ask, keep=_keep(asked))


def _keep(asked: Body) -> Keep | None:
    if asked.background and not asked.store:
        raise Failure(
            Kind.INVALID,
            "background needs store: true: the answer is fetched later",
            param="background",
        )
    if asked.background and asked.stream:
        raise Failure(
            Kind.UNSUPPORTED,
            "Unsupported value of 'background': an answer in the background does not stream",
            param="background",
        )
    if not asked.store and asked.previous_response_id is None:
        return None
    return Keep(
        store=bool(asked.store),
        background=bool(asked.background),
        previous=asked.previous_response_id,
        instructions=bool(asked.instructions),
        items=_items_of(asked.input),
    )


def _items_of(given: str | list[msgspec.Raw]) -> list[dict[str, object]]:
    """Return what was asked as their SDK reads it back, each with an id."""
    if isinstance(given, str):
        given = [msgspec.Raw(msgspec.json.encode({"role": "user", "content": given}))]
    items: list[dict[str, object]] = []
    for raw in given:
        item: dict[str, object] = msgspec.json.decode(raw)
        kind = item.setdefault("type", "message")
        if kind == "message":
            content = item["content"]
            if isinstance(content, str):
                said = "output_text" if item["role"] == "assistant" else "input_text"
                part: dict[str, object] = {"type": said, "text": content}
                if said == "output_text":
                    part |= {"annotations": [], "logprobs": []}
                item["content"] = [part]
        if not item.get("id"):
            prefix = {"function_call": "fc", "function_call_output": "fco"}.get(str(kind), "msg")
            item["id"] = f"{prefix}_{new_id().hex}"
        if not item.get("status"):
            item["status"] = "completed"
        items.append(item)
    return items


def parse_prompt(body: bytes) -> Ask:
    """Read a body of `/v1/responses/input_tokens`.

    Raises:
        Failure: as `parse`.
    """
    asked = decode(_PROMPT, body, only_empty=_ONLY_EMPTY)
    if asked.previous_response_id is not None:
        raise Failure(
            Kind.UNSUPPORTED,
            "Unsupported value of 'previous_response_id': send what was said before as `input`, to"
            " count it",
            param="previous_response_id",
        )
    messages = _messages(asked)
    return Ask.chat(asked.model, messages, needs=_needs(asked, messages))


def _format_echo(asked: Body) -> object:
    form = None if asked.text is None else asked.text.format
    return {"type": "text"} if form is None else msgspec.to_builtins(form)


def _needs(asked: Prompt, messages: Sequence[Mapping[str, object]]) -> Needs:
    choice = asked.tool_choice
    if not asked.tools and choice not in (None, "none", "auto"):
        raise Failure(Kind.INVALID, "tool_choice needs tools", param="tool_choice")
    form = None if asked.text is None else asked.text.format
    response_format: dict[str, object] | None = None
    match form:
        case SchemaFormat():
            schema = msgspec.to_builtins(form)
            del schema["type"]
            given = {name: value for name, value in schema.items() if value is not None}
            response_format = {"type": "json_schema", "json_schema": given}
        case JsonFormat():
            response_format = {"type": "json_object"}
        case _:
            pass
    tools: list[dict[str, object]] = []
    for tool in [] if choice == "none" else asked.tools or []:
        function = msgspec.to_builtins(tool)
        del function["type"]
        tools.append({"type": "function", "function": function})
    return Needs.of(
        tools=tools,
        tool_choice={"type": "function", "function": {"name": choice.name}}
        if isinstance(choice, NamedFunction)
        else choice,
        parallel_tool_calls=asked.parallel_tool_calls,
        response_format=response_format,
        images=any(isinstance(message.get("content"), list) for message in messages),
    )


def _messages(asked: Prompt) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = []
    if asked.instructions:
        text = plain(asked.instructions, at="instructions")
        messages.append({"role": "system", "content": text})
    if isinstance(asked.input, str):
        messages.append({"role": "user", "content": plain(asked.input, at="input")})
        return messages
    for index, raw in enumerate(asked.input):
        at = f"input[{index}]"
        match _item(raw, at):
            case Message() as message:
                messages.append(_turn(message, f"{at}.content"))
            case FunctionCall() as call:
                made = {
                    "id": call.call_id, "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }  # fmt: skip
                last = messages[-1] if messages else {}
                calls = last.get("tool_calls")
                if isinstance(calls, list):
                    calls.append(made)  # several of one turn
                elif last.get("role") == "assistant":
                    last["tool_calls"] = [made]
                else:
                    messages.append({"role": "assistant", "content": None, "tool_calls": [made]})
            case FunctionCallOutput() as result:
                output = result.output
                if not isinstance(output, str):
                    output = "\n".join(part.text for part in output)
                text = plain(output, at=f"{at}.output")
                messages.append({"role": "tool", "tool_call_id": result.call_id, "content": text})
    return messages


def _item(raw: msgspec.Raw, at: str) -> Message | FunctionCall | FunctionCallOutput:
    """Read one item of the input; those of messages need not say that they are."""
    try:
        kind = _KIND.decode(raw).type
    except msgspec.MsgspecError:
        kind = None  # the reader of messages says what is wrong
    decoder = _ITEMS.get(kind or "message", _ITEMS["message"])
    return decode(decoder, bytes(raw), only_empty=_ONLY_EMPTY_ITEM, at=at)


def _turn(message: Message, at: str) -> dict[str, object]:
    content = message.content
    # "developer" is their newer word for "system", which chat templates do not know.
    role = "system" if message.role == "developer" else message.role
    if isinstance(content, str):
        return {"role": role, "content": plain(content, at=at)}
    if not any(isinstance(part, InputImage) for part in content):
        texts = [part.text for part in content if not isinstance(part, InputImage)]
        return {"role": role, "content": plain("\n".join(texts), at=at)}
    parts: list[dict[str, object]] = []
    for part in content:
        if isinstance(part, InputImage):
            url = {"url": part.image_url} | ({"detail": part.detail} if part.detail else {})
            parts.append({"type": "image_url", "image_url": url})
        else:
            parts.append({"type": "text", "text": plain(part.text, at=at)})
    return {"role": role, "content": parts}
