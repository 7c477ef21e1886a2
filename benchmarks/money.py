"""How many requests' money this machine can hold, settle and hand over in a second.

    python benchmarks/money.py                       a table, about ten minutes
    python benchmarks/money.py --json                one flat object
    python benchmarks/money.py --loaded 0            without the 10-million-transfer database
    python benchmarks/money.py --pgledger FOLDER     a checkout of pgledger, run beside

Everything runs here, on a PostgreSQL of its own that waits for the disk at every commit:
server, gateway, a model server that answers at once, and the load (wrk). So they share the
processors, and the load's own work is part of every figure. Each figure is the median of some
rounds. At the end the auditors look at every transfer and charge: a figure is worth nothing
otherwise. Figures of the filled database begin with `loaded_`.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

import aiohttp
import psycopg
from harness import (
    MODEL,
    Stock,
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
from ledger_of import fill

from sublet.core.audit import Findings
from sublet.core.clock import SystemClock
from sublet.core.db import Database
from sublet.core.ids import new_id
from sublet.core.postgres import find_binaries
from sublet.gateway.cashier import Cashier
from sublet.gateway.grant import Grant, Need
from sublet.gateway.purse import Held  # noqa: TC001
from sublet.gateway.spool import Spool
from sublet.gateway.tariff import Counts
from sublet.gateway.till import Refill, Till, Turn
from sublet.ledger import audit as ledger_audit
from sublet.metering import audit as metering_audit
from sublet.metering.report import Report
from sublet.metering.usage import Outcome, Usage
from sublet.tenants.tenant import Tenant

PACE_PER_S: Final = 100  # at which the added time is measured
_BATCH: Final = 500
_WHAT: Final = {
    "pgbench_tps": "pgbench's simple update on the same server, transactions/s",
    "pgledger_per_s": "pgledger: hold + settle on the same server, pairs/s",
    "pairs_per_s_library": "hold + settle through the cashier, handed over, pairs/s",
    "hot_tenant_holds_per_s": "holds of one hot tenant, holds/s",
    "events_per_s": "reports written to the spool and handed over, reports/s",
    "pairs_per_s_http": "whole requests over HTTP through one gateway's port, requests/s",
    "gateway_cpu_ms": "the same: CPU of the gateway a request, ms",
    "added_ms_p50": f"what a gateway adds at {PACE_PER_S} requests/s of 1,000 tenants, median, ms",
    "added_ms_p99": "the same, p99, ms",
    "disk_ms_p50": f"the disk itself, {PACE_PER_S} small writes/s meanwhile, each confirmed, median, ms",
    "disk_ms_p99": "the same, p99, ms",
    "rss_growth_share": "growth of the gateway's memory over the last 4/5 of its requests",
}


@dataclass(slots=True, kw_only=True)
class Bench:
    """One database, some tenants, and what they buy."""

    db: Database
    url: str
    folder: Path
    stock: Stock
    seconds: float
    rounds: int
    workers: int
    sequence: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    turn: Iterator[int] = field(default_factory=itertools.count)

    def next_tenant(self) -> Tenant:
        return self.stock.tenants[next(self.turn) % len(self.stock.tenants)]

    def need(self) -> Need:
        return Need(
            prompt_tokens=60, counted=False, max_tokens=100, context_left=4095,
            tariff=self.stock.tariff,
        )  # fmt: skip

    def report(self, tenant: Tenant, source: UUID) -> Report:
        counts = Counts(input_tokens=8, cache_read_tokens=2, output_tokens=50)
        id_ = new_id()
        usage = Usage(
            id=id_,
            source=f"gateway:{source}",
            sequence=next(self.sequence),
            tenant_id=tenant.id,
            model=MODEL,
            request_id=f"req_{id_.hex}",
            input_tokens=counts.input_tokens,
            cache_read_tokens=counts.cache_read_tokens,
            output_tokens=counts.output_tokens,
            delivered_tokens=counts.output_tokens,
            outcome=Outcome.COMPLETED,
            happened_at=datetime.now(UTC),
        )
        return Report.write(usage, self.stock.tariff.lines(counts))

    # ── the cashier, in this process ─────────────────────────────────────────────────────

    def with_cashier(self, go: Callable[[Cashier, UUID], Awaitable[float]]) -> float:
        source = new_id()
        till = Till(self.db, holder=f"gateway:benchmark:{source}", clock=SystemClock())
        spool = Spool(self.folder / "library", source)
        spool.open()
        cashier = Cashier(till, spool)

        async def run() -> float:
            watch = asyncio.create_task(cashier.watch())
            try:
                return await go(cashier, source)
            finally:
                watch.cancel()
                assert await cashier.drain(60) == 0

        try:
            return asyncio.run(run())
        finally:
            cashier.stop()
            spool.close()

    def pairs(self, callers: int) -> float:
        """Return pairs a second of many callers over all tenants, until all is handed over."""

        async def go(cashier: Cashier, source: UUID) -> float:
            began, done = time.perf_counter(), 0

            async def call() -> None:
                nonlocal done
                while time.perf_counter() - began < self.seconds:
                    tenant = self.next_tenant()
                    grant = await cashier.hold(tenant.id, self.need())
                    await cashier.settle(grant, self.report(tenant, source))
                    done += 1

            await asyncio.gather(*(call() for _ in range(callers)))
            assert await cashier.drain(60) == 0
            return done / (time.perf_counter() - began)

        return self.with_cashier(go)

    def hot_holds(self, callers: int) -> float:
        async def go(cashier: Cashier, _: UUID) -> float:
            tenant = self.next_tenant()
            began = time.perf_counter()
            grants: list[Grant] = []

            async def call() -> None:
                while time.perf_counter() - began < self.seconds:
                    grants.append(await cashier.hold(tenant.id, self.need()))
                    await asyncio.sleep(0)

            await asyncio.gather(*(call() for _ in range(callers)))
            rate = len(grants) / (time.perf_counter() - began)
            for grant in grants:
                cashier.release(tenant.id, grant)
            return rate

        return self.with_cashier(go)

    def events(self) -> float:
        """Return reports a second from the spool's disk into the ledger, each charged."""
        source = new_id()
        till = Till(self.db, holder=f"gateway:benchmark:{source}", clock=SystemClock())
        spool = Spool(self.folder / "events", source)
        spool.open()
        tenants = self.stock.tenants[:50]
        held: dict[UUID, Held] = {}
        refills = [
            Refill(
                tenant_id=tenant.id, before=None, free=0, needs=[self.need()], extra=10**12,
                next_id=new_id(),
            )
            for tenant in tenants
        ]  # fmt: skip
        till.refill(refills)
        for refill in refills:
            assert refill.after is not None
            held[refill.tenant_id] = refill.after
        number = max(20, int(self.seconds * 20))
        batches = [
            [self.report(tenants[each % 50], source) for each in range(_BATCH)]
            for _ in range(number)
        ]
        written: queue.Queue[tuple[list[Report], int] | None] = queue.Queue(4)

        def write() -> None:
            for reports in batches:
                written.put((reports, spool.write(reports)))
            written.put(None)

        # As a gateway does: one thread writes to the disk, and another hands over behind it.
        began = time.perf_counter()
        writer = threading.Thread(target=write)
        writer.start()
        while (found := written.get()) is not None:
            reports, file = found
            spent: dict[UUID, int] = {}
            for report in reports:
                spent[report.tenant_id] = spent.get(report.tenant_id, 0) + report.nanos
            turns = [
                Turn(
                    tenant_id=id_,
                    before=held[id_],
                    keep=held[id_].nanos - nanos,
                    next_id=new_id(),
                    stays=True,
                )
                for id_, nanos in spent.items()
            ]
            till.hand_over(reports, turns)
            for turn in turns:
                assert turn.after is not None
                held[turn.tenant_id] = turn.after
            spool.forget(file, len(reports))
        writer.join()
        rate = number * _BATCH / (time.perf_counter() - began)
        till.give_back([one.id for one in held.values()])
        spool.close()
        return rate

    # ── over HTTP ────────────────────────────────────────────────────────────────────────

    async def paced(self, url: str) -> list[float]:
        """Return what each of a steady stream of requests took, in ms."""
        took: list[float] = []
        keys = itertools.cycle(self.stock.keys)
        data = body().encode()
        async with aiohttp.ClientSession() as session:

            async def one() -> None:
                began = time.perf_counter()
                headers = {
                    "authorization": f"Bearer {next(keys)}", "content-type": "application/json",
                }  # fmt: skip
                async with session.post(url, data=data, headers=headers) as answer:
                    await answer.read()
                    assert answer.status == 200, await answer.text()
                took.append(1000 * (time.perf_counter() - began))

            running = []
            began = time.perf_counter()
            for number in range(int(2 * max(self.seconds, 4) * PACE_PER_S)):
                running.append(asyncio.create_task(one()))
                await asyncio.sleep(max(0, began + number / PACE_PER_S - time.perf_counter()))
            await asyncio.gather(*running)
        return took[PACE_PER_S:]  # the first second warms up

    def http(self, found: dict[str, float], requests: int, connections: int) -> None:
        """Measure through one gateway: rate, CPU, added time, memory."""
        with (
            upstream() as (_, straight),
            contextlib.ExitStack() as stack,
        ):
            deploy(self.db, straight)
            process, url = stack.enter_context(gateway(self.url, self.folder, workers=self.workers))
            path = "/v1/chat/completions"
            keys = self.stock.keys
            self.warm(url, connections)
            rates, cpu = [], []
            for _ in range(self.rounds):
                before = cpu_seconds(process.pid)
                done = load(
                    url, keys, self.folder, seconds=max(2, self.seconds), connections=connections
                )
                assert not done.refused, done
                rates.append(done.per_second)
                cpu.append(1000 * (cpu_seconds(process.pid) - before) / done.requests)
            found["pairs_per_s_http"] = statistics.median(rates)
            found["gateway_cpu_ms"] = statistics.median(cpu)
            added: dict[float, list[float]] = {0.5: [], 0.99: []}
            disk: dict[float, list[float]] = {0.5: [], 0.99: []}
            for _ in range(self.rounds):
                # While nothing goes through the gateway, so that neither waits for the other.
                with self.disk() as confirmed:
                    direct = asyncio.run(self.paced(straight + path))
                through = asyncio.run(self.paced(url + path))
                for part, values in added.items():
                    values.append(percentile(through, part) - percentile(direct, part))
                    disk[part].append(percentile(confirmed, part))
            found["added_ms_p50"] = statistics.median(added[0.5])
            found["added_ms_p99"] = statistics.median(added[0.99])
            found["disk_ms_p50"] = statistics.median(disk[0.5])
            found["disk_ms_p99"] = statistics.median(disk[0.99])
            if requests:
                found["rss_growth_share"] = self.growth(process.pid, url, requests, connections)

    @contextlib.contextmanager
    def disk(self) -> Iterator[list[float]]:
        """Meanwhile write as a spool does, at the pace; the ms that each write took to be safe."""
        took: list[float] = []
        done = threading.Event()
        with (self.folder / "disk").open("wb", buffering=0) as file:
            file.write(bytes(4 << 20))
            os.fsync(file.fileno())
            file.seek(0)

            def write() -> None:
                while not done.wait(1 / PACE_PER_S):
                    began = time.perf_counter()
                    file.write(b"x" * 600)
                    os.fdatasync(file.fileno())
                    took.append(1000 * (time.perf_counter() - began))

            thread = threading.Thread(target=write)
            thread.start()
            try:
                yield took
            finally:
                done.set()
                thread.join()

    def warm(self, url: str, connections: int) -> None:
        """Let every tenant come some times: what is measured is a gateway that knows them."""
        done = 0
        while done < 4 * len(self.stock.keys):
            done += load(
                url, self.stock.keys, self.folder, seconds=2, connections=connections
            ).requests

    def growth(self, pid: int, url: str, requests: int, connections: int) -> float:
        """Return how much the gateway's memory grew from a fifth of the requests to the end."""
        done, first = 0, 0
        while done < requests:
            done += load(
                url, self.stock.keys, self.folder, seconds=10, connections=connections
            ).requests
            if not first and done >= requests / 5:
                first = rss_bytes(pid)
        return rss_bytes(pid) / first - 1


