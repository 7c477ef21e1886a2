"""OpenAI's chat completions, as a supplier speaks them; and xAI's, which count differently."""

from typing import Any, Final

import msgspec
from msgspec import Struct

from sublet.gateway.answers import Piece
from sublet.gateway.ask import Ask, ToolDelta
from sublet.gateway.bought.speech import (
    Events,
    Nonsense,
    Reader,
    Request,
    Stopped,
    our_tier,
    unable_to_say,
)
from sublet.suppliers.supplier import Source
from sublet.suppliers.usage import OpenAIUsage

_CAN: Final = frozenset(
    {
        "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop", "tools",
        "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs",
    }
)  # fmt: skip
_FINISHED: Final = frozenset({"stop", "length", "content_filter", "tool_calls"})


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw()


class _Chunk(Struct):
    id: str | None = None
    choices: list[_Choice] = []
    usage: OpenAIUsage | None = None
    service_tier: str | None = None
    error: msgspec.Raw = msgspec.Raw()


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


class OpenAISpeech:
    def __init__(self, *, of_xai: bool = False) -> None:
        self._of_xai = of_xai

    def unable(self, ask: Ask) -> str | None:
        return unable_to_say(ask, _CAN)

    def request(
        self, ask: Ask, source: Source, *, key: str, tier: str, most_output: int
    ) -> Request:
        asked: dict[str, Any] = ask.payload | {
            "model": source.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": most_output,
        }
        if not self._of_xai:
            asked["service_tier"] = tier
        headers = {"authorization": f"Bearer {key}"}
        return Request("/chat/completions", headers, msgspec.json.encode(asked))

    def reader(self) -> Reader:
        return _Reader(of_xai=self._of_xai)


class _Reader(Reader):
    def __init__(self, *, of_xai: bool) -> None:
        super().__init__()
        self._events = Events()
        self._of_xai = of_xai

    def feed(self, data: bytes) -> list[Piece]:
        pieces = []
        for event in self._events.feed(data):
            if event == b"[DONE]":
                self.done = True
            elif not self.done and event:
                pieces += self._read(event)
        return pieces

    def _read(self, event: bytes) -> list[Piece]:
        try:
            chunk = _CHUNK.decode(event)
        except msgspec.MsgspecError as error:
            raise Nonsense(str(error)) from error
        if bytes(chunk.error) not in (b"", b"null"):
            raise Stopped
        self.request = self.request or chunk.id
        self.tier = our_tier(chunk.service_tier) or self.tier
        if chunk.usage is not None:
            usage = chunk.usage
            self.used = usage.used_of_xai() if self._of_xai else usage.used()
            self.final = True
        if not chunk.choices:
            return []
        choice = chunk.choices[0]
        delta = choice.delta or _Delta()
        self.thought_bytes += len((delta.reasoning_content or "").encode())
        calls = [
            ToolDelta(
                call.index, call.id,
                None if call.function is None else call.function.name,
                "" if call.function is None else call.function.arguments or "",
            )
            for call in delta.tool_calls or ()
        ]  # fmt: skip
        reason = choice.finish_reason
        if reason is not None and reason not in _FINISHED:
            reason = "stop"
        raw = bytes(choice.logprobs)
        logprobs = None if raw in (b"", b"null") else raw
        text = delta.content or delta.refusal or ""
        return [self.said(Piece(text, reason, None, calls, logprobs))]
