"""What a request to a replica costs a client: the gateway's own, and a general one, in one run.

    python benchmarks/client.py              a table, under a minute
    python benchmarks/client.py --json       one flat object

CPU of this process a request, the median of rounds that take turns: an answer in one piece, and a
stream of 52 chunks, with some requests at once on kept connections. See docs/decisions/0010.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import uvloop
from harness import body, machine, upstream

from sublet.gateway.wire import Wire

_AT_ONCE: Final = 16
_PATH: Final = "/v1/chat/completions"
Ask = Callable[[bool], Awaitable[int]]  # streamed or not; returns how many bytes came


async def measure(ask: Ask, *, stream: bool, requests: int) -> float:
    """Return milliseconds of CPU a request."""
    left = requests

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            assert await ask(stream) > 100

    began = time.process_time()
    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    return 1000 * (time.process_time() - began) / requests


async def compare(url: str, *, rounds: int, requests: int) -> dict[str, float]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    address = parts.hostname, parts.port
    bodies = {stream: body(stream=stream).encode() for stream in (False, True)}
    wire = Wire()

    async def own(stream: bool) -> int:
        data = bodies[stream]
        head = (
            f"POST {_PATH} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer x\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        answer = await wire.send(address, head.encode() + data, silence_seconds=30)
        size = 0
        while part := await answer.read():
            size += len(part)
        answer.close(said_all=True)
        return size

    found: dict[str, list[float]] = {}
    async with aiohttp.ClientSession() as session:

        async def general(stream: bool) -> int:
            headers = {"authorization": "Bearer x", "content-type": "application/json"}
            size = 0
            async with session.post(url + _PATH, data=bodies[stream], headers=headers) as answer:
                async for part in answer.content.iter_any():
                    size += len(part)
            return size

        clients: dict[str, Ask] = {"own": own, "aiohttp": general}
        for ask in clients.values():  # warm up
            await measure(ask, stream=True, requests=200)
        for _ in range(rounds):
            for stream in (False, True):
                for name, ask in clients.items():
                    took = await measure(ask, stream=stream, requests=requests)
                    found.setdefault(f"{name}_{'stream' if stream else 'whole'}_ms", []).append(
                        took
                    )
    wire.close()
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one flat object")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000, help="of each kind, a round")
    given = parser.parse_args()
    load = machine()
    with upstream() as (_, url), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(compare(url, rounds=given.rounds, requests=given.requests)) | load
    if given.json:
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))
    else:
        for name, value in found.items():
            print(f"{name:<20} {value:>10.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
