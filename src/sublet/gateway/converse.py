"""Bedrock's Converse: AWS's own form of a chat, whoever made the model.

Blocks of a message are told apart by the field that is there. Tools and images are handed on to
models that do them; what no model here does is refused by name.
"""

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from sublet.core.money import Money
from sublet.gateway import bedrock, eventstream
from sublet.gateway.ask import Ask, Needs, ToolCall, ToolDelta, gather
from sublet.gateway.dialect import Dialect, grant_headers, grant_note
from sublet.gateway.failures import Failure, Headers, Kind
from sublet.gateway.grant import Grant
from sublet.gateway.reading import decode, plain
from sublet.gateway.request import MOST_TOOLS, FunctionName, Label, Penalty
from sublet.gateway.tariff import Counts

Nothing = Annotated[list[None], Meta(max_length=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
_encode: Final = msgspec.json.Encoder().encode
_TEXT: Final = -1  # among the blocks of an answer; calls have their places


# ── requests ─────────────────────────────────────────────────────────────────────────────


class CachePoint(Struct, forbid_unknown_fields=True):
    """A hint that needs nothing: replicas cache every prompt by themselves."""

    type: Literal["default"]
    ttl: Literal["5m", "1h"] | None = None


class ImageSource(Struct, forbid_unknown_fields=True):
    bytes: Annotated[bytes, Meta(min_length=1)]  # base64; an address is not fetched


class Image(Struct, forbid_unknown_fields=True):
    format: Literal["png", "jpeg", "gif", "webp"]
    source: ImageSource


class ToolUse(Struct, forbid_unknown_fields=True, rename="camel"):
    tool_use_id: Label
    name: FunctionName
    input: dict[str, object]


class ResultBlock(Struct, forbid_unknown_fields=True):
    text: str | None = None
    json: dict[str, object] | None = None


class ToolResult(Struct, forbid_unknown_fields=True, rename="camel"):
    tool_use_id: Label
    content: list[ResultBlock]
    status: Literal["success", "error"] | None = None


class SystemBlock(Struct, forbid_unknown_fields=True, rename="camel"):
    """One of the two."""

    text: str | None = None
    cache_point: CachePoint | None = None


class Block(SystemBlock, forbid_unknown_fields=True, rename="camel"):
    """One of them."""

    image: Image | None = None
    tool_use: ToolUse | None = None
    tool_result: ToolResult | None = None


class Schema(Struct, forbid_unknown_fields=True):
    json: dict[str, object]


class ToolSpec(Struct, forbid_unknown_fields=True, rename="camel"):
    name: FunctionName
    input_schema: Schema
    description: str | None = None


class Tool(Struct, forbid_unknown_fields=True, rename="camel"):
    """One of the two."""

    tool_spec: ToolSpec | None = None
    cache_point: CachePoint | None = None


class Empty(Struct, forbid_unknown_fields=True):
    pass


class Named(Struct, forbid_unknown_fields=True):
    name: FunctionName


class ToolChoice(Struct, forbid_unknown_fields=True):
    """One of the three."""

    auto: Empty | None = None
    any: Empty | None = None
    tool: Named | None = None


class ToolConfig(Struct, forbid_unknown_fields=True, rename="camel"):
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=MOST_TOOLS)]
    tool_choice: ToolChoice | None = None


class Message(Struct, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Block], Meta(min_length=1)]


class InferenceConfig(Struct, forbid_unknown_fields=True, rename="camel"):
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    stop_sequences: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=500)]], Meta(max_length=16)]
        | None
    ) = None


class MoreFields(Struct, forbid_unknown_fields=True):
    """What Converse has no field for, and the models here take."""

    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class Performance(Struct, forbid_unknown_fields=True):
    latency: Literal["standard"] | None = None


class ServiceTier(Struct, forbid_unknown_fields=True):
    type: Literal["default", "priority", "flex"]  # not "reserved": nobody reserves tokens here


