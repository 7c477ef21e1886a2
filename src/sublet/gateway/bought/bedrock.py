"""Amazon Bedrock's ConverseStream, as a supplier speaks it, with a Bedrock API key."""

from typing import Any, Final
from urllib.parse import quote

import msgspec
from msgspec import Struct

from sublet.gateway.answers import Piece
from sublet.gateway.ask import Ask, ToolDelta
from sublet.gateway.bought.speech import (
    Called,
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
from sublet.gateway.eventstream import Damaged, Frames
from sublet.suppliers.supplier import Source
from sublet.suppliers.usage import BedrockUsage

_CAN: Final = frozenset({"temperature", "top_p", "stop", "tools", "tool_choice"})
_REASONS: Final = {
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter", "content_filtered": "content_filter",
    "model_context_window_exceeded": "length",
}  # fmt: skip


class _ToolStart(Struct, rename="camel"):
    tool_use_id: str | None = None
    name: str | None = None


class _Start(Struct, rename="camel"):
    tool_use: _ToolStart | None = None


class _ToolPart(Struct):
    input: str = ""


class _Thought(Struct):
    text: str = ""


class _Delta(Struct, rename="camel"):
    text: str = ""
    tool_use: _ToolPart | None = None
    reasoning_content: _Thought | None = None


class _Tier(Struct):
    type: str | None = None


class _Payload(Struct, rename="camel"):
    content_block_index: int = 0
    start: _Start | None = None
    delta: _Delta | None = None
    stop_reason: str | None = None
    usage: BedrockUsage | None = None
    service_tier: _Tier | None = None


_PAYLOAD: Final = msgspec.json.Decoder(_Payload)


class BedrockSpeech:
    def unable(self, ask: Ask) -> str | None:
        temperature = ask.payload.get("temperature")
        if isinstance(temperature, int | float) and temperature > 1:
            return "temperature"
        return unable_to_say(ask, _CAN)

    def request(
        self, ask: Ask, source: Source, *, key: str, tier: str, most_output: int
    ) -> Request:
        system, turns = turns_of(ask)
        config: dict[str, Any] = {"maxTokens": most_output}
        for ours, theirs in (("temperature", "temperature"), ("top_p", "topP")):
            if ours in ask.payload:
                config[theirs] = ask.payload[ours]
        if stops := stops_of(ask):
            config["stopSequences"] = stops
        asked: dict[str, Any] = {
            "messages": [
                {"role": turn.role, "content": [_part(part) for part in turn.parts]}
                for turn in turns
            ],
            "inferenceConfig": config,
            "serviceTier": {"type": tier},
        }
        if system:
            asked["system"] = [{"text": system}]
        if tools := tools_of(ask):
            asked["toolConfig"] = {
                "tools": [{"toolSpec": _tool(tool)} for tool in tools],
                "toolChoice": _choice(ask),
            }
        path = f"/model/{quote(source.model, safe='')}/converse-stream"
        headers = {
            "authorization": f"Bearer {key}",
            "accept": "application/vnd.amazon.eventstream",
        }
        return Request(path, headers, msgspec.json.encode(asked))

    def reader(self) -> Reader:
        return _Reader()


def _part(part: Part) -> dict[str, Any]:
    match part:
        case Text(text):
            return {"text": text}
        case Picture(media, data):
            form = media.removeprefix("image/")
            return {"image": {"format": form, "source": {"bytes": data}}}
        case Called(id_, name, arguments):
            return {"toolUse": {"toolUseId": id_, "name": name, "input": arguments}}
        case Result(id_, _, text):
            return {"toolResult": {"toolUseId": id_, "content": [{"text": text}]}}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    said = {
        "name": tool["name"],
        "inputSchema": {"json": tool.get("parameters") or {"type": "object"}},
    }
    if tool.get("description"):
        said["description"] = tool["description"]
    return said


def _choice(ask: Ask) -> dict[str, Any]:
    choice = ask.payload.get("tool_choice")
    if isinstance(choice, dict):
        return {"tool": {"name": choice["function"]["name"]}}
    return {"any": {}} if choice == "required" else {"auto": {}}


class _Reader(Reader):
    def __init__(self) -> None:
        super().__init__()
        self._frames = Frames()
        self._calls: dict[int, int] = {}  # a block's index: which call it is

    def feed(self, data: bytes) -> list[Piece]:
        pieces = []
        try:
            for head, payload in self._frames.feed(data):
                if head.get(":message-type") != "event":
                    raise Stopped
                piece = self._read(head.get(":event-type"), _PAYLOAD.decode(payload))
                if piece is not None:
                    pieces.append(self.said(piece))
        except (Damaged, msgspec.MsgspecError) as error:
            raise Nonsense(str(error)) from error
        return pieces

    def _read(self, kind: str | None, said: _Payload) -> Piece | None:
        match kind:
            case "contentBlockStart" if said.start is not None and said.start.tool_use is not None:
                at = self._calls[said.content_block_index] = len(self._calls)
                call = said.start.tool_use
                return Piece("", None, None, [ToolDelta(at, call.tool_use_id, call.name, "")])
            case "contentBlockDelta" if said.delta is not None:
                delta = said.delta
                if delta.reasoning_content is not None:
                    self.thought_bytes += len(delta.reasoning_content.text.encode())
                if delta.tool_use is not None:
                    at = self._calls.get(said.content_block_index, 0)
                    return Piece("", None, None, [ToolDelta(at, None, None, delta.tool_use.input)])
                if delta.text:
                    return Piece(delta.text, None, None)
            case "messageStop":
                return Piece("", _REASONS.get(said.stop_reason or "", "stop"), None)
            case "metadata":
                self.done = True
                if said.usage is not None:
                    self.used, self.final = said.usage.used(), True
                if said.service_tier is not None:
                    self.tier = our_tier(said.service_tier.type) or self.tier
            case _:
                pass  # a block's end, or an event of a later version
        return None
