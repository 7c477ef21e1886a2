"""What a model request costs through Sublet's gateway, beside others, in one run.

    python benchmarks/gateway.py                        a table, some minutes
    python benchmarks/gateway.py --json                 a list with one object a gateway
    python benchmarks/gateway.py --peers FOLDER         a virtual environment with litellm[proxy],
                                                        ferrogw and smg, or some of them
    python benchmarks/gateway.py --requests 1000000     how our memory grows over so many

All of them hand requests on to the same model server, which answers at once: 52 tokens, whole or
as a stream of 52 events. Ours looks up a key, holds money, settles it, and keeps the books in a
PostgreSQL that waits for the disk at every commit; the others do none of that, and `bare` does
nothing at all. Load, model server, database and gateway share the processors. Processor time is
that of the gateway's processes alone; PostgreSQL's is shown apart.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from harness import (
    MODEL,
    ROOT,
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
    wait_for,
)

from sublet.core.db import Database
from sublet.core.net import free_port

TENANTS: Final = 200
PATH: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A gateway that runs: its process, where it listens, and keys that it takes."""

    name: str
    pid: int
    url: str
    keys: Sequence[str]
    model: str = MODEL
    database: Callable[[], float] | None = None  # seconds of its database's processor time


@contextlib.contextmanager
def sublet(folder: Path, straight: str, workers: int) -> Iterator[Candidate]:
    with server() as (postgres, _), Database(postgres.url, connections=4, wait_seconds=30) as db:
        made = stock(db, TENANTS)
        deploy(db, straight)
        with gateway(postgres.url, folder, workers=workers) as (process, url):

            def database() -> float:
                return sum(cpu_seconds(pid) for pid in _named(b"postgres"))

            name = "sublet" if workers == 1 else f"sublet, {workers} workers"
            yield Candidate(name, process.pid, url, made.keys, database=database)


def _named(name: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "comm").read_bytes().strip() == name:
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def _process(
    name: str, folder: Path, port: int, command: Sequence[str | Path], *, seconds: float = 90,
    variables: dict[str, str] | None = None, model: str = MODEL, key: str = "none",
) -> Iterator[Candidate]:  # fmt: skip
    path = folder / f"{name}.log"
    with path.open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=os.environ | (variables or {})
        )
    try:
        wait_for(port, path, seconds=seconds)
        time.sleep(2)
        yield Candidate(name, process.pid, f"http://127.0.0.1:{port}", [key], model)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def bare(folder: Path, straight: str) -> contextlib.AbstractContextManager[Candidate]:
    port = free_port()
    command = [sys.executable, ROOT / "benchmarks" / "bare_proxy.py", str(port), straight]
    return _process("bare", folder, port, command)


def litellm(
    folder: Path, straight: str, peers: Path
) -> contextlib.AbstractContextManager[Candidate]:
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n"
        f"      model: openai/{MODEL}\n      api_base: {straight}/v1\n      api_key: none\n"
    )
    command = [
        peers / "bin" / "litellm", "--config", config, "--port", str(port), "--host", "127.0.0.1",
        "--num_workers", "1",
    ]  # fmt: skip
    return _process("litellm", folder, port, command)


def smg(folder: Path, straight: str, peers: Path) -> contextlib.AbstractContextManager[Candidate]:
    port = free_port()
    command = [
        peers / "bin" / "smg", "launch", "--host", "127.0.0.1", "--port", str(port),
        "--worker-urls", straight, "--prometheus-port", str(free_port()),
    ]  # fmt: skip
    return _process("smg", folder, port, command)


def ferrogw(
    folder: Path, straight: str, peers: Path
) -> contextlib.AbstractContextManager[Candidate]:
    port = free_port()
    config = folder / "ferrogw.yaml"
    config.write_text("strategy:\n  mode: single\ntargets:\n  - virtual_key: openai\n")
    variables = {
        "PORT": str(port), "GATEWAY_CONFIG": str(config), "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": straight, "MASTER_KEY": "benchmark-key", "ALLOW_UNAUTHENTICATED_PROXY": "true",
    }  # fmt: skip
    return _process(
        "ferrogw", folder, port, [peers / "bin" / "ferrogw", "serve"], variables=variables,
        model="gpt-4o", key="benchmark-key",
    )  # fmt: skip


# ── measuring ────────────────────────────────────────────────────────────────────────────


