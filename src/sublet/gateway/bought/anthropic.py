"""Anthropic's Messages, as a supplier speaks them."""

from typing import Any, Final

import msgspec
from msgspec import Struct

from sublet.gateway.answers import Piece
from sublet.gateway.ask import Ask, ToolDelta
from sublet.gateway.bought.speech import (
    Called,
    Events,
    Nonsense,
    Part,
    Picture,
    Reader,
    Request,
    Result,
    Stopped,
    Text,
    our_tier,
    stops_of,
    tools_of,
    turns_of,
    unable_to_say,
)
from sublet.suppliers.supplier import Source
from sublet.suppliers.usage import AnthropicUsage

VERSION: Final = "2023-06-01"
_CAN: Final = frozenset(
    {"temperature", "top_p", "top_k", "stop", "tools", "tool_choice", "parallel_tool_calls"}
)
_REASONS: Final = {
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls",
    "refusal": "content_filter", "model_context_window_exceeded": "length",
}  # fmt: skip


class _Message(Struct):
    id: str | None = None
    usage: AnthropicUsage | None = None


class _Block(Struct):
    type: str = ""
    id: str | None = None
    name: str | None = None
    text: str = ""


class _Delta(Struct):
    type: str | None = None
    text: str = ""
    partial_json: str = ""
    thinking: str = ""
    stop_reason: str | None = None


class _Event(Struct):
    type: str
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: AnthropicUsage | None = None


_EVENT: Final = msgspec.json.Decoder(_Event)


class AnthropicSpeech:
    def unable(self, ask: Ask) -> str | None:
        temperature = ask.payload.get("temperature")
        if isinstance(temperature, int | float) and temperature > 1:
            return "temperature"
        return unable_to_say(ask, _CAN)

    def request(
        self, ask: Ask, source: Source, *, key: str, tier: str, most_output: int
    ) -> Request:
        system, turns = turns_of(ask)
        asked: dict[str, Any] = {
            "model": source.model,
            "max_tokens": most_output,
            "stream": True,
            "service_tier": "auto" if tier == "priority" else "standard_only",
            "messages": [
                {"role": turn.role, "content": [_part(part) for part in turn.parts]}
                for turn in turns
            ],
        }
        if system:
            asked["system"] = system
        for name in ("temperature", "top_p", "top_k"):
            if name in ask.payload:
                asked[name] = ask.payload[name]
        if stops := stops_of(ask):
            asked["stop_sequences"] = stops
        if tools := tools_of(ask):
            asked["tools"] = [
                {
                    "name": tool["name"],
                    "input_schema": tool.get("parameters") or {"type": "object"},
                    **({"description": tool["description"]} if tool.get("description") else {}),
                }
                for tool in tools
            ]
            asked["tool_choice"] = _choice(ask)
        headers = {"x-api-key": key, "anthropic-version": VERSION}
        return Request("/messages", headers, msgspec.json.encode(asked))

    def reader(self) -> Reader:
        return _Reader()


def _part(part: Part) -> dict[str, Any]:
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Picture(media, data):
            return {
                "type": "image",
                "source": {"type": "base64", "media_type": media, "data": data},
            }
        case Called(id_, name, arguments):
            return {"type": "tool_use", "id": id_, "name": name, "input": arguments}
        case Result(id_, _, text):
            return {"type": "tool_result", "tool_use_id": id_, "content": text}


def _choice(ask: Ask) -> dict[str, Any]:
    choice = ask.payload.get("tool_choice")
    if isinstance(choice, dict):
        said: dict[str, Any] = {"type": "tool", "name": choice["function"]["name"]}
    else:
        said = {"type": "any" if choice == "required" else "auto"}
    if ask.payload.get("parallel_tool_calls") is False:
        said["disable_parallel_tool_use"] = True
    return said


class _Reader(Reader):
    def __init__(self) -> None:
        super().__init__()
        self._events = Events()
        self._usage: AnthropicUsage | None = None
        self._calls: dict[int, int] = {}  # a block's index: which call it is

    def feed(self, data: bytes) -> list[Piece]:
        pieces = []
        for event in self._events.feed(data):
            try:
                read = _EVENT.decode(event)
            except msgspec.MsgspecError as error:
                raise Nonsense(str(error)) from error
            piece = self._read(read)
            if piece is not None:
                pieces.append(self.said(piece))
        return pieces

    def _read(self, event: _Event) -> Piece | None:
        match event.type:
            case "error":
                raise Stopped
            case "message_start" if event.message is not None:
                self.request = event.message.id
                self._count(event.message.usage)
            case "content_block_start" if event.content_block is not None:
                block = event.content_block
                if block.type == "tool_use":
                    at = self._calls[event.index] = len(self._calls)
                    return Piece("", None, None, [ToolDelta(at, block.id, block.name, "")])
                if block.text:
                    return Piece(block.text, None, None)
            case "content_block_delta" if event.delta is not None:
                delta = event.delta
                self.thought_bytes += len(delta.thinking.encode())
                if delta.partial_json:
                    at = self._calls.get(event.index, 0)
                    return Piece("", None, None, [ToolDelta(at, None, None, delta.partial_json)])
                if delta.text:
                    return Piece(delta.text, None, None)
            case "message_delta":
                self._count(event.usage)
                self.final = event.usage is not None
                reason = None if event.delta is None else event.delta.stop_reason
                if reason is not None:
                    return Piece("", _REASONS.get(reason, "stop"), None)
            case "message_stop":
                self.done = True
            case _:
                pass  # a ping, or an event of a later version
        return None

    def _count(self, usage: AnthropicUsage | None) -> None:
        if usage is not None:
            self._usage = usage.after(self._usage)
            self.used = self._usage.used()
            self.tier = our_tier(self._usage.service_tier) or self.tier
