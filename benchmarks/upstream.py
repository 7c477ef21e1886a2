"""A model server that answers at once, always the same: what is left is the gateway's own cost.

    python benchmarks/upstream.py --port 0 --chunks 52

It prints its port as JSON and serves until it is killed. It takes what any OpenAI-compatible
server takes, streamed or not, and says what it used both ways: `usage` as OpenAI does, and the
`sublet` counts of our replicas' contract. One event loop, no framework: some 40 µs a request.
"""

import argparse
import asyncio
import json
import re
from typing import Final, cast

import uvloop

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PROMPT_TOKENS: Final = 10
_MODEL: Final = "fake"


def counts(output: int) -> dict[str, int]:
    return {"input_tokens": _PROMPT_TOKENS, "cache_read_tokens": 0, "output_tokens": output}


def usage(output: int) -> dict[str, int]:
    return {
        "prompt_tokens": _PROMPT_TOKENS,
        "completion_tokens": output,
        "total_tokens": _PROMPT_TOKENS + output,
    }


def head(kind: bytes, length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind, length)


def whole(chunks: int) -> bytes:
    body = json.dumps(
        {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": _MODEL,
            "choices": [{
                "index": 0, "finish_reason": "stop", "logprobs": None,
                "message": {"role": "assistant", "content": "tok " * chunks},
            }],
            "usage": usage(chunks), "sublet": counts(chunks),
        }
    ).encode()  # fmt: skip
    return head(b"application/json", len(body)) + body


def stream(chunks: int) -> list[bytes]:
    """Return the parts of a chunked answer: its head, then an event each."""

    def event(value: object) -> bytes:
        data = b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
        return b"%x\r\n%s\r\n" % (len(data), data)

    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": _MODEL}
    parts = [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    ]
    for number in range(chunks):
        delta = {"content": "tok "} if number else {"role": "assistant", "content": "tok "}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        parts.append(event(frame | {"choices": [choice], "sublet": counts(number + 1)}))
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    parts.append(event(frame | {"choices": [last], "sublet": counts(chunks)}))
    parts.append(event(frame | {"choices": [], "usage": usage(chunks), "sublet": counts(chunks)}))
    parts.append(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    return parts


class Server(asyncio.Protocol):
    whole: bytes
    together: bytes
    parts: list[bytes]
    gap_seconds: float

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            header = self.buffer[:end]
            found = _LENGTH.search(header)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self.buffer) < whole:
                return
            body, self.buffer = self.buffer[end + 4 : whole], self.buffer[whole:]
            self.answer(header, body)

    def answer(self, header: bytes, body: bytes) -> None:
        if header.startswith(b"POST /count"):
            counted = b'{"input_tokens":%d}' % _PROMPT_TOKENS
            self.transport.write(head(b"application/json", len(counted)) + counted)
        elif header.startswith(b"GET"):
            listed = json.dumps({"object": "list", "data": [{"id": _MODEL}]}).encode()
            self.transport.write(head(b"application/json", len(listed)) + listed)
        elif re.search(rb'"stream" *: *true', body):
            if self.gap_seconds:
                asyncio.get_running_loop().create_task(self.trickle())
            else:
                self.transport.write(self.together)
        else:
            self.transport.write(self.whole)

    async def trickle(self) -> None:
        self.transport.write(self.parts[0])  # the head, and the first event at once
        for part in self.parts[1:]:
            if self.transport.is_closing():
                return
            self.transport.write(part)
            await asyncio.sleep(self.gap_seconds)


async def serve(port: int, chunks: int, gap_seconds: float) -> None:
    Server.whole, Server.parts = whole(chunks), stream(chunks)
    Server.together, Server.gap_seconds = b"".join(Server.parts), gap_seconds
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port, backlog=4096)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--chunks", type=int, default=52)
    parser.add_argument("--gap-ms", type=float, default=0.0, help="between the chunks of a stream")
    given = parser.parse_args()
    uvloop.run(serve(given.port, given.chunks, given.gap_ms / 1000))


if __name__ == "__main__":
    main()