def percentile(took: list[float], part: float) -> float:
    return sorted(took)[min(len(took) - 1, int(part * len(took)))]


def pgbench(url: str, seconds: float) -> float:
    out = subprocess.run(
        [
            find_binaries() / "pgbench", "-n", "-N", "-M", "prepared", "-c", "8", "-j", "2",
            "-T", str(max(1, round(seconds))), url,
        ],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found = re.search(r"tps = ([0-9.]+)", out)
    assert found is not None, out
    return float(found[1])


def pgledger(url: str, folder: Path, seconds: float, *, accounts: int, threads: int = 8) -> float:
    """Return holds and settlements a second of pgledger's functions, as its manual does them.

    A hold moves the most from the available to the pending account; a settlement moves what was
    used on to revenue and the rest back, in one call. The two are two transactions, as ours.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute('CREATE DATABASE "pgledger"')
    other = re.sub(r"(?<=/)[^/?]+(?=\?|$)", "pgledger", url, count=1)
    with psycopg.connect(other, autocommit=True) as connection:
        for file in ("vendor/scoville-pgsql-ulid/uuid-to-ulid.sql", "pgledger.sql"):
            connection.execute((folder / file).read_bytes())
        made: list[list[str]] = []
        for each in range(accounts):
            row = []
            for name in ("available", "pending", "revenue"):
                found = connection.execute(
                    "SELECT id FROM pgledger_create_account(%s, 'USD', true, true)",
                    [f"{name} {each}"],
                ).fetchone()
                assert found is not None
                row.append(found[0])
            made.append(row)
    turn, until, done = itertools.count(), time.perf_counter() + seconds, [0] * threads

    def work(number: int) -> None:
        with psycopg.connect(other, autocommit=True) as connection:
            while time.perf_counter() < until:
                available, pending, revenue = made[next(turn) % accounts]
                connection.execute(
                    "SELECT id FROM pgledger_create_transfer(%s, %s, 460)", [available, pending]
                )
                connection.execute(
                    "SELECT id FROM pgledger_create_transfers((%s, %s, 208)::transfer_request,"
                    " (%s, %s, 252)::transfer_request)",
                    [pending, revenue, pending, available],
                )
                done[number] += 1

    began = time.perf_counter()
    running = [threading.Thread(target=work, args=[number]) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


def transfers(url: str) -> int:
    with psycopg.connect(url) as connection:
        there = connection.execute("SELECT to_regclass('transfer') IS NOT NULL").fetchone()
        if there != (True,):
            return 0
        found = connection.execute("SELECT count(*) FROM transfer").fetchone()
        assert found is not None
        return int(found[0])


def audit(db: Database) -> tuple[int, int]:
    """Return (transfers, differences)."""
    findings = Findings()
    with db.transaction() as tx:
        ledger_audit.audit(tx, findings, now=datetime.now(UTC))
        metering_audit.audit(tx, findings, now=datetime.now(UTC))
    for difference in findings.differences[:10]:
        print(difference, file=sys.stderr)
    return findings.counts["money"]["transfers"], len(findings.differences)


def measure(
    given: argparse.Namespace, folder: Path, url: str, *, requests: int
) -> dict[str, float]:
    """Measure everything on a database as it stands, then audit it."""
    found: dict[str, float] = {}
    with Database(url, connections=12, wait_seconds=30) as db:
        bench = Bench(
            db=db, url=url, folder=folder, stock=stock(db, given.tenants),
            seconds=given.seconds, rounds=given.rounds, workers=given.workers,
        )  # fmt: skip
        steps: dict[str, Callable[[], float]] = {
            "pairs_per_s_library": lambda: bench.pairs(given.callers),
            "hot_tenant_holds_per_s": lambda: bench.hot_holds(given.callers),
            "events_per_s": bench.events,
        }
        for name, step in steps.items():
            found[name] = statistics.median(step() for _ in range(given.rounds))
        bench.http(found, requests, given.connections)
        transfers, differences = audit(db)
    return found | {"audited_transfers": transfers, "audited_differences": differences}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one flat object")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--callers", type=int, default=500, help="at once, in the library")
    parser.add_argument("--connections", type=int, default=16, help="at once, over HTTP")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes of the gateway"
    )
    parser.add_argument("--requests", type=int, default=100_000, help="for the memory's growth")
    parser.add_argument(
        "--loaded",
        type=int,
        default=10_000_000,
        metavar="N",
        help="transfers to fill up to; 0: not",
    )
    parser.add_argument(
        "--filled",
        type=Path,
        metavar="FOLDER",
        help="keep the filled database there, or use the one that is there (filling takes minutes)",
    )
    parser.add_argument("--pgledger", type=Path, metavar="FOLDER", help="a checkout of it")
    given = parser.parse_args()
    found: dict[str, float] = {}
    with server() as (postgres, folder):
        subprocess.run(
            [find_binaries() / "pgbench", "-i", "-q", "-s", "10", postgres.url],
            check=True, capture_output=True,
        )  # fmt: skip
        found["pgbench_tps"] = statistics.median(
            pgbench(postgres.url, given.seconds) for _ in range(given.rounds)
        )
        if given.pgledger is None:
            print("without pgledger: give a checkout of it by --pgledger FOLDER", file=sys.stderr)
        else:
            found["pgledger_per_s"] = pgledger(
                postgres.url, given.pgledger, given.seconds, accounts=given.tenants
            )
        found |= measure(given, folder, postgres.url, requests=given.requests)
    if given.loaded:
        with server(given.filled) as (postgres, folder):
            if transfers(postgres.url) < 0.99 * given.loaded:
                fill(postgres.url, given.loaded)
            loaded = measure(given, folder, postgres.url, requests=0)
            found |= {f"loaded_{name}": value for name, value in loaded.items()}
    found |= machine()
    if given.json:
        print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    else:
        for name, value in found.items():
            what = _WHAT.get(name.removeprefix("loaded_"), name)
            print(f"{'full: ' if name.startswith('loaded_') else ''}{what:<75} {value:>12,.3f}")
    wrong = [name for name in found if name.endswith("audited_differences") and found[name]]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
