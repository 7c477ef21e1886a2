"""Google's Gemini API (`streamGenerateContent`), as a supplier speaks it."""

import json
from typing import Any, Final
from urllib.parse import quote

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
    stops_of,
    tools_of,
    turns_of,
    unable_to_say,
)
from sublet.suppliers.supplier import DEFAULT, Source
from sublet.suppliers.usage import GeminiUsage

_CAN: Final = frozenset(
    {
        "temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "seed", "stop",
        "tools", "tool_choice", "response_format",
    }
)  # fmt: skip
_NAMES: Final = {
    "temperature": "temperature", "top_p": "topP", "top_k": "topK", "seed": "seed",
    "presence_penalty": "presencePenalty", "frequency_penalty": "frequencyPenalty",
}  # fmt: skip
_REASONS: Final = {"STOP": "stop", "MAX_TOKENS": "length"}
_FILTERED: Final = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE"}
)


class _FunctionCall(Struct):
    name: str = ""
    args: dict[str, Any] = {}
    id: str | None = None


class _Part(Struct, rename="camel"):
    text: str | None = None
    thought: bool = False
    function_call: _FunctionCall | None = None


class _Content(Struct):
    parts: list[_Part] = []


class _Candidate(Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None


class _Blocked(Struct, rename="camel"):
    block_reason: str | None = None


class _Event(Struct, rename="camel"):
    candidates: list[_Candidate] = []
    usage_metadata: GeminiUsage | None = None
    prompt_feedback: _Blocked | None = None
    response_id: str | None = None
    error: msgspec.Raw = msgspec.Raw()


_EVENT: Final = msgspec.json.Decoder(_Event)


class GeminiSpeech:
    def unable(self, ask: Ask) -> str | None:
        return unable_to_say(ask, _CAN)

    def request(
        self, ask: Ask, source: Source, *, key: str, tier: str, most_output: int
    ) -> Request:
        system, turns = turns_of(ask)
        config: dict[str, Any] = {
            theirs: ask.payload[ours] for ours, theirs in _NAMES.items() if ours in ask.payload
        }
        config["maxOutputTokens"] = most_output
        if stops := stops_of(ask):
            config["stopSequences"] = stops
        form = ask.payload.get("response_format")
        if isinstance(form, dict):
            config["responseMimeType"] = "application/json"
            if form["type"] == "json_schema":
                config["responseJsonSchema"] = form["json_schema"]["schema"]
        asked: dict[str, Any] = {
            "contents": [
                {
                    "role": "model" if turn.role == "assistant" else "user",
                    "parts": [_part(part) for part in turn.parts],
                }
                for turn in turns
            ],
            "generationConfig": config,
        }
        if system:
            asked["systemInstruction"] = {"parts": [{"text": system}]}
        if tier != DEFAULT:
            asked["serviceTier"] = tier
        if tools := tools_of(ask):
            asked["tools"] = [{"functionDeclarations": [_tool(tool) for tool in tools]}]
            asked["toolConfig"] = {"functionCallingConfig": _choice(ask)}
        path = f"/models/{quote(source.model, safe='')}:streamGenerateContent?alt=sse"
        return Request(path, {"x-goog-api-key": key}, msgspec.json.encode(asked))

    def reader(self) -> Reader:
        return _Reader()


def _part(part: Part) -> dict[str, Any]:
    match part:
        case Text(text):
            return {"text": text}
        case Picture(media, data):
            return {"inlineData": {"mimeType": media, "data": data}}
        case Called(_, name, arguments):
            return {"functionCall": {"name": name, "args": arguments}}
        case Result(_, name, text):
            return {"functionResponse": {"name": name, "response": _result(text)}}


def _result(text: str) -> dict[str, Any]:
    """Return what a function gave as an object, which is what they take."""
    try:
        said = json.loads(text)
    except ValueError:
        said = text
    return said if isinstance(said, dict) else {"result": said}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    said = {"name": tool["name"]}
    if tool.get("description"):
        said["description"] = tool["description"]
    if tool.get("parameters"):
        said["parametersJsonSchema"] = tool["parameters"]
    return said


def _choice(ask: Ask) -> dict[str, Any]:
    choice = ask.payload.get("tool_choice")
    if isinstance(choice, dict):
        return {"mode": "ANY", "allowedFunctionNames": [choice["function"]["name"]]}
    return {"mode": "ANY" if choice == "required" else "AUTO"}


class _Reader(Reader):
    def __init__(self) -> None:
        super().__init__()
        self._events = Events()
        self._calls = 0

    def feed(self, data: bytes) -> list[Piece]:
        pieces = []
        for event in self._events.feed(data):
            try:
                read = _EVENT.decode(event)
            except msgspec.MsgspecError as error:
                raise Nonsense(str(error)) from error
            pieces += [self.said(piece) for piece in self._read(read)]
        return pieces

    def _read(self, event: _Event) -> list[Piece]:
        if bytes(event.error) not in (b"", b"null"):
            raise Stopped
        self.request = self.request or event.response_id
        if event.usage_metadata is not None:
            self.used = event.usage_metadata.used()
        if event.prompt_feedback is not None and event.prompt_feedback.block_reason is not None:
            self.done = self.final = True
            return [Piece("", "content_filter", None)]
        pieces = []
        for candidate in event.candidates[:1]:
            for part in [] if candidate.content is None else candidate.content.parts:
                if part.thought:
                    self.thought_bytes += len((part.text or "").encode())
                elif part.function_call is not None:
                    call = part.function_call
                    at, self._calls = self._calls, self._calls + 1
                    said = json.dumps(call.args, ensure_ascii=False)
                    delta = ToolDelta(at, call.id or f"call_{at}", call.name, said)
                    pieces.append(Piece("", None, None, [delta]))
                elif part.text:
                    pieces.append(Piece(part.text, None, None))
            if (reason := candidate.finish_reason) is not None:
                # There is no other end: what it used is in the same event.
                self.done, self.final = True, self.used is not None
                ours = "content_filter" if reason in _FILTERED else _REASONS.get(reason, "stop")
                if self._calls and ours == "stop":
                    ours = "tool_calls"
                pieces.append(Piece("", ours, None))
        return pieces
