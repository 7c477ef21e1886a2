from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import psycopg
import pytest
from tests.core.databases import fresh

from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.errors import Misconfigured
from sublet.core.migrations import available, migrate

CLOCK = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def empty(postgres_url: str) -> Iterator[Database]:
    """A database in which nothing is yet."""
    with fresh(postgres_url) as db:
        yield db


def applied(db: Database) -> list[int]:
    with db.transaction() as tx:
        rows = tx.execute("SELECT number FROM migration ORDER BY number").fetchall()
    return [row["number"] for row in rows]


def test_an_empty_database_is_brought_forward_and_doing_it_again_is_harmless(
    empty: Database,
) -> None:
    newest = migrate(empty, clock=CLOCK)
    assert applied(empty) == list(available())
    assert migrate(empty, clock=CLOCK) == newest == max(available())
    assert applied(empty) == list(available())


def test_two_who_migrate_at_once_take_turns(empty: Database) -> None:
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda _: migrate(empty, clock=CLOCK), range(4)))
    assert done == [max(available())] * 4
    assert applied(empty) == list(available())


def test_a_database_of_a_newer_sublet_is_refused_and_left_alone(db: Database) -> None:
    newer = max(available()) + 1
    with db.transaction() as tx:
        tx.execute("INSERT INTO migration VALUES (%s, now())", [newer])
    with pytest.raises(Misconfigured, match="newer Sublet"):
        migrate(db, clock=CLOCK)
    assert applied(db) == [*available(), newer]


def test_a_migration_that_fails_leaves_nothing_behind(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {**available(), 9999: "CREATE TABLE half (n integer); SELECT 1 / 0;"}
    monkeypatch.setattr("sublet.core.migrations.available", lambda: broken)
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty, clock=CLOCK)
    with empty.transaction() as tx:
        rows = tx.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert rows == []