def measure(
    one: Candidate, folder: Path, straight: str, given: argparse.Namespace
) -> dict[str, Any]:
    found: dict[str, Any] = {"name": one.name}
    seconds = given.seconds

    def ask(*, stream: bool, long: float) -> tuple[float, float, float]:
        """Return requests a second, and milliseconds of processor time a request: its own, its database's."""
        before = cpu_seconds(one.pid)
        books = one.database() if one.database else 0.0
        done = load(
            one.url, one.keys, folder, seconds=long, connections=given.connections,
            stream=stream, model=one.model,
        )  # fmt: skip
        if done.refused:
            raise RuntimeError(f"{done.refused} of {done.requests} were refused")
        own = 1000 * (cpu_seconds(one.pid) - before) / done.requests
        other = 1000 * ((one.database() if one.database else 0.0) - books) / done.requests
        return done.per_second, own, other

    ask(stream=False, long=3)  # it warms up
    whole = [ask(stream=False, long=seconds) for _ in range(given.rounds)]
    ask(stream=True, long=2)
    streams = [ask(stream=True, long=seconds) for _ in range(given.rounds)]
    found["cpu_ms_per_request"] = statistics.median(own for _, own, _ in whole)
    found["cpu_ms_per_stream"] = statistics.median(own for _, own, _ in streams)
    found["rps"] = statistics.median(rate for rate, _, _ in whole)
    found["streams_per_s"] = statistics.median(rate for rate, _, _ in streams)
    if one.database is not None:
        found["database_cpu_ms_per_request"] = statistics.median(other for _, _, other in whole)
    pace = max(10.0, found["rps"] / 2)
    for field, part in (("added", False), ("first_token", True)):
        direct = [asyncio.run(paced(straight, one, pace, seconds, stream=part)) for _ in range(2)]
        through = [asyncio.run(paced(one.url, one, pace, seconds, stream=part)) for _ in range(2)]
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            found[f"{field}_ms_{name}"] = statistics.median(
                percentile(ours, share) for ours in through
            ) - statistics.median(percentile(theirs, share) for theirs in direct)
    found["rss_mb"] = rss_bytes(one.pid) / 1e6
    if given.requests and one.name == "sublet":
        found["rss_growth_share"] = growth(one, folder, given)
    return found


async def paced(
    url: str, one: Candidate, pace: float, seconds: float, *, stream: bool
) -> list[float]:
    """Return what each of a steady stream of requests took until its first bytes, in ms."""
    took: list[float] = []
    data = body(stream=stream, model=one.model).encode()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(key: str) -> None:
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            began = time.perf_counter()
            async with session.post(url + PATH, data=data, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                await answer.content.readany()
                took.append(1000 * (time.perf_counter() - began))
                await answer.read()

        running = []
        began = time.perf_counter()
        for number in range(int(seconds * pace)):
            running.append(asyncio.create_task(ask(one.keys[number % len(one.keys)])))
            await asyncio.sleep(max(0, began + number / pace - time.perf_counter()))
        await asyncio.gather(*running)
    return took[len(took) // 5 :]  # the first of them warm up


def percentile(took: list[float], part: float) -> float:
    return sorted(took)[min(len(took) - 1, int(part * len(took)))]


def growth(one: Candidate, folder: Path, given: argparse.Namespace) -> float:
    """Return how much memory grew from a fifth of the requests to the end."""
    done, first = 0, 0
    while done < given.requests:
        done += load(one.url, one.keys, folder, seconds=10, connections=given.connections).requests
        if not first and done >= given.requests / 5:
            first = rss_bytes(one.pid)
    return rss_bytes(one.pid) / first - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16, help="at once")
    parser.add_argument("--requests", type=int, default=0, help="for our memory's growth")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="a virtual environment")
    given = parser.parse_args()
    results = []
    with upstream() as (_, straight), server() as (_, folder):
        makers: list[tuple[str, Callable[[], contextlib.AbstractContextManager[Candidate]]]] = [
            ("sublet", lambda: sublet(folder, straight, 1)),
            ("sublet, 2 workers", lambda: sublet(folder, straight, 2)),
            ("bare", lambda: bare(folder, straight)),
        ]
        for name, make in (("smg", smg), ("ferrogw", ferrogw), ("litellm", litellm)):
            if given.peers is not None and (given.peers / "bin" / name).exists():
                makers.append(
                    (name, lambda make=make: make(folder, straight, given.peers.resolve()))
                )
        for name, make in makers:
            try:
                with make() as one:
                    results.append(measure(one, folder, straight, given))
            except (AssertionError, RuntimeError, OSError, aiohttp.ClientError) as error:
                print(f"{name} is left out: {str(error)[-400:]}", file=sys.stderr)
    if given.json:
        print(
            json.dumps(
                [
                    {k: round(v, 3) if isinstance(v, float) else v for k, v in one.items()}
                    for one in results
                ]
            )
        )
    else:
        for one in results:
            print(one.pop("name"))
            for field, value in one.items():
                print(f"    {field:<30} {value:>12,.3f}")
        print(machine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
