"""How many requests' money this machine can hold and settle in a second.

    python benchmarks/money.py            a table
    python benchmarks/money.py --json     one flat object

Everything runs here, on a PostgreSQL of its own that waits for the disk at every commit:
server, gateway, a replica that answers at once, and the load. So they share the processors,
and the load's own work is part of every figure. Each figure is the median of some rounds. At
the end the auditors look at every transfer and charge: a figure is worth nothing otherwise.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import aiohttp

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from sublet.core.audit import Findings  # noqa: E402
from sublet.core.clock import SystemClock  # noqa: E402
from sublet.core.db import Database  # noqa: E402
from sublet.core.ids import new_id  # noqa: E402
from sublet.core.migrations import migrate  # noqa: E402
from sublet.core.money import Money, Rate  # noqa: E402
from sublet.core.postgres import Postgres, find_binaries  # noqa: E402
from sublet.gateway.grant import Grant, Need  # noqa: E402
from sublet.gateway.spool import Spool  # noqa: E402
from sublet.gateway.tariff import Counts, Tariff  # noqa: E402
from sublet.gateway.till import Asked, Bill, Till  # noqa: E402
from sublet.ledger import audit as ledger_audit  # noqa: E402
from sublet.ledger import store as ledger  # noqa: E402
from sublet.ledger.transfer import Transfer  # noqa: E402
from sublet.market import store as market  # noqa: E402
from sublet.market.price import cache_read_sku, input_sku, output_sku  # noqa: E402
from sublet.metering import audit as metering_audit  # noqa: E402
from sublet.metering import store as metering  # noqa: E402
from sublet.metering.usage import Outcome, Usage  # noqa: E402
from sublet.models import store as models  # noqa: E402
from sublet.models.deployment import Deployment, Replica, ReplicaState  # noqa: E402
from sublet.tenants import store as tenants  # noqa: E402
from sublet.tenants.tenant import Tenant  # noqa: E402

MODEL: Final = "fake"
WALLET: Final = 10**15
PACE_PER_S: Final = 100  # at which the added time is measured
_GATEWAY: Final = (
    "import json, sys; from sublet.gateway.server import Settings, serve;"
    " serve(Settings(**json.loads(sys.argv[1])))"
)
_WHAT: Final = {
    "pgbench_tps": "pgbench's simple update on the same server, transactions/s",
    "pairs_per_s_one_by_one": "hold + settle, a transaction each, pairs/s",
    "pairs_per_s_library": "hold + settle in batches, pairs/s",
    "pairs_per_s_spool": "hold + settle through the gateway's spool, pairs/s",
    "hot_tenant_holds_per_s": "holds of one hot tenant through the spool, holds/s",
    "added_ms_p50": f"hold + settle of one request at {PACE_PER_S} requests/s, median, ms",
    "added_ms_p99": f"hold + settle of one request at {PACE_PER_S} requests/s, p99, ms",
    "pairs_per_s_http": "whole requests over HTTP through a gateway, requests/s",
    "http_ms_p50": "the same, one request from end to end, median, ms",
    "http_ms_p99": "the same, p99, ms",
}


@dataclass(slots=True, kw_only=True)
class Bench:
    """One server, some tenants, and what they buy."""

    db: Database
    url: str
    seconds: float
    rounds: int
    tenants: list[Tenant]
    tariff: Tariff
    sequence: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    turn: Iterator[int] = field(default_factory=itertools.count)
    found: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, measure: Callable[[], float]) -> None:
        """Keep the median of some rounds."""
        self.found[name] = statistics.median(measure() for _ in range(self.rounds))

    def rate(self, step: Callable[[], int], *, threads: int = 1) -> float:
        """Return how many a second, with `step` repeated in each of some threads."""
        until = time.perf_counter() + self.seconds

        def work(_: int) -> int:
            done = 0
            while time.perf_counter() < until:
                done += step()
            return done

        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            done = sum(pool.map(work, range(threads)))
        return done / (time.perf_counter() - began)

    # ── what one request asks ────────────────────────────────────────────────────────────

    def next_tenant(self) -> Tenant:
        return self.tenants[next(self.turn) % len(self.tenants)]

    def need(self) -> Need:
        return Need(prompt_tokens=10, max_tokens=5, context_left=1000, tariff=self.tariff)

    def bill(self, id_: UUID, tenant: Tenant) -> Bill:
        counts = Counts(input_tokens=8, cache_read_tokens=2, output_tokens=5)
        usage = Usage(
            id=id_,
            source="gateway:benchmark",
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
        return Bill(usage=usage, counts=counts, tariff=self.tariff)

    # ── one by one: what it was before there were batches ────────────────────────────────

    def one_pair(self) -> int:
        id_, tenant, now = new_id(), self.next_tenant(), datetime.now(UTC)
        with self.db.transaction() as tx:
            wallet = ledger.get_account(tx, tenant.wallet)
            transfer = Transfer(
                id=id_,
                debit_account=wallet.id,
                credit_account=ledger.get_account(tx, tenant.revenue).id,
                amount=self.tariff.most(prompt_tokens=10, output_tokens=5),
                reason="tokens",
                happened_at=now,
            )
            later = now + timedelta(minutes=15)
            ledger.hold(tx, transfer, holder="benchmark", expires_at=later, now=now)
        bill = self.bill(id_, tenant)
        with self.db.transaction() as tx:
            metering.settle(
                tx, bill.usage, self.tariff.lines(bill.counts), hold_id=id_, now=datetime.now(UTC)
            )
        return 1

    # ── in batches ───────────────────────────────────────────────────────────────────────

    def batch(self, till: Till, size: int) -> int:
        asked = [
            Asked(id=new_id(), tenant=self.next_tenant(), need=self.need()) for _ in range(size)
        ]
        assert all(isinstance(answer, Grant) for answer in till.open_many(asked))
        bills = [self.bill(one.id, one.tenant) for one in asked]
        assert all(isinstance(answer, Money) for answer in till.settle_many(bills))
        return size

    # ── through the spool, as the gateway does ───────────────────────────────────────────

    async def pair(self, spool: Spool) -> None:
        id_, tenant = new_id(), self.next_tenant()
        await spool.open(id_, tenant, self.need())
        await spool.settle(self.bill(id_, tenant))

    async def callers(self, number: int, step: Callable[[], Any]) -> float:
        """Return how many a second, with so many callers who each wait for their answer."""
        until, done = time.perf_counter() + self.seconds, 0

        async def call() -> None:
            nonlocal done
            while time.perf_counter() < until:
                await step()
                done += 1

        began = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(number)))
        return done / (time.perf_counter() - began)

    async def paced(self, spool: Spool) -> list[float]:
        """Return what each of a steady stream of requests waited for its money, in ms."""
        took: list[float] = []

        async def one() -> None:
            began = time.perf_counter()
            await self.pair(spool)
            took.append(1000 * (time.perf_counter() - began))

        running = []
        for _ in range(int(self.seconds * PACE_PER_S)):
            running.append(asyncio.create_task(one()))
            await asyncio.sleep(1 / PACE_PER_S)
        await asyncio.gather(*running)
        return took

    # ── through HTTP ─────────────────────────────────────────────────────────────────────

    async def http(self, url: str, keys: list[str], callers: int) -> tuple[float, list[float]]:
        body = {
            "model": MODEL,
            "max_tokens": 5,
            "messages": [{"role": "user", "content": "ten words or so are in this"}],
        }
        took: list[float] = []
        turn = itertools.cycle(keys)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=callers)) as session:

            async def step() -> None:
                began = time.perf_counter()
                headers = {"authorization": f"Bearer {next(turn)}"}
                async with session.post(url, json=body, headers=headers) as answer:
                    text = await answer.text()
                    assert answer.status == 200, text
                took.append(1000 * (time.perf_counter() - began))

            return await self.callers(callers, step), took


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


def stock(db: Database, number: int) -> tuple[list[Tenant], list[str], Tariff]:
    """Open tenants with money, and a price for the model; return some keys."""
    now = datetime.now(UTC)
    made, keys = [], []
    with db.transaction() as tx:
        cash = ledger.open_account(tx, "house:cash", prepaid=False)
        for each in range(number):
            tenant = tenants.create_tenant(tx, f"tenant {each}", now=now)
            wallet = ledger.open_account(tx, tenant.wallet, prepaid=True)
            ledger.open_account(tx, tenant.revenue, prepaid=False)
            payment = Transfer(
                id=new_id(),
                debit_account=cash.id,
                credit_account=wallet.id,
                amount=Money(WALLET),
                reason="payment",
                happened_at=now,
            )
            ledger.post(tx, payment, now=now)
            made.append(tenant)
            if each < 50:
                keys.append(tenants.create_key(tx, tenant.id, "benchmark", now=now)[1])
        for sku, nanos in (
            (input_sku(MODEL), 1_000),
            (cache_read_sku(MODEL), 100),
            (output_sku(MODEL), 4_000),
        ):
            market.set_price(tx, sku, Rate(nanos=nanos, per=1), now=now)
        tariff = Tariff.of(MODEL, {price.sku: price for price in market.list_prices(tx)})
    assert tariff is not None
    return made, keys, tariff


@contextlib.contextmanager
def gateway(bench: Bench, folder: Path) -> Iterator[str]:
    """Start a replica that answers at once and a gateway before it, each a process."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with contextlib.ExitStack() as stack:
        fake = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.replica", "--port", "0"],
            stdout=subprocess.PIPE, env=environment, cwd=ROOT,
        )  # fmt: skip
        stack.callback(fake.wait)
        stack.callback(fake.kill)
        assert fake.stdout is not None
        replica_url = f"http://127.0.0.1:{json.loads(fake.stdout.readline())['port']}"
        now = datetime.now(UTC)
        with bench.db.transaction() as tx:
            models.put_deployment(
                tx,
                Deployment(name=MODEL, recipe="fake", context_tokens=4096, wanted=True),
                now=now,
            )
            replica = Replica(
                id=new_id(), deployment=MODEL, url=replica_url, secret="fake-key",  # noqa: S106
                state=ReplicaState.READY, detail=None, since=now,
            )  # fmt: skip
            models.add_replica(tx, replica)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = {
            "database_url": bench.url, "name": "benchmark", "http_port": port,
            "requests_per_minute": 10**9, "tokens_per_minute": 10**9,
        }  # fmt: skip
        log = stack.enter_context((folder / "gateway.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-c", _GATEWAY, json.dumps(settings)],
            stdout=log, stderr=log, env=environment,
        )  # fmt: skip
        stack.callback(process.wait)
        stack.callback(process.terminate)
        until = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < until, (folder / "gateway.log").read_text()
            time.sleep(0.05)
        time.sleep(1)  # it reads its table
        yield f"http://127.0.0.1:{port}/v1/chat/completions"


