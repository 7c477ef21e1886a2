"""Whatever somebody with the database's password does to the past, a seal shows it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from sublet.app.bootstrap import bootstrap, top_up
from sublet.app.secrets import Secrets
from sublet.core.audit import Findings
from sublet.core.db import Database, Tx
from sublet.core.errors import Unavailable
from sublet.core.money import Money
from sublet.core.seal import TABLES, audit, seal_all

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECRETS = Secrets(operator_key="sk-1", tenant_key="sk-2", signing_key="s")


def fill(db: Database) -> None:
    with db.transaction() as tx:
        demo = bootstrap(tx, SECRETS, model=True, now=NOON)
        for payment in range(5):
            top_up(tx, demo, Money(10**9), payment=payment, now=NOON)


def findings(db: Database) -> Findings:
    found = Findings()
    with db.transaction() as tx:
        audit(tx, found)
    return found


def test_what_is_recorded_is_sealed_once_and_the_chain_goes_on(db: Database) -> None:
    fill(db)
    assert seal_all(db, now=NOON) == 6 + 3  # payments, and the model's prices
    assert seal_all(db, now=NOON) == 0
    before = findings(db)
    assert before.differences == []
    assert before.counts["past_stands"] == {"seals": 2, "sealed_rows": 9}
    with db.transaction() as tx:
        demo = bootstrap(tx, SECRETS, model=True, now=NOON)
        top_up(tx, demo, Money(7), payment="later", now=NOON + timedelta(hours=1))
    assert seal_all(db, now=NOON) == 1
    after = findings(db)
    assert after.differences == []
    assert after.notes["seal_head"] != before.notes["seal_head"]


def edit(tx: Tx) -> None:
    tx.execute("UPDATE transfer SET amount_nanos = amount_nanos + 1 WHERE sequence = 3")


def remove(tx: Tx) -> None:
    tx.execute("DELETE FROM transfer WHERE sequence = 3")


def slip_in(tx: Tx) -> None:
    tx.execute("DELETE FROM transfer WHERE sequence = 3")
    tx.execute(
        "INSERT INTO transfer (id, kind, debit_account, credit_account, amount_nanos, reason,"
        " sequence, happened_at, recorded_at) OVERRIDING SYSTEM VALUE"
        " SELECT gen_random_uuid(), kind, debit_account, credit_account, amount_nanos, reason, 3,"
        " happened_at, recorded_at FROM transfer WHERE sequence = 2"
    )


def edit_a_seal(tx: Tx) -> None:
    tx.execute("UPDATE seal SET rows = rows + 1 WHERE number = 1")


def remove_a_seal(tx: Tx) -> None:
    tx.execute("DELETE FROM seal WHERE number = 1")


@pytest.mark.parametrize(
    "deed", [edit, remove, slip_in, edit_a_seal, remove_a_seal], ids=lambda d: d.__name__
)
def test_a_changed_past_is_found(db: Database, deed: Callable[[Tx], None]) -> None:
    fill(db)
    seal_all(db, now=NOON)
    with db.transaction() as tx:
        for table in ("transfer", "seal"):
            tx.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
        deed(tx)
        for table in ("transfer", "seal"):
            tx.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER".encode())
    assert [difference.law for difference in findings(db).differences]


def test_every_table_of_record_is_sealed(db: Database) -> None:
    with db.transaction() as tx:
        rows = tx.execute(
            "SELECT tgrelid::regclass::text AS name FROM pg_trigger WHERE tgname = 'the_past_stands'"
        ).fetchall()
    assert {row["name"] for row in rows} == {*TABLES, "seal"}


def test_a_column_added_later_does_not_break_old_seals(db: Database) -> None:
    fill(db)
    seal_all(db, now=NOON)
    with db.transaction() as tx:
        tx.execute("ALTER TABLE transfer ADD COLUMN note text")
    assert findings(db).differences == []


def test_a_row_that_commits_late_is_sealed_all_the_same(db: Database) -> None:
    fill(db)
    with db.transaction() as tx:
        demo = bootstrap(tx, SECRETS, model=True, now=NOON)
    with db.transaction() as late:
        top_up(late, demo, Money(1), payment="late", now=NOON)
        # Its number was given and is not there to be seen yet: sealing past it would lose it.
        with pytest.raises(Unavailable, match="lock timeout"):
            seal_all(db, now=NOON)
    assert seal_all(db, now=NOON) == 7  # the prices were sealed before it had to wait
