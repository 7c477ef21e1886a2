"""A steady stream of requests, and how long each waited for the first bytes of its answer.

Requests begin when it is their turn, whether or not those before are answered. One event loop over
httptools, some 50 µs a request, so that what is measured is not what measures.
"""

import asyncio
import time
from collections.abc import Sequence
from itertools import cycle
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop
from harness import body


def percentile(took: Sequence[float], share: float) -> float:
    return sorted(took)[min(len(took) - 1, int(share * len(took)))]


def first_bytes(
    url: str, keys: Sequence[str], *, model: str, pace: float, seconds: float, stream: bool
) -> list[float]:
    """Return milliseconds, of all but the first fifth of the requests.

    Raises:
        RuntimeError: one was refused, or a connection broke.
    """
    parts = urlsplit(url)
    assert parts.hostname, url
    data = body(stream=stream, model=model).encode()
    requests = [
        f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode()
        + data
        for key in keys
    ]
    number = int(seconds * pace)
    took = uvloop.run(_ask(parts.hostname, parts.port or 80, requests, number, pace))
    return took[len(took) // 5 :]


async def _ask(
    host: str, port: int, requests: Sequence[bytes], number: int, pace: float
) -> list[float]:
    loop = asyncio.get_running_loop()
    idle: list[_Line] = []
    took: list[float] = []
    failed: list[str] = []

    async def one(request: bytes) -> None:
        line = idle.pop() if idle else (await loop.create_connection(_Line, host, port))[1]
        try:
            took.append(1000 * await line.ask(request))
            idle.append(line)
        except RuntimeError as error:
            failed.append(str(error))

    running = []
    began = loop.time()
    for turn, request in zip(range(number), cycle(requests), strict=False):
        if (wait := began + turn / pace - loop.time()) > 0:
            await asyncio.sleep(wait)
        running.append(loop.create_task(one(request)))
    await asyncio.gather(*running)
    for line in idle:
        line.close()
    if failed:
        raise RuntimeError(f"{len(failed)} of {number} requests failed: {failed[0]}")
    return took


class _Line(asyncio.Protocol):
    """One connection, one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def ask(self, request: bytes) -> float:
        """Send it, read all of the answer; return the seconds until its first bytes."""
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._first = 0.0
        began = time.perf_counter()
        self._transport.write(request)
        await self._done
        if (status := self._parser.get_status_code()) != 200:
            raise RuntimeError(f"status {status}")
        return self._first - began

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, _: bytes) -> None:
        self._first = self._first or time.perf_counter()

    def on_message_complete(self) -> None:
        self._done.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        done = getattr(self, "_done", None)
        if done is not None and not done.done():
            done.set_exception(RuntimeError("the connection broke"))
