"""OpenAI's Responses in their own words. Their SDK, reading strictly, is held against it.

Nothing is kept here after an answer, so none can be fetched, or gone on from by its id:
`store` and `previous_response_id` are refused by name, and every answer says `"store": false`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from sublet.core.money import Money
from sublet.gateway import openai
from sublet.gateway.ask import Ask, Needs, ToolCall, ToolDelta, gather
from sublet.gateway.dialect import Dialect, grant_headers, grant_note
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.grant import Grant
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
from sublet.gateway.tariff import Counts

# After every other event: an error does not know how many there were.
_LAST: Final = 2**31 - 1
_TEXT: Final = -1  # among the items of an answer; calls have their places


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
    previous_response_id: None = None
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
    store: Literal[False] | None = None
    background: Literal[False] | None = None
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
        "background", "conversation", "include", "max_tool_calls", "parallel_tool_calls",
        "previous_response_id", "prompt", "reasoning", "service_tier", "store", "text", "tools",
        "top_logprobs", "truncation",
    }
)  # fmt: skip
_encode: Final = msgspec.json.Encoder().encode
_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


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
    }
    messages = _messages(asked)
    return Ask.chat(
        asked.model,
        messages,
        sampling=sampling,
        max_tokens=asked.max_output_tokens,
        stream=bool(asked.stream),
        service_tier=tier_of(asked.service_tier) or "default",
        echo=echo,
        needs=_needs(asked, messages),
    )


def parse_prompt(body: bytes) -> Ask:
    """Read a body of `/v1/responses/input_tokens`.

    Raises:
        Failure: as `parse`.
    """
    asked = decode(_PROMPT, body, only_empty=_ONLY_EMPTY)
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


@dataclass(slots=True)
class Reply:
    ask: Ask
    grant: Grant
    id: str  # 32 hex digits
    created: int
    _events: int = 0
    _began: float = field(default_factory=time.monotonic)
    _said: list[str] = field(default_factory=list)
    _order: list[int] = field(default_factory=list)  # of its items, as they began: _TEXT, or a call
    _calls: dict[int, ToolCall] = field(default_factory=dict)

    @property
    def headers(self) -> Headers:
        return grant_headers(self.grant)

    def first(self, counts: Counts | None) -> bytes:  # noqa: ARG002 -- it says that at the end
        begun = self._response("in_progress", [], None)
        events = self._event("response.created", response=begun) + self._event(
            "response.in_progress", response=begun
        )
        # With tools it is not known yet whether there is any text.
        return events if self.ask.rich else events + self._open()

    def _open(self) -> bytes:
        self._order.append(_TEXT)
        return self._event(
            "response.output_item.added",
            output_index=self._order.index(_TEXT),
            item=self._item("in_progress", []),
        ) + self._event("response.content_part.added", **self._place, part=_part(""))

    def text(self, text: str) -> bytes:
        self._said.append(text)
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def part(
        self,
        text: str,
        calls: Sequence[ToolDelta],
        logprobs: bytes | None,  # noqa: ARG002 -- refused by name in this dialect
        counts: Counts | None,  # noqa: ARG002 -- it says that at the end
    ) -> bytes:
        """Return events for text and for calls of tools, each of which is an item of its own."""
        events = b""
        if text:
            if _TEXT not in self._order:
                events += self._open()
            events += self.text(text)
        for delta in calls:
            new = delta.at not in self._calls
            call = gather(self._calls, delta)
            if new:
                self._order.append(delta.at)
            place: dict[str, object] = {
                "item_id": self._call_id(delta.at), "output_index": self._order.index(delta.at),
            }  # fmt: skip
            if new:
                item = self._call_item(delta.at, ToolCall(call.id, call.name), "in_progress")
                events += self._event(
                    "response.output_item.added", output_index=place["output_index"], item=item
                )
            if delta.arguments:
                events += self._event(
                    "response.function_call_arguments.delta", **place, delta=delta.arguments
                )
        return events

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        text = "".join(self._said)
        status, item = self._ended(text, finish_reason)
        whole = self._whole(text, finish_reason, counts, charge)
        events = []
        if _TEXT in self._order:
            events += [
                self._event("response.output_text.done", **self._place, text=text, logprobs=[]),
                self._event("response.content_part.done", **self._place, part=_part(text)),
                self._event(
                    "response.output_item.done", output_index=self._order.index(_TEXT), item=item
                ),
            ]
        for at, call in self._calls.items():
            index = self._order.index(at)
            events += [
                self._event(
                    "response.function_call_arguments.done",
                    item_id=self._call_id(at), output_index=index,
                    name=call.name, arguments=call.arguments,
                ),
                self._event(
                    "response.output_item.done", output_index=index,
                    item=self._call_item(at, call, status),
                ),
            ]  # fmt: skip
        return b"".join([*events, self._event(f"response.{status}", response=whole)])

    def _call_id(self, at: int) -> str:
        return f"fc_{self.id}{at:02d}"

    def _call_item(self, at: int, call: ToolCall, status: str) -> dict[str, object]:
        return {
            "id": self._call_id(at), "type": "function_call", "status": status,
            "call_id": call.id, "name": call.name, "arguments": call.arguments,
        }  # fmt: skip

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        return _encode(self._whole(text, finish_reason, counts, charge))

    @property
    def _place(self) -> dict[str, object]:
        index = self._order.index(_TEXT)
        return {"item_id": f"msg_{self.id}", "output_index": index, "content_index": 0}

    def _whole(
        self, text: str, finish_reason: str, counts: Counts, charge: Money
    ) -> dict[str, object]:
        status, item = self._ended(text, finish_reason)
        output = [
            item if at == _TEXT else self._call_item(at, self._calls[at], status)
            for at in self._order or [_TEXT]
        ]
        whole = self._response(status, output, _INCOMPLETE.get(finish_reason), ended=True)
        return whole | {"usage": _usage(counts), "sublet": grant_note(self.grant, charge)}

    def _ended(self, text: str, finish_reason: str) -> tuple[str, dict[str, object]]:
        status = "incomplete" if finish_reason in _INCOMPLETE else "completed"
        return status, self._item(status, [_part(text)])

    def _response(
        self, status: str, output: Sequence[object], reason: str | None, *, ended: bool = False
    ) -> dict[str, object]:
        elapsed = int(time.monotonic() - self._began)
        completed_at = self.created + elapsed if ended else None
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "completed_at": completed_at,
            "error": None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "model": self.ask.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "max_tool_calls": None,
            "top_logprobs": 0,
            "service_tier": self.ask.service_tier,
            "store": False,
            "text": {"format": {"type": "text"}},
            "tools": [],
            "truncation": "disabled",
            "usage": None,
            "sublet": grant_note(self.grant),
        } | dict(self.ask.echo)

    def _item(self, status: str, content: Sequence[object]) -> dict[str, object]:
        return {
            "id": f"msg_{self.id}", "type": "message", "status": status, "role": "assistant",
            "content": content,
        }  # fmt: skip

    def _event(self, event: str, **fields: object) -> bytes:
        data = _encode({"type": event, "sequence_number": self._events} | fields)
        self._events += 1
        return b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(counts: Counts) -> dict[str, object]:
    return {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": counts.cache_read_tokens,
            "cache_write_tokens": counts.cache_write_tokens,
        },
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
        "total_tokens": counts.total,
    }


def _break_off(failure: Failure, request_id: str) -> bytes:  # noqa: ARG001
    error = {
        "type": "error", "sequence_number": _LAST, "code": failure.row.code,
        "message": failure.message, "param": failure.param,
    }  # fmt: skip
    return b"event: error\ndata: " + _encode(error) + b"\n\n"


def counted(input_tokens: int) -> bytes:
    """Return the answer of `input_tokens`."""
    return _encode({"object": "response.input_tokens", "input_tokens": input_tokens})


def not_kept(id_: str) -> Failure:
    """Return what to say of an answer of before."""
    return Failure(
        Kind.NO_SUCH_RESPONSE,
        f"there is no response {id_[:100]!r}: answers are not kept here; send what was said before"
        " as `input`",
    )


RESPONSES: Final = Dialect(
    parse=parse,
    reply=Reply,
    refuse=openai.CHAT.refuse,
    break_off=_break_off,
    limits=openai.CHAT.limits,
)
