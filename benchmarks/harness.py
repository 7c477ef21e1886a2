"""What several benchmarks need: a server, tenants with money, a gateway, and a load on it."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from sublet.core.clock import SystemClock  # noqa: E402
from sublet.core.db import Database  # noqa: E402
from sublet.core.ids import new_id  # noqa: E402
from sublet.core.migrations import migrate  # noqa: E402
from sublet.core.money import Money, Rate  # noqa: E402
from sublet.core.net import free_port  # noqa: E402
from sublet.core.postgres import Postgres  # noqa: E402
from sublet.gateway.tariff import Tariff  # noqa: E402
from sublet.ledger import store as ledger  # noqa: E402
from sublet.ledger.transfer import Transfer  # noqa: E402
from sublet.market import store as market  # noqa: E402
from sublet.market.price import cache_read_sku, input_sku, output_sku  # noqa: E402
from sublet.models import store as models  # noqa: E402
from sublet.models.deployment import Deployment, Replica, ReplicaState  # noqa: E402
from sublet.tenants import store as tenants  # noqa: E402
from sublet.tenants.tenant import Tenant  # noqa: E402

MODEL: Final = "fake"
WALLET: Final = 10**15
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_GATEWAY: Final = (
    "import json, sys; from pathlib import Path;"
    " from sublet.gateway.server import serve; from sublet.gateway.settings import Settings;"
    " given = json.loads(sys.argv[1]); given['spool'] = Path(given['spool']);"
    " serve(Settings(**given))"
)
_LUA: Final = """
keys = {%s}
turn = 0
function request()
  turn = turn + 1
  headers = {["authorization"] = "Bearer " .. keys[turn %% #keys + 1],
             ["content-type"] = "application/json"}
  return wrk.format("POST", "%s", headers, [[%s]])
end
function done(summary, latency, requests)
  io.write("RESULT " .. summary.requests .. " " .. summary.duration / 1e6 .. " "
           .. summary.errors.status .. " " .. latency:percentile(50) / 1e3 .. " "
           .. latency:percentile(99) / 1e3 .. "\\n")
end
"""


@contextlib.contextmanager
def server(kept: Path | None = None) -> Iterator[tuple[Postgres, Path]]:
    """A PostgreSQL of our own that waits for the disk at every commit, and a folder.

    Args:
        kept: a folder whose database is to be there the next time, too.
    """
    folder = Path(tempfile.mkdtemp(prefix="sublet-bench-"))
    made = Postgres(kept or folder / "postgres")
    try:
        made.start()
        yield made, folder
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Stock:
    tenants: list[Tenant]
    keys: list[str]
    tariff: Tariff


def stock(db: Database, number: int) -> Stock:
    """Make the tables, tenants with money and a key each, and a price for the model."""
    migrate(db, clock=SystemClock())
    now = datetime.now(UTC)
    made, keys = [], []
    with db.transaction() as tx:
        cash = ledger.open_account(tx, "house:cash", prepaid=False)
        for _ in range(number):
            tenant = tenants.create_tenant(tx, f"tenant {new_id()}", now=now)
            wallet = ledger.open_account(tx, tenant.wallet, prepaid=True)
            ledger.open_account(tx, tenant.revenue, prepaid=False)
            payment = Transfer(
                id=new_id(), debit_account=cash.id, credit_account=wallet.id,
                amount=Money(WALLET), reason="payment", happened_at=now,
            )  # fmt: skip
            ledger.post(tx, payment, now=now)
            made.append(tenant)
            keys.append(tenants.create_key(tx, tenant.id, "benchmark", now=now)[1])
        for sku, nanos in (
            (input_sku(MODEL), 1_000),
            (cache_read_sku(MODEL), 100),
            (output_sku(MODEL), 4_000),
        ):
            market.set_price(tx, sku, Rate(nanos=nanos, per=1), now=now)
        tariff = Tariff.of(MODEL, {price.sku: price for price in market.list_prices(tx)})
    assert tariff is not None
    return Stock(made, keys, tariff)


@contextlib.contextmanager
def upstream(
    *, chunks: int = 52, gap_ms: float = 0
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A model server that answers at once, always the same; its process and URL."""
    process = subprocess.Popen(
        [
            sys.executable, ROOT / "benchmarks" / "upstream.py",
            "--chunks", str(chunks), "--gap-ms", str(gap_ms),
        ],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.kill()
        process.wait()


def deploy(db: Database, url: str) -> None:
    """Let gateways send requests for the model there, and nowhere else."""
    now = datetime.now(UTC)
    with db.transaction() as tx:
        tx.execute("UPDATE replica SET state = 'gone'")
        models.put_deployment(
            tx, Deployment(name=MODEL, recipe="fake", context_tokens=4096, wanted=True), now=now
        )
        replica = Replica(
            id=new_id(), deployment=MODEL, url=url, secret="fake-key",  # noqa: S106
            state=ReplicaState.READY, detail=None, since=now,
        )  # fmt: skip
        models.add_replica(tx, replica)


@contextlib.contextmanager
def gateway(
    database_url: str, folder: Path, *, name: str = "benchmark", **settings: Any
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """One gateway process without limits; itself and its URL."""
    port = free_port()
    given = {
        "database_url": database_url, "name": name, "http_port": port,
        "spool": str(folder / "spool"), "requests_per_minute": 10**9, "tokens_per_minute": 10**12,
    } | settings  # fmt: skip
    path = folder / f"{name}.log"
    with path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _GATEWAY, json.dumps(given)],
            stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip
    try:
        wait_for(port, path)
        time.sleep(1)  # it reads its table
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(port: int, log: Path, *, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Load:
    """What a load came to."""

    requests: int
    seconds: float
    refused: int
    ms_p50: float
    ms_p99: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def body(*, stream: bool = False, model: str = MODEL) -> str:
    return json.dumps(
        {
            "model": model, "max_tokens": 100, "stream": stream,
            "messages": [{"role": "user", "content": "ten words or so are in this"}],
        }
    )  # fmt: skip


def load(
    url: str,
    keys: Sequence[str],
    folder: Path,
    *,
    seconds: float,
    connections: int,
    stream: bool = False,
    path: str = "/v1/chat/completions",
    model: str = MODEL,
) -> Load:
    """Ask as fast as it answers, with wrk, which costs next to nothing itself.

    Raises:
        SystemExit: wrk is not installed.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("this benchmark needs wrk to make its load: apt install wrk")
    script = folder / "load.lua"
    script.write_text(
        _LUA % (", ".join(f'"{key}"' for key in keys), path, body(stream=stream, model=model))
    )
    out = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", script, url],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found = re.search(r"RESULT (\d+) ([\d.]+) (\d+) ([\d.]+) ([\d.]+)", out)
    assert found is not None, out
    return Load(int(found[1]), float(found[2]), int(found[3]), float(found[4]), float(found[5]))


def postmaster(postgres: Postgres) -> int:
    """Return the process that all others of a server are children of."""
    return postgres.process.pid


def family(pid: int) -> list[int]:
    """Return a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def cpu_seconds(pid: int, *, ended: bool = False) -> float:
    """Return the user and system time of a process and its children so far.

    Args:
        pid: of the process.
        ended: with that of children that have ended.
    """
    ticks = 0
    for each in family(pid):
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11 : 15 if ended else 13]))
    return ticks / _TICKS


def rss_bytes(pid: int) -> int:
    """Memory of a process and its children; what they share counts once."""
    total = 0
    for each in family(pid):
        text = Path(f"/proc/{each}/smaps_rollup").read_text()
        found = re.search(r"^Pss: +(\d+) kB$", text, re.MULTILINE)
        assert found is not None
        total += 1024 * int(found[1])
    return total


def machine() -> dict[str, float]:
    return {"processors": os.cpu_count() or 0, "load_before": os.getloadavg()[0]}
