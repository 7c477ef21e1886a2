from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Final

import psycopg
import pytest
from tests.core.databases import fresh

from sublet.core import seal
from sublet.core.audit import Findings
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.errors import Misconfigured
from sublet.core.migrations import available, migrate
from sublet.core.seal import seal_all
from sublet.ledger import audit as ledger_audit
from sublet.metering import audit as metering_audit

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


# One row of everything that 0007 changes, as Sublet wrote it before.
BEFORE_0007: Final = """
INSERT INTO tenant (id, name, kind, created_at)
VALUES (md5('acme')::uuid, 'acme', 'customer', now());
INSERT INTO account (code, currency, prepaid, debits_posted, credits_posted)
VALUES ('bank', 'USD', false, 1000, 0),
       ('tenant:' || md5('acme')::uuid || ':wallet', 'USD', true, 70, 1000),
       ('revenue', 'USD', false, 0, 70);
INSERT INTO transfer (id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,
                      expires_at, happened_at, recorded_at)
VALUES (md5('paid')::uuid, 'posted', NULL, 1, 2, 1000, 'payment', NULL, now(), now()),
       (md5('hold')::uuid, 'pending', NULL, 2, 3, 100, 'tokens', now(), now(), now()),
       (md5('post')::uuid, 'post', md5('hold')::uuid, 2, 3, 70, 'tokens', NULL, now(), now());
INSERT INTO price (sku, nanos, per, currency, happened_at, recorded_at)
VALUES ('model:m:input', 10, 1, 'USD', now(), now()),
       ('model:m:cached_input', 9, 1, 'USD', now(), now()),
       ('model:m:cached_input', 5, 1, 'USD', now(), now()),
       ('model:m:output', 20, 1, 'USD', now(), now());
INSERT INTO usage (id, source, sequence, tenant_id, model, input_tokens, cached_input_tokens,
                   output_tokens, delivered_tokens, outcome, happened_at, recorded_at)
VALUES (md5('used')::uuid, 'gateway:g', 1, md5('acme')::uuid, 'm', 2, 2, 2, 2, 'completed',
        now(), now()),
       (md5('free')::uuid, 'gateway:g', 2, md5('acme')::uuid, 'm', 0, 0, 0, 0, 'aborted',
        now(), now());
INSERT INTO charge (id, usage_id, tenant_id, price_id, quantity, amount_nanos, transfer_id,
                    happened_at, recorded_at)
SELECT md5(price || usage)::uuid, md5(usage)::uuid, md5('acme')::uuid, price, quantity, amount,
       CASE WHEN amount > 0 THEN md5('post')::uuid END, now(), now()
  FROM (VALUES ('used', 1, 2, 20), ('used', 3, 2, 10), ('used', 4, 2, 40),
               ('free', 1, 0, 0)) AS line(usage, price, quantity, amount);
"""


def test_charges_made_before_they_were_one_row_still_add_up(empty: Database) -> None:
    with empty.transaction() as tx:
        tx.execute("CREATE TABLE migration (number integer PRIMARY KEY, applied_at timestamptz)")
        for number, text in available().items():
            if number < 7:
                tx.execute(text.encode())
                tx.execute("INSERT INTO migration VALUES (%s, now())", [number])
        tx.execute(BEFORE_0007.encode())
        tx.execute(
            "INSERT INTO seal VALUES (1, 'usage', '{cached_input_tokens}', 1, 1, 1, '', now())"
        )
    migrate(empty, clock=CLOCK)
    with empty.transaction() as tx:
        findings = Findings()
        metering_audit.audit(tx, findings, now=datetime.now(UTC))
        ledger_audit.audit(tx, findings, now=datetime.now(UTC))
        lines = tx.execute(
            "SELECT price_id, quantity, amount_nanos FROM charge_line ORDER BY record, price_id"
        ).fetchall()
        (price,) = tx.execute("SELECT nanos FROM price WHERE sku = 'model:m:cache_read'").fetchall()
        charges = tx.execute("SELECT amount_nanos, transfer_id FROM charge").fetchall()
    assert findings.differences == []
    assert [tuple(line.values()) for line in lines] in (
        [(1, 2, 20), (3, 2, 10), (4, 2, 40), (1, 0, 0)],
        [(1, 0, 0), (1, 2, 20), (3, 2, 10), (4, 2, 40)],
    )
    assert price["nanos"] == 5
    assert {(row["amount_nanos"], row["transfer_id"] is None) for row in charges} == {
        (70, False),
        (0, True),
    }
    assert seal_all(empty, now=datetime.now(UTC)) > 0
    with empty.transaction() as tx:
        seal.audit(tx, findings)
    assert findings.differences == []