def measure_spool(bench: Bench, callers: int) -> None:
    spool = Spool(bench.url, name="benchmark", clock=SystemClock())
    spool.start(wait_seconds=5)
    hot = bench.tenants[0]

    async def go() -> None:
        both = [
            await bench.callers(callers, lambda: bench.pair(spool)) for _ in range(bench.rounds)
        ]
        bench.found["pairs_per_s_spool"] = statistics.median(both)
        holds = [
            await bench.callers(callers, lambda: spool.open(new_id(), hot, bench.need()))
            for _ in range(bench.rounds)
        ]
        bench.found["hot_tenant_holds_per_s"] = statistics.median(holds)
        paced = [await bench.paced(spool) for _ in range(bench.rounds)]
        for name, part in (("added_ms_p50", 0.5), ("added_ms_p99", 0.99)):
            bench.found[name] = statistics.median(percentile(took, part) for took in paced)

    try:
        asyncio.run(go())
    finally:
        spool.stop()


def audit(db: Database) -> tuple[int, int]:
    """Return (transfers, differences)."""
    findings = Findings()
    with db.transaction() as tx:
        ledger_audit.audit(tx, findings, now=datetime.now(UTC))
        metering_audit.audit(tx, findings, now=datetime.now(UTC))
    for difference in findings.differences[:10]:
        print(difference, file=sys.stderr)
    return findings.counts["money"]["transfers"], len(findings.differences)


