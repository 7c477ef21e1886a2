"""How many streams one gateway process has open at the same time, and what each costs.

    python benchmarks/streams.py                                  5,000 streams, an event of each every 2 s
    python benchmarks/streams.py --streams 1000 --gap 0.5 --json

The gateway has one worker, money on, PostgreSQL with fsync; every stream has a connection of its own, of one
of 200 tenants. They are opened over some seconds, then all are open and get events, then they end.
Memory is the gateway's once all are open, less before the first, over their number; processor time is
what the gateway took while all were open, over the events that came.
"""

import argparse
import asyncio
import json
import resource
import sys
from dataclasses import dataclass, field
from typing import Any, Final, cast
from urllib.parse import urlsplit

import uvloop
from harness import (
    body,
    cpu_seconds,
    deploy,
    gateway,
    load,
    machine,
    rss_bytes,
    server,
    stock,
    upstream,
)
from paced import percentile

from sublet.core.db import Database

TENANTS: Final = 200
PATH: Final = "/v1/chat/completions"


@dataclass(slots=True)
class Tally:
    """What came to all clients together."""

    open: int = 0  # have had a first event, and not the last
    most_open: int = 0
    events: int = 0
    whole: int = 0  # ended as they should
    broken: list[str] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    def __init__(self, request: bytes, tally: Tally, ended: asyncio.Future[None]) -> None:
        self._request = request
        self._tally = tally
        self._ended = ended
        self._tail = b""
        self._answered = self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._asked_at = self._loop.time()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        tally = self._tally
        if not self._answered and not data.startswith(b"HTTP/1.1 200 "):
            tally.broken.append(data[:300].decode(errors="replace"))
            self._transport.close()
            return
        self._answered = True
        if not self._begun and b"data: " in data:
            self._begun = True
            tally.first_ms.append(1000 * (self._loop.time() - self._asked_at))
            tally.open += 1
            tally.most_open = max(tally.most_open, tally.open)
        tally.events += data.count(b"data: ")
        self._tail = (self._tail + data)[-32:]
        if b"[DONE]" in self._tail:
            tally.whole += 1
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._tally.open -= self._begun
        self._ended.set_result(None)


async def open_all(
    url: str, keys: list[str], number: int, per_second: float, tally: Tally
) -> list[asyncio.Future[None]]:
    loop = asyncio.get_running_loop()
    parts = urlsplit(url)
    assert parts.hostname, url
    data = body(stream=True).encode()
    ends = []
    began = loop.time()
    for turn in range(number):
        key = keys[turn % len(keys)]
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        ended = loop.create_future()
        ends.append(ended)
        await loop.create_connection(
            lambda head=head, ended=ended: Client(head.encode() + data, tally, ended),
            parts.hostname, parts.port or 80,
        )  # fmt: skip
        if (wait := began + turn / per_second - loop.time()) > 0:
            await asyncio.sleep(wait)
    return ends


async def measure(url: str, keys: list[str], pid: int, given: argparse.Namespace) -> dict[str, Any]:
    tally = Tally()
    before = rss_bytes(pid)
    ends = await open_all(url, keys, given.streams, given.ramp, tally)
    # The last ones have their first event soon, and then all are open.
    for _ in range(120):
        if len(tally.first_ms) + len(tally.broken) >= given.streams:
            break
        await asyncio.sleep(0.25)
    open_now, memory = tally.open, rss_bytes(pid)
    loop = asyncio.get_running_loop()
    began, events, cpu = loop.time(), tally.events, cpu_seconds(pid)
    await asyncio.sleep(given.seconds)
    took, came, spent = loop.time() - began, tally.events - events, cpu_seconds(pid) - cpu
    still_open = tally.open
    await asyncio.wait(ends, timeout=given.seconds + 600)
    if tally.broken:
        print(f"broken: {tally.broken[0]}", file=sys.stderr)
    return {
        "streams": given.streams,
        "open_at_once": min(open_now, still_open),
        "whole": tally.whole,
        "broken": given.streams - tally.whole,
        "kb_per_stream": (memory - before) / 1000 / given.streams,
        "rss_mb": memory / 1e6,
        "rss_mb_after": rss_bytes(pid) / 1e6,
        "events_per_s": came / took,
        "cpu_share": spent / took,
        "cpu_ms_per_event": 1000 * spent / max(1, came),
        "first_event_ms_p50": percentile(tally.first_ms, 0.5),
        "first_event_ms_p99": percentile(tally.first_ms, 0.99),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--streams", type=int, default=5000)
    parser.add_argument("--gap", type=float, default=2.0, help="seconds between a stream's events")
    parser.add_argument("--ramp", type=float, default=250, help="streams opened a second")
    parser.add_argument("--seconds", type=float, default=20, help="to measure, all of them open")
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Long enough that the first is still there when the last was measured, on a busy machine, too.
    chunks = int((1.5 * given.streams / given.ramp + given.seconds + 30) / given.gap) + 2
    with (
        upstream(chunks=chunks, gap_ms=1000 * given.gap) as (_, straight),
        server() as (postgres, folder),
        Database(postgres.url, connections=4, wait_seconds=30) as db,
    ):
        before = machine()
        made = stock(db, TENANTS)
        deploy(db, straight)
        with gateway(postgres.url, folder) as (process, url):
            load(url, made.keys, folder, seconds=3, connections=16)  # it warms up
            found = uvloop.run(measure(url, made.keys, process.pid, given))
    found = {name: round(value, 3) for name, value in (found | before).items()}
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<24} {value:>12,.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
