"""An outside API that does what its script says: in five dialects, with quotas and a bill of its own.

Each model name may have a script, so that one server plays many suppliers:

    with FakeSupplier() as supplier:
        supplier.scripts["big"] = Script(text="tok ", tokens=5)

What it would put on its invoice is in `bill`, one line a request, whatever it told its client.
"""

import asyncio
import json
import re
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import unquote

from sublet.gateway import eventstream

KEY = "sk-outside"


@dataclass(slots=True, kw_only=True)
class Script:
    tokens: int = 5
    text: str = "tok "
    first_ms: int = 0
    delay_ms: int = 0
    prompt_tokens: int = 20
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    tier: str | None = None  # as which it is served; None: as asked
    call: tuple[str, str] | None = None  # of a tool: name and arguments, instead of text
    status: int | None = None  # refuse
    retry_after: str | None = None
    hang: bool = False  # take the request, and never say a word
    cut_after: int | None = None  # close the connection after so many tokens
    lie_tokens: int | None = None  # say that so many tokens were made
    no_usage: bool = False
    garbage: bool = False
    refuse_first: int = 0  # so many requests, with `status`


@dataclass(slots=True)
class Billed:
    model: str
    tier: str
    prompt: int
    cached: int
    output: int
    reasoning: int


@dataclass(slots=True)
class FakeSupplier:
    key: str = KEY
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    scripts: dict[str, Script] = field(default_factory=dict)
    bill: list[Billed] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    exceeded: int = 0  # requests that were above the quota
    asked: int = 0
    url: str = ""
    _window: deque[tuple[float, int]] = field(default_factory=deque)
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None

    # ── running beside a test ────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        def run() -> None:
            assert self._loop is not None
            self._loop.run_until_complete(self._begin(ready))
            self._loop.run_forever()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    _server: Any = None

    async def _begin(self, ready: threading.Event) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        ready.set()

    # ── HTTP ─────────────────────────────────────────────────────────────────────────────

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines if line)
                }
                body = await reader.readexactly(int(headers["content-length"]))
                await self._answer(first.split(" ")[1], headers, json.loads(body), writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, path: str, headers: dict[str, str], body: dict[str, Any], out: asyncio.StreamWriter
    ) -> None:
        dialect, model = _where(path, body)
        script = self.scripts.get(model, Script())
        self.asked += 1
        self.bodies.append(body)
        given = headers.get("x-api-key") or headers.get("x-goog-api-key")
        if (given or headers.get("authorization", "").removeprefix("Bearer ")) != self.key:
            await self._refuse(out, 401)
            return
        if script.refuse_first:
            script.refuse_first -= 1
            await self._refuse(out, script.status or 429, script.retry_after)
            return
        most = _most(dialect, body)
        if not self._has_quota(script.prompt_tokens + most):
            self.exceeded += 1
            await self._refuse(out, 429, "1")
            return
        if script.status is not None:
            await self._refuse(out, script.status, script.retry_after)
            return
        if script.hang:
            await asyncio.sleep(3600)
        await self._stream(dialect, model, script, body, out, most)

    def _has_quota(self, tokens: int) -> bool:
        now = time.monotonic()
        while self._window and self._window[0][0] <= now - 60:
            self._window.popleft()
        requests, used = len(self._window), sum(n for _, n in self._window)
        if self.requests_per_minute is not None and requests >= self.requests_per_minute:
            return False
        if self.tokens_per_minute is not None and used + tokens > self.tokens_per_minute:
            return False
        self._window.append((now, tokens))
        return True

    async def _refuse(
        self, out: asyncio.StreamWriter, status: int, retry_after: str | None = None
    ) -> None:
        body = json.dumps({"error": {"message": "no", "type": "refused", "code": None}}).encode()
        more = "" if retry_after is None else f"retry-after: {retry_after}\r\n"
        out.write(
            f"HTTP/1.1 {status} No\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body
        )
        await out.drain()

    async def _stream(
        self, dialect: str, model: str, script: Script, body: dict[str, Any],
        out: asyncio.StreamWriter, most: int,
    ) -> None:  # fmt: skip
        asked = body.get("service_tier") or body.get("serviceTier") or "default"
        asked = asked["type"] if isinstance(asked, dict) else asked
        tier = script.tier or {"standard_only": "default", "auto": "priority"}.get(asked, asked)
        made = 1 if script.call else min(script.tokens, most)
        billed = Billed(model, tier, script.prompt_tokens, script.cached_tokens, 0, 0)
        self.bill.append(billed)
        kind = "application/vnd.amazon.eventstream" if dialect == "bedrock" else "text/event-stream"
        gemini = f"x-gemini-service-tier: {tier}\r\n" if dialect == "gemini" else ""
        out.write(
            f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n"
            f"request-id: outside-{len(self.bill)}\r\n{gemini}\r\n".encode()
        )
        await asyncio.sleep(script.first_ms / 1000)
        words = _WORDS[dialect](script, tier)

        async def say(data: bytes) -> None:
            out.write(b"%x\r\n%b\r\n" % (len(data), data))
            await out.drain()

        if script.garbage:
            await say(b"data: {nonsense\n\n")
        for event in words.begin():
            await say(event)
        billed.reasoning = script.reasoning_tokens
        for index in range(made):
            if script.cut_after == index:
                out.transport.abort()
                return
            billed.output += 1
            await say(words.call() if script.call else words.token(script.text))
            await asyncio.sleep(script.delay_ms / 1000)
        if script.cut_after is not None and script.cut_after >= made:
            out.transport.abort()
            return
        told = made if script.lie_tokens is None else script.lie_tokens
        for event in words.end("length" if made == most else "stop", told):
            await say(event)
        await say_last(out)