class Prompt(Struct, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """What can be counted: a request without what is said of its answer."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    system: list[SystemBlock] | None = None
    tool_config: ToolConfig | None = None
    additional_model_request_fields: MoreFields | None = None


class Body(Prompt, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    inference_config: InferenceConfig | None = None
    performance_config: Performance | None = None
    service_tier: ServiceTier | None = None
    guardrail_config: None = None
    prompt_variables: None = None
    output_config: None = None
    additional_model_response_field_paths: Nothing | None = None
    request_metadata: (
        Annotated[dict[str, Annotated[str, Meta(max_length=256)]], Meta(max_length=16)] | None
    ) = None  # labels


_BODY: Final = msgspec.json.Decoder(Body)
ONLY_EMPTY: Final = frozenset(
    {
        "additionalModelResponseFieldPaths", "guardrailConfig", "outputConfig",
        "performanceConfig", "promptVariables", "serviceTier",
    }
)  # fmt: skip


def parse(body: bytes, *, model: str, stream: bool) -> Ask:
    """Read a body of Converse or ConverseStream.

    Raises:
        Failure: what is wrong with it, and in which parameter.
    """
    asked = decode(_BODY, body, only_empty=ONLY_EMPTY)
    config = asked.inference_config or InferenceConfig()
    said = {"temperature": config.temperature, "top_p": config.top_p} | _more(asked)
    sampling = {name: value for name, value in said.items() if value is not None}
    if config.stop_sequences:
        at = "inferenceConfig.stopSequences"
        sampling["stop"] = [plain(stop, at=at) for stop in config.stop_sequences]
    messages, needs = prompt_of(asked)
    return Ask.chat(
        model,
        messages,
        needs=needs,
        sampling=sampling,
        max_tokens=config.max_tokens,
        stream=stream,
        service_tier=None if asked.service_tier is None else asked.service_tier.type,
    )


def prompt_of(asked: Prompt) -> tuple[list[dict[str, Any]], Needs]:
    """Return the turns of a prompt in the form that replicas read, and what they need of a model.

    Raises:
        Failure: there is a block of no kind, or in the wrong place; or its last turn is not the
            user's.
    """
    if asked.messages[-1].role == "assistant":
        raise Failure(
            Kind.UNSUPPORTED,
            "the last message must be the user's: the models here do not continue an answer that"
            " was begun",
            param="messages",
        )
    messages: list[dict[str, Any]] = []
    if asked.system:
        texts = [_one(block, f"system[{index}]") for index, block in enumerate(asked.system)]
        told = "\n".join(str(text) for name, text in texts if name == "text")
        messages.append({"role": "system", "content": plain(told, at="system")})
    for index, message in enumerate(asked.messages):
        for turn in _turns(message, f"messages[{index}].content"):
            last = messages[-1] if messages else {}
            both = type(last.get("content")) is type(turn["content"]) is str
            if both and last["role"] == turn["role"] != "tool" and "tool_calls" not in turn:
                last["content"] += "\n\n" + turn["content"]
            else:
                messages.append(turn)
    images = any(isinstance(message["content"], list) for message in messages)
    return messages, _needs(asked.tool_config, images=images)


def _one(block: Struct, at: str) -> tuple[str, object]:
    """Return the one field that a block has, and what is in it."""
    there = [
        (name, got) for name in block.__struct_fields__ if (got := getattr(block, name)) is not None
    ]
    if len(there) != 1:
        known = " or ".join(block.__struct_encode_fields__)
        raise Failure(Kind.INVALID, f"{at} must have one field: {known}", param=at)
    return there[0]


def _turns(message: Message, at: str) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(message.content):
        here = f"{at}[{index}]"
        match _one(block, here):
            case _, str(text):
                parts.append({"type": "text", "text": plain(text, at=here)})
            case _, Image(format=form, source=source):
                data = base64.b64encode(source.bytes).decode()
                url = f"data:image/{form};base64,{data}"
                parts.append({"type": "image_url", "image_url": {"url": url}})
            case _, ToolUse() as use:
                function = {"name": use.name, "arguments": _encode(use.input).decode()}
                calls.append({"id": use.tool_use_id, "type": "function", "function": function})
            case _, ToolResult() as result:
                told = "\n".join(_result(each, here) for each in result.content)
                results.append(
                    {"role": "tool", "tool_call_id": result.tool_use_id, "content": told}
                )
            case _:
                pass  # a cache point: a hint that needs nothing
    if (calls and message.role != "assistant") or (results and message.role != "user"):
        raise Failure(
            Kind.INVALID, f"{at}: toolUse is the assistant's, and toolResult the user's", param=at
        )
    # Results answer the turn before, so they come first.
    if results and not parts:
        return results
    said: object = parts
    if all(part["type"] == "text" for part in parts):
        joined = "\n".join(part["text"] for part in parts)
        said = None if calls and not parts else joined
    turn = {"role": message.role, "content": said}
    return [*results, turn | ({"tool_calls": calls} if calls else {})]


def _result(block: ResultBlock, at: str) -> str:
    name, content = _one(block, at)
    return plain(str(content), at=at) if name == "text" else _encode(content).decode()


def _needs(config: ToolConfig | None, *, images: bool) -> Needs:
    tools: list[dict[str, object]] = []
    for index, tool in enumerate([] if config is None else config.tools):
        match _one(tool, f"toolConfig.tools[{index}]"):
            case _, ToolSpec() as spec:
                about = {} if spec.description is None else {"description": spec.description}
                function = {"name": spec.name, **about, "parameters": spec.input_schema.json}
                tools.append({"type": "function", "function": function})
            case _:
                pass  # a cache point
    chosen: object = None
    if config is not None and config.tool_choice is not None:
        match _one(config.tool_choice, "toolConfig.toolChoice"):
            case "tool", Named(name=name):
                chosen = {"type": "function", "function": {"name": name}}
            case name, _:
                chosen = {"auto": "auto", "any": "required"}[name]
    return Needs.of(tools=tools, tool_choice=chosen, images=images)


def _more(asked: Prompt) -> dict[str, object]:
    more = asked.additional_model_request_fields
    return {} if more is None else msgspec.structs.asdict(more)


# ── answers ──────────────────────────────────────────────────────────────────────────────

_STOP_REASONS: Final = {
    "stop": "end_turn", "length": "max_tokens", "content_filter": "content_filtered",
    "tool_calls": "tool_use",
}  # fmt: skip


@dataclass(slots=True)
class Reply:
    ask: Ask
    grant: Grant
    id: str  # 32 hex digits
    created: int
    _began: float = field(default_factory=time.monotonic)
    _calls: dict[int, ToolCall] = field(default_factory=dict)
    _blocks: int = 0  # that were opened
    _open: int | None = None  # what the open one is of: _TEXT, or a call

    @property
    def headers(self) -> Headers:
        return grant_headers(self.grant)

    def first(self, counts: Counts | None) -> bytes:  # noqa: ARG002 -- it says that at the end
        return _event("messageStart", role="assistant")

    def text(self, text: str) -> bytes:
        payload = b'{"contentBlockIndex":0,"delta":{"text":' + _encode(text) + b"}}"
        return eventstream.event("contentBlockDelta", payload)

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
            events += self._begin(_TEXT) + self._delta({"text": text})
        for delta in calls:
            call = gather(self._calls, delta)
            start = {"toolUse": {"toolUseId": call.id, "name": call.name}}
            events += self._begin(delta.at, start)
            if delta.arguments:
                events += self._delta({"toolUse": {"input": delta.arguments}})
        return events

    def _begin(self, of: int, start: Mapping[str, object] | None = None) -> bytes:
        """Open a block, unless it is the open one. One of text begins with its text."""
        if self._open == of:
            return b""
        events = self._close()
        self._open, index = of, self._blocks
        self._blocks += 1
        if start is not None:
            events += _event("contentBlockStart", contentBlockIndex=index, start=start)
        return events

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("contentBlockStop", contentBlockIndex=self._blocks - 1)

    def _delta(self, delta: Mapping[str, object]) -> bytes:
        return _event("contentBlockDelta", contentBlockIndex=self._blocks - 1, delta=delta)

    def last(self, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        return b"".join(
            (
                self._close() if self.ask.rich else _event("contentBlockStop", contentBlockIndex=0),
                _event("messageStop", stopReason=_STOP_REASONS[finish_reason]),
                _event("metadata", **self._metadata(counts, charge)),
            )
        )

    def whole(self, text: str, finish_reason: str, counts: Counts, charge: Money) -> bytes:
        content: list[object] = [{"text": text}] if text else []
        for call in self._calls.values():
            use = {"toolUseId": call.id, "name": call.name, "input": _input(call)}
            content.append({"toolUse": use})
        message = {"role": "assistant", "content": content}
        return _encode(
            {"output": {"message": message}, "stopReason": _STOP_REASONS[finish_reason]}
            | self._metadata(counts, charge)
        )

    def _metadata(self, counts: Counts, charge: Money) -> dict[str, object]:
        metadata: dict[str, object] = {
            "usage": {
                # As ours are: without what was read from a cache, or written to it.
                "inputTokens": counts.input_tokens,
                "cacheReadInputTokens": counts.cache_read_tokens,
                "cacheWriteInputTokens": counts.cache_write_tokens,
                "outputTokens": counts.completion_tokens,
                "totalTokens": counts.total,
            },
            "metrics": {"latencyMs": round((time.monotonic() - self._began) * 1000)},
            "sublet": grant_note(self.grant, charge),
        }
        if self.ask.service_tier is not None:
            metadata["serviceTier"] = {"type": self.ask.service_tier}
        return metadata


def _event(name: str, **fields: object) -> bytes:
    return eventstream.event(name, _encode(fields))


def _input(call: ToolCall) -> dict[str, object]:
    """Return a call's input; what is no JSON object, as a model may say, as text."""
    try:
        return msgspec.json.decode(call.arguments or "{}", type=dict[str, object])
    except ValueError:
        return {"arguments": call.arguments}


def dialect(model: str, *, stream: bool) -> Dialect:
    return replace(bedrock.RUNTIME, parse=partial(parse, model=model, stream=stream), reply=Reply)
