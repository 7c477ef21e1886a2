"""The auditor on a database of its own, on a copy that can only be read, and through the API."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import psycopg
import pytest
from benchmarks.ledger_of import fill
from psycopg.conninfo import make_conninfo
from tests.cli.fake_api import Sublet, runner
from tests.core.databases import fresh

from sublet.app import audit as auditor
from sublet.app.admissions import Admissions
from sublet.app.audit import audit, audit_copy
from sublet.app.control import build_api
from sublet.app.services import Services
from sublet.config import Config
from sublet.core.clock import ManualClock, SystemClock
from sublet.core.db import Database
from sublet.core.errors import Misconfigured, Unavailable
from sublet.core.postgres import Postgres, find_binaries
from sublet.engine.simulated import SimulatedEngine
from sublet.tenants import store as tenants

TRANSFERS: Final = 3_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """A database with a past, for its owner and for a user who may only read, and not for long."""

    url: str
    read_only_url: str


@pytest.fixture(scope="module")
def past(postgres_url: str) -> Iterator[Past]:
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        url = make_conninfo(postgres_url, dbname=name)
        fill(url, TRANSFERS, tenants=10, vacuum=False)
        reader = f"reader_{uuid4().hex}"
        with psycopg.connect(url) as inside:
            inside.execute(f"CREATE ROLE {reader} LOGIN PASSWORD 'x'".encode())
            inside.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}".encode())
            for setting in (
                "default_transaction_read_only = on",
                "statement_timeout = '100ms'",
                "idle_in_transaction_session_timeout = '100ms'",
            ):
                inside.execute(f"ALTER ROLE {reader} SET {setting}".encode())
        yield Past(url=url, read_only_url=make_conninfo(url, user=reader, password="x"))
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
        connection.execute(f"DROP ROLE {reader}".encode())


def test_a_made_past_is_one_that_could_have_been(past: Past) -> None:
    with Database(past.url) as db:
        findings = audit(db, clock=SystemClock())
    assert findings.differences == []
    assert abs(findings.counts["money"]["transfers"] - TRANSFERS) < 200
    assert findings.counts["charged_once"]["usages"] == findings.counts["charged_once"]["charges"]
    assert findings.counts["past_stands"]["sealed_rows"] > 2 * TRANSFERS


def test_a_copy_is_read_as_of_its_last_sign_of_life(past: Past) -> None:
    told: list[float] = []
    findings = audit_copy(past.read_only_url, tell=lambda _, share: told.append(share))
    assert findings.differences == []
    with psycopg.connect(past.url) as connection:
        row = connection.execute("SELECT max(sealed_at) FROM seal").fetchone()
    assert row is not None
    assert datetime.fromisoformat(findings.notes["as_of"]) == row[0]
    assert told == sorted(told)
    assert told[0] == 0
    assert told[-1] == pytest.approx(1)


@pytest.mark.real
def test_a_restored_dump_is_what_was_sealed(past: Past, postgres_url: str, folder: Path) -> None:
    dump = folder / "sublet.dump"
    tools = find_binaries()
    subprocess.run([tools / "pg_dump", "-Fc", "-f", dump, past.url], check=True)
    with fresh(postgres_url) as db:
        with db.transaction() as tx:
            url = make_conninfo(postgres_url, dbname=tx.info.dbname)
        subprocess.run([tools / "pg_restore", "-d", url, dump], check=True)
        findings = audit_copy(url)
    assert findings.differences == []
    assert findings.counts["past_stands"]["sealed_rows"] > 2 * TRANSFERS
    assert findings.notes == audit_copy(past.url).notes


@pytest.mark.real
def test_a_replica_is_audited_while_it_follows(folder: Path) -> None:
    primary = Postgres(folder / "primary")
    replica = Postgres(folder / "replica")
    try:
        primary.start()
        fill(primary.url, 1_000, tenants=2, vacuum=False)
        replica.prepare()
        shutil.copy(folder / "primary" / "password", folder / "replica" / "password")
        owner = (folder / "replica").stat().st_uid
        os.chown(folder / "replica" / "password", owner, -1)
        subprocess.run(
            [
                find_binaries() / "pg_basebackup", "-D", folder / "replica" / "cluster", "-R",
                "-c", "fast", "-d", primary.url,
            ],
            check=True, user=owner, extra_groups=[] if os.geteuid() == 0 else None, cwd="/",
        )  # fmt: skip
        replica.start()
        with psycopg.connect(replica.url) as connection:
            assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        findings = audit_copy(replica.url)
    finally:
        replica.stop()
        primary.stop()
    assert findings.differences == []
    assert findings.counts["money"]["transfers"] > 900


def test_no_timeout_of_its_user_ends_an_audit(past: Past) -> None:
    names = ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout")
    with Database(past.read_only_url) as db, db.transaction() as tx:
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        auditor._take_time(tx)
        for name in names:
            row = tx.execute("SELECT current_setting(%s) AS value", [name]).fetchone()
            assert row == {"value": "0"}


def test_an_audit_neither_waits_for_writers_nor_keeps_them_waiting(past: Past) -> None:
    looked: list[str] = []
    with Database(past.url) as db, db.transaction() as writer:
        writer.execute("SET LOCAL lock_timeout = '1ms'")
        writer.execute("UPDATE account SET credits_posted = credits_posted + 1")

        def tell(what: str, _: float) -> None:
            if what not in looked:
                looked.append(what)
                writer.execute("UPDATE open_hold SET expires_at = expires_at")
                writer.execute("LOCK TABLE transfer IN SHARE ROW EXCLUSIVE MODE")

        assert audit_copy(past.url, tell=tell).differences == []
        assert len(looked) > 5
        writer.rollback()


def test_what_fails_on_one_side_ends_the_other(past: Past) -> None:
    def tell(what: str, _: float) -> None:
        if what.startswith("each line"):
            raise Unavailable("enough")

    with pytest.raises(Unavailable, match="enough"):
        audit_copy(past.url, tell=tell)


def test_a_database_that_cannot_be_audited_is_refused(past: Past, postgres_url: str) -> None:
    with pytest.raises(Misconfigured, match="holds no Sublet"):
        audit_copy(postgres_url)
    with pytest.raises(Misconfigured, match="cannot be read"):
        audit_copy("postgresql://x?no_such_option=1")
    with pytest.raises(Unavailable, match="did not answer"):
        audit_copy(make_conninfo(past.url, dbname="no_such_database"))
    with Database(past.url) as db, db.transaction() as tx:
        tx.execute("INSERT INTO migration VALUES (9999, now())")
    try:
        with pytest.raises(Misconfigured, match="at schema 9999"):
            audit_copy(past.url)
    finally:
        with Database(past.url) as db, db.transaction() as tx:
            tx.execute("DELETE FROM migration WHERE number = 9999")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sublet:
    for name in ("DATA", "URL", "KEY", "CA"):
        monkeypatch.delenv(f"SUBLET_{name}", raising=False)
    return runner(capsys)


def test_the_command_reads_a_database(
    past: Past, command: Sublet, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = command("verify", "--database-url", past.read_only_url)
    assert (result.code, result.err) == (0, "")
    assert "everything adds up" in result.out
    assert "as of 20" in result.out
    monkeypatch.setenv("DATABASE_URL", past.read_only_url)
    assert command("verify", "--json").json["differences"] == []
    # An instance that is named is asked, whatever the variable says.
    assert command("verify", "--data", "/nowhere").code == 2
    assert command("verify", "--database-url", "host=/nowhere").code == 3


def test_the_command_fails_on_a_difference(past: Past, command: Sublet) -> None:
    change = "UPDATE account SET credits_posted = credits_posted {} WHERE code = 'house:bank'"
    with psycopg.connect(past.url, autocommit=True) as connection:
        connection.execute(change.format("+ 1").encode())
        try:
            result = command("verify", "--database-url", past.url)
        finally:
            connection.execute(change.format("- 1").encode())
    assert result.code == 1
    assert "DIFFERENCE account house:bank says credits_posted" in result.out


def test_the_api_says_how_far_it_is(past: Past) -> None:
    clock = ManualClock(datetime.now(UTC) + timedelta(minutes=1))
    with Database(past.url) as db:
        with db.transaction() as tx:
            _, secret = tenants.create_key(tx, None, "operator", now=clock.now())
        services = Services(
            config=Config(data=Path("/nowhere"), model=False),
            db=db,
            engine=(engine := SimulatedEngine([], clock)),
            internal_queue=engine,
            clock=clock,
            admissions=Admissions(db, jobs=engine.internal_jobs, clock=clock),
            replicas=None,
            signing_key="signs",
            refuses_commands=None,
            artefacts=Path("/nowhere"),
            wake=lambda: None,
        )

        async def ask() -> list[dict[str, Any]]:
            transport = httpx.ASGITransport(build_api(services))
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                answer = await client.get(
                    "/v1/audit",
                    params={"progress": "true"},
                    headers={"Authorization": f"Bearer {secret}"},
                )
                return [json.loads(line) for line in answer.text.splitlines()]

        *before, last = asyncio.run(ask())
    assert all(0 <= line["progress"]["done"] <= 1 for line in before)
    assert all(line["progress"]["what"] for line in before)
    assert last["audit"]["differences"] == []