async def say_last(out: asyncio.StreamWriter) -> None:
    out.write(b"0\r\n\r\n")
    await out.drain()


def _where(path: str, body: dict[str, Any]) -> tuple[str, str]:
    """Return the dialect and the model of a request."""
    if path.startswith("/xai/"):
        return "xai", body["model"]
    if path.endswith("/chat/completions"):
        return "openai", body["model"]
    if path.endswith("/messages"):
        return "anthropic", body["model"]
    if found := re.search(r"/models/([^/:]+):streamGenerateContent\?alt=sse$", path):
        return "gemini", unquote(found[1])
    found = re.fullmatch(r".*/model/([^/]+)/converse-stream", path)
    assert found, path
    return "bedrock", unquote(found[1])


def _most(dialect: str, body: dict[str, Any]) -> int:
    match dialect:
        case "anthropic":
            return int(body["max_tokens"])
        case "gemini":
            return int(body["generationConfig"]["maxOutputTokens"])
        case "bedrock":
            return int(body["inferenceConfig"]["maxTokens"])
    return int(body["max_completion_tokens"])


# ── what each dialect says ───────────────────────────────────────────────────────────────


def _sse(data: object, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


class OpenAI:
    apart = False  # is reasoning counted beside the completion?

    def __init__(self, script: Script, tier: str) -> None:
        self.script, self.tier = script, tier

    def begin(self) -> list[bytes]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _sse(self._frame() | {"choices": [choice], "usage": None})

    def _frame(self) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "service_tier": self.tier}

    def token(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def call(self) -> bytes:
        assert self.script.call is not None
        name, arguments = self.script.call
        function = {"name": name, "arguments": arguments}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        return self._chunk({"tool_calls": [call]})

    def end(self, reason: str, made: int) -> list[bytes]:
        script = self.script
        thought = script.reasoning_tokens
        completion = made if self.apart else made + thought
        usage = {
            "prompt_tokens": script.prompt_tokens, "completion_tokens": completion,
            "total_tokens": script.prompt_tokens + made + thought,
            "prompt_tokens_details": {"cached_tokens": script.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": thought},
        }  # fmt: skip
        last = [self._chunk({}, "tool_calls" if script.call else reason)]
        if not script.no_usage:
            last.append(_sse(self._frame() | {"choices": [], "usage": usage}))
        return [*last, b"data: [DONE]\n\n"]


class XAI(OpenAI):
    apart = True


class Anthropic:
    def __init__(self, script: Script, tier: str) -> None:
        self.script = script
        self.tier = "standard" if tier == "default" else tier

    def begin(self) -> list[bytes]:
        script = self.script
        usage = {
            "input_tokens": script.prompt_tokens - script.cached_tokens, "output_tokens": 1,
            "cache_read_input_tokens": script.cached_tokens, "cache_creation_input_tokens": 0,
            "service_tier": self.tier,
        }  # fmt: skip
        message = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
        message |= {} if script.no_usage else {"usage": usage}
        start: dict[str, Any] = {"type": "text", "text": ""}
        if script.call:
            start = {"type": "tool_use", "id": "toolu_1", "name": script.call[0], "input": {}}
        return [
            _sse({"type": "message_start", "message": message}, "message_start"),
            _sse({"type": "content_block_start", "index": 0, "content_block": start}),
            _sse({"type": "ping"}, "ping"),
        ]

    def token(self, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        return _sse({"type": "content_block_delta", "index": 0, "delta": delta})

    def call(self) -> bytes:
        assert self.script.call is not None
        delta = {"type": "input_json_delta", "partial_json": self.script.call[1]}
        return _sse({"type": "content_block_delta", "index": 0, "delta": delta})

    def end(self, reason: str, made: int) -> list[bytes]:
        why = {"stop": "end_turn", "length": "max_tokens"}[reason]
        last: dict[str, Any] = {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use" if self.script.call else why},
        }
        if not self.script.no_usage:
            last["usage"] = {"output_tokens": made + self.script.reasoning_tokens}
        return [
            _sse({"type": "content_block_stop", "index": 0}),
            _sse(last, "message_delta"),
            _sse({"type": "message_stop"}, "message_stop"),
        ]


class Gemini:
    def __init__(self, script: Script, _: str) -> None:
        self.script = script

    def begin(self) -> list[bytes]:
        return []

    def _event(self, parts: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        candidate = {"content": {"role": "model", "parts": parts}, "index": 0} | more
        return {"candidates": [candidate], "responseId": "gem-1"}

    def token(self, text: str) -> bytes:
        return _sse(self._event([{"text": text}]))

    def call(self) -> bytes:
        assert self.script.call is not None
        name, arguments = self.script.call
        return _sse(self._event([{"functionCall": {"name": name, "args": json.loads(arguments)}}]))

    def end(self, reason: str, made: int) -> list[bytes]:
        script = self.script
        last = self._event([], finishReason={"stop": "STOP", "length": "MAX_TOKENS"}[reason])
        if not script.no_usage:
            last["usageMetadata"] = {
                "promptTokenCount": script.prompt_tokens,
                "cachedContentTokenCount": script.cached_tokens,
                "candidatesTokenCount": made, "thoughtsTokenCount": script.reasoning_tokens,
                "totalTokenCount": script.prompt_tokens + made + script.reasoning_tokens,
            }  # fmt: skip
        return [_sse(last)]


class Bedrock:
    def __init__(self, script: Script, tier: str) -> None:
        self.script, self.tier = script, tier

    def _event(self, name: str, **said: Any) -> bytes:
        return eventstream.event(name, json.dumps(said).encode())

    def begin(self) -> list[bytes]:
        first = [self._event("messageStart", role="assistant")]
        if self.script.call:
            start = {"toolUse": {"toolUseId": "tooluse_1", "name": self.script.call[0]}}
            first.append(self._event("contentBlockStart", contentBlockIndex=0, start=start))
        return first

    def token(self, text: str) -> bytes:
        return self._event("contentBlockDelta", contentBlockIndex=0, delta={"text": text})

    def call(self) -> bytes:
        assert self.script.call is not None
        delta = {"toolUse": {"input": self.script.call[1]}}
        return self._event("contentBlockDelta", contentBlockIndex=0, delta=delta)

    def end(self, reason: str, made: int) -> list[bytes]:
        script = self.script
        why = {"stop": "end_turn", "length": "max_tokens"}[reason]
        made += script.reasoning_tokens
        usage = {
            "inputTokens": script.prompt_tokens - script.cached_tokens, "outputTokens": made,
            "totalTokens": script.prompt_tokens + made,
            "cacheReadInputTokens": script.cached_tokens, "cacheWriteInputTokens": 0,
        }  # fmt: skip
        said: dict[str, Any] = {"metrics": {"latencyMs": 1}, "serviceTier": {"type": self.tier}}
        if not script.no_usage:
            said["usage"] = usage
        return [
            self._event("contentBlockStop", contentBlockIndex=0),
            self._event("messageStop", stopReason="tool_use" if script.call else why),
            self._event("metadata", **said),
        ]


_WORDS: dict[str, Any] = {
    "openai": OpenAI, "xai": XAI, "anthropic": Anthropic, "gemini": Gemini, "bedrock": Bedrock,
}  # fmt: skip
