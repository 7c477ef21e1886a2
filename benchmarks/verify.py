"""How long `sublet verify` takes on a production-size database, and how much memory.

    python benchmarks/verify.py                          ten million transfers: a table
    python benchmarks/verify.py --transfers 100000       fewer
    python benchmarks/verify.py --json                   one flat object
    python benchmarks/verify.py --url postgresql://…     of a database that is there already

Without `--url` it starts a PostgreSQL of its own in a temporary folder (ten million transfers
take 8 GB there), makes a past for it (`ledger_of.py`), and lets `sublet verify --database-url`
audit it. Memory is the most that was seen at one moment, once a second: of the command,
its proportional share; of PostgreSQL, what each of its processes has for itself, and what they
share for parallel hash tables. Its buffers are not in it: they are there anyway.

Then sealing: how many rows a second, how long one pass of the control plane waits for it, and
what a writer feels while another writer, who never comes to an end, keeps a table from it.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import psycopg

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.ledger_of import fill  # noqa: E402

from sublet.core.db import Database  # noqa: E402
from sublet.core.money import Money  # noqa: E402
from sublet.core.postgres import Postgres  # noqa: E402
from sublet.core.seal import Sealer  # noqa: E402
from sublet.ledger import store as ledger  # noqa: E402
from sublet.ledger.transfer import Transfer  # noqa: E402

_TICK: Final = os.sysconf("SC_CLK_TCK")
_SHARED: Final = Path("/dev/shm")  # noqa: S108 -- where PostgreSQL shares memory between processes
_WHAT: Final = {
    "transfers": "transfers",
    "records_sealed": "rows under seals, each hashed again",
    "differences": "differences found",
    "wall_s": "from start to end, s",
    "cpu_s": "processor time: the command's and PostgreSQL's, s",
    "cpu_s_command": "of it the command's, s",
    "memory_mb": "memory at its most, MB",
    "memory_mb_command": "the command's share at its most, MB",
    "seal_rows_per_s": "sealing, rows/s",
    "seal_pass_ms_p50": "one pass of sealing, at most 10,000 rows, median, ms",
    "seal_pass_ms_max": "the same, longest, ms",
    "write_ms_p50": "a payment meanwhile, another writer never ending, median, ms",
    "write_ms_max": "the same, longest, ms",
    "write_alone_ms_p50": "a payment without sealing, median, ms",
    "write_alone_ms_max": "the same, longest, ms",
}


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Start a PostgreSQL that is configured as one for a ledger of gigabytes would be."""
    folder = Path(tempfile.mkdtemp(prefix="sublet-verify-"))
    postgres = Postgres(
        folder / "postgres", settings={"shared_buffers": "256MB", "max_wal_size": "4GB"}
    )
    try:
        postgres.start()
        yield postgres.url
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Watch(threading.Thread):
    """Looks at the command and at PostgreSQL's processes while it runs."""

    def __init__(self, url: str, command: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self._command = command.pid
        self._connection = psycopg.connect(url, autocommit=True)
        self._postmaster = _parent(self._connection.info.backend_pid)
        self._ended = threading.Event()
        self._began_cpu = self._postgres_cpu()
        self._began_shared = _shared_bytes()
        self.most = self.most_command = 0
        self.cpu_s = 0.0

    def run(self) -> None:
        while not self._ended.wait(1.0):
            self._look()

    def _look(self) -> None:
        of_command = sum(
            _memory(pid, ("Pss:",)) for pid in (self._command, *_children(self._command))
        )
        found = self._connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        ).fetchall()
        own = sum(_memory(pid, ("Private_Clean:", "Private_Dirty:")) for (pid,) in found)
        shared = max(0, _shared_bytes() - self._began_shared)
        self.most_command = max(self.most_command, of_command)
        self.most = max(self.most, of_command + own + shared)

    def end(self) -> None:
        self._ended.set()
        self.join()
        self.cpu_s = self._postgres_cpu() - self._began_cpu
        self._connection.close()

    def _postgres_cpu(self) -> float:
        """Return the seconds of all processes of the server, of those too that have ended."""
        ticks = sum(_ticks(self._postmaster, 4))
        return (ticks + sum(sum(_ticks(pid, 2)) for pid in _children(self._postmaster))) / _TICK


def _ticks(pid: int, number: int) -> list[int]:
    """Return user and system time, and with 4 that of children that have ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return [int(word) for word in text.rpartition(")")[2].split()[11 : 11 + number]]


def _parent(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return int(text.rpartition(")")[2].split()[1])


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(word) for word in text.split()]
    return []


def _memory(pid: int, names: tuple[str, ...]) -> int:
    """Return bytes of a process; 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(names))


def _shared_bytes() -> int:
    total = 0
    for file in _SHARED.glob("PostgreSQL.*"):
        with contextlib.suppress(OSError):
            total += file.stat().st_blocks * 512
    return total


