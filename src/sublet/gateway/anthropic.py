"""The Messages API in Anthropic's words. Their SDK, reading strictly, is held against it.

As with the other dialects nothing is dropped in silence: what the models here do not do is
refused by name. `cache_control` is a hint that is taken and needs nothing: replicas cache every
prompt by themselves, and the usage says what was read from the cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, TypeGuard

import msgspec
from msgspec import Meta, Struct

from sublet.core.money import Money
from sublet.gateway.ask import Ask, Needs, ToolCall, ToolDelta, gather
from sublet.gateway.dialect import Dialect, grant_headers, grant_note
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.grant import Grant
from sublet.gateway.limits import Standing
from sublet.gateway.reading import decode, plain
from sublet.gateway.request import MOST_TOOLS, FunctionName, Label
from sublet.gateway.table import Offer, Table
from sublet.gateway.tariff import Counts

_TEXT: Final = -1  # among the blocks of an answer; calls have their places
Nothing = Annotated[list[None], Meta(max_length=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class CacheControl(Struct, forbid_unknown_fields=True):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str
    cache_control: CacheControl | None = None
    citations: Nothing | None = None  # as an answer that is sent back may have them


class ImageSource(Struct, forbid_unknown_fields=True):
    type: Literal["base64"]  # no address: a replica must not be made to fetch anything
    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]
    data: Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/=]+\Z")]


class ImageBlock(Struct, forbid_unknown_fields=True, tag_field="type", tag="image"):
    source: ImageSource
    cache_control: CacheControl | None = None


class ToolUse(Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    id: Label
    name: FunctionName
    input: dict[str, object]
    cache_control: CacheControl | None = None


class ToolResult(Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_result"):
    tool_use_id: Label
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class Tool(Struct, forbid_unknown_fields=True):
    name: FunctionName
    input_schema: dict[str, object]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Struct, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class Message(Struct, forbid_unknown_fields=True):
    role: Literal["user", "assistant"]
    content: (
        str | Annotated[list[TextBlock | ImageBlock | ToolUse | ToolResult], Meta(min_length=1)]
    )


class Metadata(Struct, forbid_unknown_fields=True):
    user_id: Annotated[str, Meta(max_length=1024)] | None = None


class ThinkingOff(Struct, forbid_unknown_fields=True):
    type: Literal["disabled"]


class Prompt(Struct, forbid_unknown_fields=True, kw_only=True):
    """What can be counted: a request without what is said of its answer."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    cache_control: CacheControl | None = None
    tools: Annotated[list[Tool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingOff | None = None


class Body(Prompt, forbid_unknown_fields=True, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop_sequences: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=500)]], Meta(max_length=4)]
        | None
    ) = None
    stream: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


_BODY: Final = msgspec.json.Decoder(Body)
_PROMPT: Final = msgspec.json.Decoder(Prompt)
_ONLY_EMPTY: Final = frozenset({"service_tier", "thinking", "tools", "citations", "messages"})
_encode: Final = msgspec.json.Encoder().encode
_STOP_REASONS: Final = {
    "stop": "end_turn", "length": "max_tokens", "content_filter": "refusal",
    "tool_calls": "tool_use",
}  # fmt: skip
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
# Anthropic's error types, and the statuses where they are other than ours.
_TYPES: Final = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error",
    403: "permission_error", 404: "not_found_error", 405: "invalid_request_error",
    408: "timeout_error", 409: "invalid_request_error", 413: "request_too_large", 415: "invalid_request_error",
    429: "rate_limit_error", 500: "api_error", 504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip
_STATUSES: Final = {502: 500, 503: 529}


def parse(body: bytes) -> Ask:
    """Read a body of `/v1/messages`.

    Raises:
        Failure: what is wrong with it, and in which parameter.
    """
    asked = decode(_BODY, body, only_empty=_ONLY_EMPTY)
    sampling: dict[str, object] = {}
    for name in ("temperature", "top_p", "top_k"):
        if (value := getattr(asked, name)) is not None:
            sampling[name] = value
    if asked.stop_sequences:
        sampling["stop"] = [plain(stop, at="stop_sequences") for stop in asked.stop_sequences]
    messages = _messages(asked)
    return Ask.chat(
        asked.model,
        messages,
        needs=_needs(asked, messages),
        sampling=sampling,
        max_tokens=asked.max_tokens,
        stream=bool(asked.stream),
    )


def parse_prompt(body: bytes) -> Ask:
    """Read a body of `/v1/messages/count_tokens`.

    Raises:
        Failure: as `parse`.
    """
    asked = decode(_PROMPT, body, only_empty=_ONLY_EMPTY)
    messages = _messages(asked)
    return Ask.chat(asked.model, messages, needs=_needs(asked, messages))


