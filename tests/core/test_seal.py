"""Whatever somebody with the database's password does to the past, a seal shows it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from tests.core.databases import undone

from sublet.app.bootstrap import bootstrap, top_up
from sublet.app.secrets import Secrets
from sublet.core import seal
from sublet.core.audit import Findings
from sublet.core.db import Database, Tx
from sublet.core.money import Money
from sublet.core.seal import TABLES, Sealer, audit, seal_all
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer

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
    assert seal_all(db, now=NOON) == 6 + 4  # payments, and the model's prices
    assert seal_all(db, now=NOON) == 0
    before = findings(db)
    assert before.differences == []
    assert before.counts["past_stands"] == {"seals": 2, "sealed_rows": 10}
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
    sealer = Sealer(db)
    with db.transaction() as late:
        top_up(late, demo, Money(1), payment="late", now=NOON)
        # Its number was given and is not there to be seen yet: sealing past it would lose it.
        with db.transaction() as tx:
            tx.execute("SET LOCAL lock_timeout = '100ms'")  # nobody waits for us meanwhile
            pay_somebody_else(tx)
        sealer.look()
        assert [sealer.step(now=NOON), sealer.step(now=NOON)] == [4, 0]  # prices only
        assert sealer.waiting == ["transfer"]
    assert sealer.step(now=NOON) == 6 + 2
    assert sealer.waiting == []
    assert findings(db).differences == []


def pay_somebody_else(tx: Tx) -> None:
    payer, paid = (ledger.open_account(tx, code, prepaid=False) for code in ("house:a", "house:b"))
    payment = Transfer(
        id=uuid4(),
        debit_account=payer.id,
        credit_account=paid.id,
        amount=Money(2),
        reason="payment",
        happened_at=NOON,
    )
    ledger.post(tx, payment, now=NOON)


def test_a_seal_that_cannot_be_is_a_difference(db: Database) -> None:
    fill(db)
    seal_all(db, now=NOON)
    for lie in ("columns = '{gone}'", "table_name = 'tenant'", "rows = 1000000000", "last = 7000"):
        with undone(db) as tx:
            tx.execute("ALTER TABLE seal DISABLE TRIGGER USER")
            tx.execute(f"UPDATE seal SET {lie} WHERE number = 2".encode())  # noqa: S608
            found = Findings()
            audit(tx, found)
            assert [difference.law for difference in found.differences] == ["past_stands"], lie


def test_small_seals_and_large_ones_are_looked_at_in_pieces(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "_MOST_ROWS", 2)
    monkeypatch.setattr(seal, "_MANY_ROWS", 3)
    fill(db)
    assert seal_all(db, now=NOON) == 10
    reached: list[float] = []
    found = Findings()
    with db.transaction() as tx:
        audit(tx, found, reach=reached.append)
    assert found.differences == []
    assert found.counts["past_stands"] == {"seals": 5, "sealed_rows": 10}
    assert reached == [4 / 10, 8 / 10, 1]
