"""A replica that breaks every rule of HTTP and of its own contract, when its prompt says so.

It writes its bytes itself, as a well-kept server cannot be made to lie about a length or to
reset a connection. `#fault:NAME` in a prompt chooses one of `FAULTS`; without it the answer is a
good one. It counts a word as a token, and knows how often each request reached it.
"""

import asyncio
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

TOKENS: Final = 5  # of a good answer, each "tok "
MARK: Final = re.compile(r"#fault:([a-z0-9_]+)")
CHUNKED: Final = b"transfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n"


@dataclass(slots=True, kw_only=True)
class Call:
    """One request for an answer, and the connection to spoil."""

    body: dict[str, Any]
    path: str
    writer: asyncio.StreamWriter
    prompt_tokens: int

    @property
    def chat(self) -> bool:
        return self.path == "/v1/chat/completions"

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    # ── pieces of a good answer ──────────────────────────────────────────────────────────

    def counts(self, output: int) -> dict[str, int]:
        return {
            "input_tokens": self.prompt_tokens, "cache_read_tokens": 0, "output_tokens": output,
        }  # fmt: skip

    def chunk(
        self, text: str, output: int | None, finish: str | None = None, **more: object
    ) -> bytes:
        content = {"delta": {"content": text}} if self.chat else {"text": text}
        value = {"choices": [{"index": 0, "finish_reason": finish, **content}]} | more
        if output is not None:
            value["sublet"] = self.counts(output)
        return b"data: " + json.dumps(value).encode() + b"\n\n"

    def whole(self, *, finish: str = "stop", counted: bool = True) -> bytes:
        text = "tok " * TOKENS
        content = (
            {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        )
        value: dict[str, Any] = {"choices": [{"index": 0, "finish_reason": finish, **content}]}
        if counted:
            value["sublet"] = self.counts(TOKENS)
        return json.dumps(value).encode()

    # ── sending ──────────────────────────────────────────────────────────────────────────

    async def head(self, status: str = "200 OK", headers: bytes = CHUNKED) -> None:
        await self.raw(f"HTTP/1.1 {status}\r\n".encode() + headers + b"\r\n")

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def part(self, data: bytes) -> None:
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def body_of(self, data: bytes, *, status: str = "200 OK", headers: bytes = b"") -> None:
        length = b"content-length: %d\r\n" % len(data)
        await self.head(status, length + b"content-type: application/json\r\n" + headers)
        await self.raw(data)

    async def refuse(self, status: str, headers: bytes = b"") -> None:
        await self.body_of(b'{"error": {"message": "no"}}', status=status, headers=headers)

    def reset(self) -> None:
        """Let the other side see a reset, and not an end."""
        connection: socket.socket = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()

    async def tokens(self, number: int, *, counted: bool = True) -> None:
        for sent in range(1, number + 1):
            await self.part(self.chunk("tok ", sent if counted else None))

    async def good(self, *, finish: str = "stop", counted: bool = True) -> None:
        if not self.stream:
            await self.body_of(self.whole(finish=finish, counted=counted))
            return
        await self.head()
        await self.tokens(TOKENS, counted=counted)
        await self.part(self.chunk("", TOKENS if counted else None, finish))
        await self.part(b"data: [DONE]\n\n")
        await self.end()


# ── the faults ───────────────────────────────────────────────────────────────────────────


async def reset_before_headers(call: Call) -> None:
    call.reset()


async def reset_after_headers(call: Call) -> None:
    await call.head()
    call.reset()


async def hang_before_first_token(call: Call) -> None:
    if call.stream:
        await call.head()
    await asyncio.Event().wait()


async def stall(call: Call) -> None:
    if call.stream:
        await call.head()
        await call.tokens(2)
    await asyncio.Event().wait()


async def cut_stream(call: Call) -> None:
    if call.stream:
        await call.head()
        await call.tokens(3)
    call.close()


async def truncated_json(call: Call) -> None:
    if not call.stream:
        await call.body_of(call.whole()[:-9])
        return
    await call.head()
    await call.tokens(2)
    await call.part(call.chunk("tok ", 3)[:-9] + b"\n\n")
    await call.end()


async def wrong_length(call: Call) -> None:
    """It says more than it sends; a stream ends in the middle of a chunk."""
    if call.stream:
        await call.head()
        await call.tokens(2)
        await call.raw(b"ffff\r\n" + call.chunk("tok ", 3))
    else:
        whole = call.whole()
        await call.head(headers=b"content-length: %d\r\n" % (len(whole) + 9))
        await call.raw(whole)
    call.close()


async def busy_429(call: Call) -> None:
    await call.refuse("429 Too Many Requests")


async def busy_429_retry_after(call: Call) -> None:
    await call.refuse("429 Too Many Requests", b"Retry-After: 7\r\n")


async def failing_500(call: Call) -> None:
    await call.refuse("500 Internal Server Error")


async def busy_503(call: Call) -> None:
    await call.refuse("503 Service Unavailable")


async def trickle(call: Call) -> None:
    """A whole and good answer, a few bytes at a time."""
    if call.stream:
        await call.head()
        for sent in range(1, TOKENS + 1):
            data = call.chunk("tok ", sent)
            for start in range(0, len(data), 40):
                await call.part(data[start : start + 40])
                await asyncio.sleep(0.002)
        await call.part(call.chunk("", TOKENS, "stop") + b"data: [DONE]\n\n")
        await call.end()
        return
    whole = call.whole()
    await call.head(headers=b"content-length: %d\r\n" % len(whole))
    for start in range(0, len(whole), 40):
        await call.raw(whole[start : start + 40])
        await asyncio.sleep(0.002)


async def garbage(call: Call) -> None:
    if not call.stream:
        await call.body_of(b"\x00\xff<html>not what was asked for</html>")
        return
    await call.head()
    await call.tokens(2)
    await call.part(b"\x00\xff:::\ndata: {nonsense\n\n")
    await call.end()


async def duplicate_finish(call: Call) -> None:
    if not call.stream:
        await call.good()
        return
    await call.head()
    await call.tokens(TOKENS)
    for finish in ("stop", "length", "stop"):
        await call.part(call.chunk("", TOKENS, finish))
    await call.part(b"data: [DONE]\n\n")
    await call.part(b"data: [DONE]\n\n")
    await call.end()


async def missing_usage(call: Call) -> None:
    await call.good(counted=False)


async def content_filter(call: Call) -> None:
    await call.good(finish="content_filter")


FAULTS: Final[dict[str, Callable[[Call], Awaitable[None]]]] = {
    fault.__name__: fault
    for fault in (
        reset_before_headers, reset_after_headers, hang_before_first_token, stall, cut_stream,
        truncated_json, wrong_length, busy_429, busy_429_retry_after, failing_500, busy_503,
        trickle, garbage, duplicate_finish, missing_usage, content_filter,
    )
}  # fmt: skip


async def missing_usage_cut(call: Call) -> None:
    """Beside the wall: nothing counted, and not whole either."""
    await call.head()
    await call.tokens(3, counted=False)
    call.close()


async def their_usage(call: Call) -> None:
    """Beside the wall: counts in OpenAI's words, at the end."""
    usage = {
        "prompt_tokens": call.prompt_tokens, "completion_tokens": TOKENS, "total_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 1},
    }  # fmt: skip
    if not call.stream:
        await call.body_of(
            json.dumps(json.loads(call.whole(counted=False)) | {"usage": usage}).encode()
        )
        return
    await call.head()
    await call.tokens(TOKENS, counted=False)
    await call.part(call.chunk("", None, "stop"))
    await call.part(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
    await call.part(b"data: [DONE]\n\n")
    await call.end()


PLAYS: Final = FAULTS | {"missing_usage_cut": missing_usage_cut, "their_usage": their_usage}


# ── the server ───────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Upstream:
    key: str = "fake-key"
    asked: Counter[str] = field(default_factory=Counter)  # by request id
    ports: list[int] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @contextmanager
    def in_thread(self) -> Iterator[str]:
        """Listen in an event loop of its own; yield the URL."""
        started, hooks = threading.Event(), []

        async def serve() -> None:
            stop = asyncio.Event()
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.ports.append(server.sockets[0].getsockname()[1])
            hooks.append((asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        assert started.wait(60)
        try:
            yield f"http://127.0.0.1:{self.ports[-1]}"
        finally:
            loop, stop = hooks[0]
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    await self._answer(reader, writer)
                    if writer.is_closing():
                        break
        except asyncio.CancelledError:
            pass  # a hang, at the end of the test
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        assert headers["authorization"] == f"bearer {self.key}"
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        method, path, _ = first.split(" ")
        body = json.loads(raw) if raw else {}
        call = Call(body=body, path=path, writer=writer, prompt_tokens=words(body))
        if path == "/count":
            await call.body_of(json.dumps({"input_tokens": call.prompt_tokens}).encode())
        elif method == "GET":
            await call.refuse("404 Not Found")  # it keeps no counts
        else:
            self.asked[headers["x-request-id"]] += 1
            fault = MARK.search(raw.decode())
            await (PLAYS[fault[1]](call) if fault else call.good())


def words(body: dict[str, Any]) -> int:
    texts = [body.get("prompt") or ""]
    texts += [str(message.get("content")) for message in body.get("messages") or []]
    return sum(len(text.split()) for text in texts)