def _messages(asked: Prompt) -> list[dict[str, Any]]:
    if asked.messages[-1].role == "assistant":
        raise Failure(
            Kind.UNSUPPORTED,
            "the last message must be the user's: the models here do not continue an answer that"
            " was begun",
            param="messages",
        )
    messages: list[dict[str, Any]] = []
    if asked.system:
        messages.append({"role": "system", "content": _text(asked.system, at="system")})
    for index, message in enumerate(asked.messages):
        at = f"messages[{index}].content"
        if not (isinstance(message.content, str) or _only_text(message.content)):
            messages += _rich_turns(message, at)
            continue
        text = _text(message.content, at=at)
        last = messages[-1] if messages else {}
        if last.get("role") == message.role and type(last["content"]) is str:
            # Anthropic's own API takes several in a row as one turn.
            last["content"] += "\n\n" + text
        else:
            messages.append({"role": message.role, "content": text})
    return messages


def _only_text(blocks: Sequence[object]) -> TypeGuard[list[TextBlock]]:
    return all(type(block) is TextBlock for block in blocks)


def _rich_turns(message: Message, at: str) -> list[dict[str, Any]]:
    """Return a message with more than text as turns in the form that replicas read."""
    assert not isinstance(message.content, str)
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    images = False
    for block in message.content:
        match block:
            case TextBlock():
                parts.append({"type": "text", "text": plain(block.text, at=at)})
            case ImageBlock(source=source):
                images = True
                url = f"data:{source.media_type};base64,{source.data}"
                parts.append({"type": "image_url", "image_url": {"url": url}})
            case ToolUse():
                arguments = _encode(block.input).decode()
                function = {"name": block.name, "arguments": arguments}
                calls.append({"id": block.id, "type": "function", "function": function})
            case ToolResult():
                content = _text(block.content or "", at=at)
                results.append(
                    {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
                )
    if (calls and message.role != "assistant") or (results and message.role != "user"):
        raise Failure(
            Kind.INVALID,
            f"{at}: tool_use is the assistant's, and tool_result the user's",
            param=at,
        )
    # Results answer the turn before, so they come first.
    if not parts and not calls:
        return results
    said: object = parts if images else "\n".join(part["text"] for part in parts) or None
    turn: dict[str, Any] = {"role": message.role, "content": said}
    return [*results, turn | ({"tool_calls": calls} if calls else {})]


def _needs(asked: Prompt, messages: Sequence[Mapping[str, Any]]) -> Needs:
    choice = asked.tool_choice
    if choice is not None and not asked.tools and choice.type != "none":
        raise Failure(Kind.INVALID, "tool_choice needs tools", param="tool_choice")
    if choice is not None and (choice.type == "tool") != (choice.name is not None):
        raise Failure(
            Kind.INVALID,
            "tool_choice.name belongs to tool_choice.type tool, which needs one",
            param="tool_choice.name",
        )
    off = choice is not None and choice.type == "none"
    tools: list[dict[str, object]] = []
    for tool in [] if off else asked.tools or []:
        about = {} if tool.description is None else {"description": tool.description}
        function = {"name": tool.name, **about, "parameters": tool.input_schema}
        tools.append({"type": "function", "function": function})
    if choice is None:
        chosen: object = None
    elif choice.type == "tool":
        chosen = {"type": "function", "function": {"name": choice.name}}
    else:
        chosen = _CHOICES[choice.type]
    one = choice is not None and bool(choice.disable_parallel_tool_use)
    return Needs.of(
        tools=tools,
        tool_choice=chosen,
        parallel_tool_calls=False if one else None,
        images=any(isinstance(message["content"], list) for message in messages),
    )


def _text(content: str | list[TextBlock], *, at: str) -> str:
    text = content if isinstance(content, str) else "\n".join(block.text for block in content)
    return plain(text, at=at)


@dataclass(slots=True)
class Reply:
    ask: Ask
    grant: Grant
    id: str  # 32 hex digits
    created: int
    _calls: dict[int, ToolCall] = field(default_factory=dict)
    _blocks: int = 0  # that were opened
    _open: int | None = None  # what the open one is of: _TEXT, or a call

    @property
    def headers(self) -> Headers:
        return grant_headers(self.grant)

    def first(self, counts: Counts | None) -> bytes:
        counts = counts or Counts(input_tokens=0, cache_read_tokens=0, output_tokens=0)
        message = self._message([], None, counts) | {"sublet": grant_note(self.grant)}
        begun = _event("message_start", message=message)
        if self.ask.rich:
            return begun  # it is not known yet whether there is any text
        block = {"type": "text", "text": ""}
        return begun + _event("content_block_start", index=0, content_block=block)

    def text(self, text: str) -> bytes:
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            b'"delta":{"type":"text_delta","text":' + _encode(text) + b"}}\n\n"
        )

    def part(
        self,
        text: str,
        calls: Sequence[ToolDelta],
        logprobs: bytes | None,  # noqa: ARG002 -- this dialect has none
        counts: Counts | None,  # noqa: ARG002 -- it says that at the end
    ) -> bytes:
        """Return events for text and for calls of tools, each of which is a block of its own."""
        events = b""
        if text:
            block = dict[str, object](type="text", text="")
            events += self._begin(_TEXT, block)
            events += self._delta({"type": "text_delta", "text": text})
        for delta in calls:
            call = gather(self._calls, delta)
            block = dict[str, object](type="tool_use", id=call.id, name=call.name, input={})
            events += self._begin(delta.at, block)
            if delta.arguments:
                events += self._delta({"type": "input_json_delta", "partial_json": delta.arguments})
        return events

    def _begin(self, of: int, block: Mapping[str, object]) -> bytes:
        """Open a block, unless it is the open one."""
        if self._open == of:
            return b""
        events = self._close()
        self._open, index = of, self._blocks
        self._blocks += 1
        return events + _event("content_block_start", index=index, content_block=block)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._blocks - 1)

    def _delta(self, delta: Mapping[str, object]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        delta = {"stop_reason": _STOP_REASONS[finish_reason], "stop_sequence": None}
        note = grant_note(self.grant, charge)
        closed = self._close() if self.ask.rich else _event("content_block_stop", index=0)
        return (
            closed
            + _event("message_delta", delta=delta, usage=_usage(counts), sublet=note)
            + _event("message_stop")
        )

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        content: list[object] = [{"type": "text", "text": text}] if text else []
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _arguments(call)}
            for call in self._calls.values()
        ]
        message = self._message(content, _STOP_REASONS[finish_reason], counts)
        return _encode(message | {"sublet": grant_note(self.grant, charge)})

    def _message(
        self, content: Sequence[object], stop_reason: str | None, counts: Counts
    ) -> dict[str, object]:
        return {
            "id": f"msg_{self.id}",
            "type": "message",
            "role": "assistant",
            "model": self.ask.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": _usage(counts) | {"service_tier": "standard"},
        }