def verify(url: str) -> dict[str, float]:
    """Run the command on the database, and watch it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    before = os.times()
    began = time.monotonic()
    with tempfile.TemporaryFile() as out:
        command = subprocess.Popen(
            [sys.executable, "-m", "sublet", "verify", "--json", "--database-url", url],
            stdout=out, env=environment,
        )  # fmt: skip
        watch = Watch(url, command)
        watch.start()
        code = command.wait()
        wall = time.monotonic() - began
        watch.end()
        out.seek(0)
        text = out.read()
    after = os.times()
    assert code in {0, 1}, f"sublet verify ended with {code}"
    found = json.loads(text)
    of_command = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    for difference in found["differences"][:5]:
        print(difference, file=sys.stderr)
    return {
        "transfers": found["laws"]["money"]["transfers"],
        "records_sealed": found["laws"]["past_stands"]["sealed_rows"],
        "differences": len(found["differences"]),
        "wall_s": wall,
        "cpu_s": watch.cpu_s + of_command,
        "cpu_s_command": of_command,
        "memory_mb": watch.most / 1e6,
        "memory_mb_command": watch.most_command / 1e6,
    }


def seals(url: str) -> dict[str, float]:
    """Seal a past, with a writer who never ends, and others who must not wait for it."""
    fill(url, 100_000, tenants=100, sealed=False)
    found: dict[str, float] = {}
    with Database(url) as db:
        payer, paid = _accounts(db, "writer")
        alone = [_pay(db, payer, paid) for _ in range(300)]
        with db.transaction() as endless:
            _pay_in(endless, *_accounts(db, "endless"))
            sealer = Sealer(db)
            took: list[float] = []
            waited: list[float] = []
            rows = 0
            over = threading.Event()

            def write() -> None:
                while not over.is_set():
                    waited.append(_pay(db, payer, paid))

            writer = threading.Thread(target=write)
            writer.start()
            try:
                sealer.look()
                while True:
                    began = time.perf_counter()
                    sealed = sealer.step(now=datetime.now(UTC))
                    if not sealed:
                        break
                    took.append(1000 * (time.perf_counter() - began))
                    rows += sealed
            finally:
                over.set()
                writer.join()
            assert sealer.waiting == ["transfer"], sealer.waiting
    found["seal_rows_per_s"] = 1000 * rows / sum(took)
    found["seal_pass_ms_p50"] = statistics.median(took)
    found["seal_pass_ms_max"] = max(took)
    found["write_ms_p50"], found["write_ms_max"] = statistics.median(waited), max(waited)
    found["write_alone_ms_p50"], found["write_alone_ms_max"] = statistics.median(alone), max(alone)
    return found


def _accounts(db: Database, name: str) -> tuple[int, int]:
    with db.transaction() as tx:
        payer, paid = (
            ledger.open_account(tx, f"house:{name}:{side}", prepaid=False).id
            for side in ("from", "to")
        )
    return payer, paid


def _pay_in(tx: Any, payer: int, paid: int) -> None:
    now = datetime.now(UTC)
    payment = Transfer(
        id=uuid4(), debit_account=payer, credit_account=paid, amount=Money(1),
        reason="payment", happened_at=now,
    )  # fmt: skip
    ledger.post(tx, payment, now=now)


def _pay(db: Database, payer: int, paid: int) -> float:
    """Return the milliseconds that one small transaction took."""
    began = time.perf_counter()
    with db.transaction() as tx:
        _pay_in(tx, payer, paid)
    return 1000 * (time.perf_counter() - began)


@contextlib.contextmanager
def database(url: str, name: str) -> Iterator[str]:
    """Make a database on the server of `url`, and drop it afterwards."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            before, _, query = url.partition("?")
            yield f"{before.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transfers", type=int, default=10_000_000)
    parser.add_argument(
        "--url", help="of a database to verify instead; its server is this machine's"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    def show(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        url = given.url
        if url is None:
            url = stack.enter_context(server())
            fill(url, given.transfers, show=lambda text: show(f"making a past: {text}"))
        load_before = os.getloadavg()[0]
        found = verify(url)
        found |= {"load_before": load_before, "load_after": os.getloadavg()[0]}
        found |= seals(stack.enter_context(database(url, f"seals_{uuid4().hex}")))
    if given.json:
        print(json.dumps({name: round(value, 3) for name, value in found.items()}))
        return
    print(f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()};")
    print(f"load {found['load_before']:.1f} before and {found['load_after']:.1f} after\n")
    width = max(map(len, _WHAT.values()))
    for name, what in _WHAT.items():
        digits = 0 if float(found[name]).is_integer() or found[name] >= 100 else 1
        print(f"{what:<{width}}  {found[name]:>14,.{digits}f}")


if __name__ == "__main__":
    main()