def measure(given: argparse.Namespace, folder: Path, url: str) -> dict[str, float]:
    with Database(url, connections=12, wait_seconds=30) as db:
        migrate(db, clock=SystemClock())
        made, keys, tariff = stock(db, given.tenants)
        bench = Bench(
            db=db, url=url, seconds=given.seconds, rounds=given.rounds, tenants=made, tariff=tariff
        )
        subprocess.run(
            [find_binaries() / "pgbench", "-i", "-q", "-s", "10", url],
            check=True, capture_output=True,
        )  # fmt: skip
        bench.note("pgbench_tps", lambda: pgbench(url, bench.seconds))
        bench.note("pairs_per_s_one_by_one", lambda: bench.rate(bench.one_pair, threads=8))
        tills = threading.local()

        def batch() -> int:
            if not hasattr(tills, "till"):
                tills.till = Till(db, holder="benchmark", clock=SystemClock())
            return bench.batch(tills.till, given.batch)

        bench.note("pairs_per_s_library", lambda: bench.rate(batch, threads=2))
        measure_spool(bench, given.callers)
        with gateway(bench, folder) as http_url:
            went = [
                asyncio.run(bench.http(http_url, keys, given.connections))
                for _ in range(bench.rounds)
            ]
        bench.found["pairs_per_s_http"] = statistics.median(rate for rate, _ in went)
        for name, part in (("http_ms_p50", 0.5), ("http_ms_p99", 0.99)):
            bench.found[name] = statistics.median(percentile(took, part) for _, took in went)
        transfers, differences = audit(db)
        return bench.found | {"audited_transfers": transfers, "audited_differences": differences}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one flat object")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=200, help="size, without the spool")
    parser.add_argument("--callers", type=int, default=500, help="at once, through the spool")
    parser.add_argument("--connections", type=int, default=32, help="at once, over HTTP")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sublet-bench-"))
    server = Postgres(folder / "postgres")
    load = os.getloadavg()[0]
    try:
        server.start()
        found = measure(given, folder, server.url)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    found |= {"processors": os.cpu_count() or 0, "load_before": load}
    if given.json:
        print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    else:
        for name, value in found.items():
            print(f"{_WHAT.get(name, name):<70} {value:>12,.1f}")
    return 1 if found["audited_differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