def _usage(counts: Counts) -> dict[str, object]:
    return {
        "input_tokens": counts.input_tokens,
        "cache_creation_input_tokens": counts.cache_write_tokens,
        "cache_read_input_tokens": counts.cache_read_tokens,
        "output_tokens": counts.completion_tokens,
    }


def _arguments(call: ToolCall) -> object:
    """Return a call's input; what is no JSON, as a model may say, as text."""
    try:
        return msgspec.json.decode(call.arguments or "{}")
    except ValueError:
        return {"arguments": call.arguments}


def _event(name: str, **fields: object) -> bytes:
    data = _encode({"type": name} | fields)
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


# ── refusals and limits ──────────────────────────────────────────────────────────────────


def _refuse(failure: Failure, request_id: str) -> tuple[int, bytes, Headers]:
    status = _STATUSES.get(failure.status, failure.status)
    return status, _encode(_error(failure, request_id)), []


def _break_off(failure: Failure, request_id: str) -> bytes:
    return b"event: error\ndata: " + _encode(_error(failure, request_id)) + b"\n\n"


def _error(failure: Failure, request_id: str) -> dict[str, object]:
    status = _STATUSES.get(failure.status, failure.status)
    # Beside Anthropic's own two, what a program may want to tell refusals apart by.
    error = {
        "type": _TYPES[status], "message": failure.message, "code": failure.row.code,
        "param": failure.param,
    }  # fmt: skip
    return {"type": "error", "error": error, "request_id": request_id}


def _limits(standings: Sequence[Standing], now: datetime) -> Headers:
    headers: Headers = []
    for name, size, left, full_seconds in standings:
        key = b"anthropic-ratelimit-" + name.encode()
        full = (now + timedelta(seconds=full_seconds)).isoformat(timespec="seconds")
        headers += [
            (key + b"-limit", b"%d" % size),
            (key + b"-remaining", b"%d" % left),
            (key + b"-reset", full.replace("+00:00", "Z").encode()),
        ]
    return headers


MESSAGES: Final = Dialect(
    parse=parse,
    reply=Reply,
    refuse=_refuse,
    break_off=_break_off,
    limits=_limits,
    request_id=b"request-id",
)


# ── models ───────────────────────────────────────────────────────────────────────────────


def counted(input_tokens: int) -> bytes:
    """Return the answer of `count_tokens`."""
    return _encode({"input_tokens": input_tokens})


def models(table: Table) -> bytes:
    """Return the list of what is sold, all on one page."""
    sold = [_model(offer) for offer in table.offers.values() if offer.sold]
    ends = (sold[0]["id"], sold[-1]["id"]) if sold else (None, None)
    return _encode({"data": sold, "has_more": False, "first_id": ends[0], "last_id": ends[1]})


def model(offer: Offer) -> bytes:
    return _encode(_model(offer))


def _model(offer: Offer) -> dict[str, object]:
    name, context_tokens = offer.deployment.name, offer.deployment.context_tokens
    return {
        "type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": context_tokens, "max_tokens": context_tokens,
    }  # fmt: skip
