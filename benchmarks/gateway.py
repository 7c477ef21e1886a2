"""What a model request costs through Sublet's gateway, beside others, in one run.

    python benchmarks/gateway.py                        a table: ours, and a bare proxy; 3 minutes
    python benchmarks/gateway.py --peers FOLDER         beside litellm[proxy], ferrogw and smg, each in a
                                                        virtual environment of its own in FOLDER, made there
                                                        if it is not (litellm's takes minutes); 8 minutes
    python benchmarks/gateway.py --only sublet smg --peers FOLDER
    python benchmarks/gateway.py --json                 a list with one object a gateway
    python benchmarks/gateway.py --requests 1000000     and how our memory grows over so many

All of them hand requests on to the same model server, which answers at once: 52 tokens, whole or
as a stream of 52 events. Ours looks up a key, holds money, settles it, and keeps the books in a
PostgreSQL that waits for the disk at every commit; the others do none of that, and `bare` does
nothing at all. Load, model server, database and gateway share the processors. Processor time is
that of the gateway's processes alone; PostgreSQL's is shown apart.

All run at the same time, and are asked one after the other, round by round: what else the machine
does meets all alike. Of the rounds the median counts. What is added is the difference to asking the
model server itself, at half the rate that this gateway reaches, until the first bytes of an answer.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from harness import (
    MODEL,
    ROOT,
    cpu_seconds,
    deploy,
    gateway,
    load,
    machine,
    postmaster,
    rss_bytes,
    server,
    stock,
    upstream,
    wait_for,
)
from paced import first_bytes, percentile

from sublet.core.db import Database
from sublet.core.net import free_port

TENANTS: Final = 200
PATH: Final = "/v1/chat/completions"
# What is compared with. Never 1.82.7 or 1.82.8 of litellm: they had been tampered with.
PEERS: Final = {"smg": "smg", "ferrogw": "ferrogw", "litellm": "litellm[proxy]>=1.83"}


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
def sublet(straight: str, workers: int) -> Iterator[Candidate]:
    with (
        server() as (postgres, folder),
        Database(postgres.url, connections=4, wait_seconds=30) as db,
    ):
        made = stock(db, TENANTS)
        deploy(db, straight)
        with gateway(postgres.url, folder, workers=workers) as (process, url):
            name = "sublet" if workers == 1 else f"sublet, {workers} workers"
            pid = postmaster(postgres)
            yield Candidate(
                name, process.pid, url, made.keys, database=lambda: cpu_seconds(pid, ended=True)
            )


# ── others ───────────────────────────────────────────────────────────────────────────────


def installed(peers: Path, name: str) -> Path:
    """Return where its programs are, in a virtual environment that is made if it is not there.

    Raises:
        OSError: it cannot be installed.
    """
    programs = peers / name / "bin"
    if not (programs / name).exists():
        print(f"installing {name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", peers / name], check=True)
        done = subprocess.run(
            [programs / "python", "-m", "pip", "install", "--quiet", PEERS[name]],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise OSError(done.stderr)
    return programs


@contextlib.contextmanager
def _process(
    name: str, folder: Path, port: int, command: Sequence[str | Path], *, seconds: float = 120,
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


def bare(folder: Path, straight: str) -> AbstractContextManager[Candidate]:
    port = free_port()
    command = [sys.executable, ROOT / "benchmarks" / "bare_proxy.py", str(port), straight]
    return _process("bare", folder, port, command)


def litellm(folder: Path, straight: str, programs: Path) -> AbstractContextManager[Candidate]:
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n"
        f"      model: openai/{MODEL}\n      api_base: {straight}/v1\n      api_key: none\n"
    )
    variables = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would fetch prices
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    command = [
        programs / "litellm", "--config", config, "--port", str(port), "--host", "127.0.0.1",
        "--num_workers", "1",
    ]  # fmt: skip
    return _process("litellm", folder, port, command, variables=variables, seconds=180)


def smg(folder: Path, straight: str, programs: Path) -> AbstractContextManager[Candidate]:
    port = free_port()
    command = [
        programs / "smg", "launch", "--host", "127.0.0.1", "--port", str(port),
        "--worker-urls", straight, "--prometheus-port", str(free_port()),
    ]  # fmt: skip
    return _process("smg", folder, port, command)


def ferrogw(folder: Path, straight: str, programs: Path) -> AbstractContextManager[Candidate]:
    port = free_port()
    config = folder / "ferrogw.yaml"
    config.write_text("strategy:\n  mode: single\ntargets:\n  - virtual_key: openai\n")
    variables = {
        "PORT": str(port), "GATEWAY_CONFIG": str(config), "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": straight, "MASTER_KEY": "benchmark-key", "ALLOW_UNAUTHENTICATED_PROXY": "true",
        "RATE_LIMIT_RPS": "1000000", "RATE_LIMIT_BURST": "1000000",
    }  # fmt: skip
    return _process(
        "ferrogw", folder, port, [programs / "ferrogw", "serve"], variables=variables,
        model="gpt-4o", key="benchmark-key",
    )  # fmt: skip


# ── measuring ────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Rounds:
    """What was found of one gateway, a number a round in each list."""

    one: Candidate
    cpu_ms_per_request: list[float] = field(default_factory=list)
    cpu_ms_per_stream: list[float] = field(default_factory=list)
    rps: list[float] = field(default_factory=list)
    streams_per_s: list[float] = field(default_factory=list)
    database_cpu_ms_per_request: list[float] = field(default_factory=list)
    added_ms_p50: list[float] = field(default_factory=list)
    added_ms_p99: list[float] = field(default_factory=list)
    first_token_ms_p50: list[float] = field(default_factory=list)
    first_token_ms_p99: list[float] = field(default_factory=list)
    rss_mb: float = 0.0
    more: dict[str, float] = field(default_factory=dict)

    def found(self) -> dict[str, Any]:
        lists = {
            name: statistics.median(values)
            for name in self.__slots__
            if isinstance(values := getattr(self, name), list) and values
        }
        return {"name": self.one.name, **lists, "rss_mb": self.rss_mb, **self.more}


class Bench:
    def __init__(self, folder: Path, straight: str, given: argparse.Namespace) -> None:
        self._folder = folder
        self._straight = straight
        self._given = given

    def _ask(self, one: Candidate, *, stream: bool, seconds: float) -> tuple[float, float, float]:
        """Ask as fast as it answers.

        Returns:
            requests a second, and milliseconds of processor time a request: its own, and its
            database's.

        Raises:
            RuntimeError: it refused some.
        """
        before = cpu_seconds(one.pid, ended=True)
        books = one.database() if one.database else 0.0
        done = load(
            one.url, one.keys, self._folder, seconds=seconds, stream=stream, model=one.model,
            connections=self._given.connections,
        )  # fmt: skip
        if done.refused or not done.requests:
            raise RuntimeError(f"{done.refused} of {done.requests} were refused")
        own = cpu_seconds(one.pid, ended=True) - before
        other = (one.database() if one.database else 0.0) - books
        return done.per_second, 1000 * own / done.requests, 1000 * other / done.requests

    def warm(self, one: Candidate) -> None:
        for stream in (False, True):
            self._ask(one, stream=stream, seconds=2)

    def round(self, rounds: Rounds) -> None:
        one, seconds = rounds.one, self._given.seconds
        rate, own, books = self._ask(one, stream=False, seconds=seconds)
        rounds.rps.append(rate)
        rounds.cpu_ms_per_request.append(own)
        if one.database is not None:
            rounds.database_cpu_ms_per_request.append(books)
        rate, own, _ = self._ask(one, stream=True, seconds=seconds)
        rounds.streams_per_s.append(rate)
        rounds.cpu_ms_per_stream.append(own)

    def added(self, rounds: Rounds) -> None:
        one = rounds.one
        for stream, rates, p50, p99 in (
            (False, rounds.rps, rounds.added_ms_p50, rounds.added_ms_p99),
            (True, rounds.streams_per_s, rounds.first_token_ms_p50, rounds.first_token_ms_p99),
        ):
            pace = statistics.median(rates) / 2
            both = [
                first_bytes(
                    url + PATH, one.keys, model=one.model, pace=pace, seconds=self._given.seconds,
                    stream=stream,
                )
                for url in (self._straight, one.url)
            ]  # fmt: skip
            for share, values in ((0.5, p50), (0.99, p99)):
                direct, through = (percentile(took, share) for took in both)
                values.append(through - direct)

    def growth(self, one: Candidate) -> float:
        """Return how much memory grew from a fifth of the requests to the end."""
        wanted = self._given.requests
        done, first = 0, 0
        while done < wanted:
            done += load(
                one.url, one.keys, self._folder, seconds=10, connections=self._given.connections
            ).requests
            if not first and done >= wanted / 5:
                first = rss_bytes(one.pid)
        return rss_bytes(one.pid) / first - 1


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    with contextlib.ExitStack() as stack:
        _, straight = stack.enter_context(upstream())
        _, folder = stack.enter_context(server())
        makers: dict[str, Callable[[], AbstractContextManager[Candidate]]] = {
            "sublet": lambda: sublet(straight, 1),
            "sublet, 2 workers": lambda: sublet(straight, 2),
            "bare": lambda: bare(folder, straight),
        }
        if given.peers is not None:
            peers = given.peers.resolve()
            makers |= {
                "smg": lambda: smg(folder, straight, installed(peers, "smg")),
                "ferrogw": lambda: ferrogw(folder, straight, installed(peers, "ferrogw")),
                "litellm": lambda: litellm(folder, straight, installed(peers, "litellm")),
            }
        bench = Bench(folder, straight, given)
        all_rounds: dict[str, Rounds] = {}

        def attempt(name: str, work: Callable[[], None]) -> None:
            try:
                work()
            except (AssertionError, RuntimeError, OSError) as error:
                print(f"{name} is left out: {str(error)[-600:]}", file=sys.stderr)
                all_rounds.pop(name, None)

        def start(name: str) -> None:
            all_rounds[name] = Rounds(stack.enter_context(makers[name]()))
            bench.warm(all_rounds[name].one)

        for name in makers if given.only is None else given.only:
            attempt(name, partial(start, name))
        for step in (bench.round, bench.added):
            for _ in range(given.rounds):
                for name, rounds in list(all_rounds.items()):
                    attempt(name, partial(step, rounds))
        for rounds in all_rounds.values():
            rounds.rss_mb = rss_bytes(rounds.one.pid) / 1e6
        if given.requests and (ours := all_rounds.get("sublet")):
            ours.more["rss_growth_share"] = bench.growth(ours.one)
        return [rounds.found() for rounds in all_rounds.values()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16, help="at once")
    parser.add_argument("--requests", type=int, default=0, help="for our memory's growth")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="of virtual environments")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of them all, these alone")
    given = parser.parse_args()
    before = machine()
    results = run(given)
    if given.json:
        rounded = [
            {k: round(v, 3) if isinstance(v, float) else v for k, v in one.items()}
            for one in results
        ]
        print(json.dumps(rounded))
        return 0
    for one in results:
        print(one.pop("name"))
        for name, value in one.items():
            print(f"    {name:<30} {value:>12,.3f}")
    print(before, {"load_after": machine()["load_before"]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
