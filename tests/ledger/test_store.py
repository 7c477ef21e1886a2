from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from sublet.core.db import Database, Tx
from sublet.core.errors import Conflict, Invalid, NotFound, Unpaid
from sublet.core.money import Money
from sublet.ledger import store
from sublet.ledger.transfer import Account, Transfer

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)


def accounts(tx: Tx, nanos: int = 100) -> tuple[Account, Account]:
    """Open a wallet with `nanos` in it, and where its money goes."""
    bank = store.open_account(tx, "bank", prepaid=False)
    wallet = store.open_account(tx, f"wallet:{uuid4()}", prepaid=True)
    revenue = store.open_account(tx, "revenue", prepaid=False)
    store.post(tx, transfer(bank, wallet, nanos), now=NOON)
    return store.get_account(tx, wallet.code), revenue


def transfer(debit: Account, credit: Account, nanos: int) -> Transfer:
    return Transfer(
        id=uuid4(),
        debit_account=debit.id,
        credit_account=credit.id,
        amount=Money(nanos),
        reason="test",
        happened_at=NOON,
    )


def test_posting_twice_moves_the_money_once(db: Database) -> None:
    with db.transaction() as tx:
        wallet, revenue = accounts(tx)
        payment = transfer(wallet, revenue, 30)
        assert store.post(tx, payment, now=NOON) is True
        assert store.post(tx, payment, now=LATER) is False
        assert store.get_account(tx, wallet.code).balance == Money(70)
        with pytest.raises(Invalid, match="other contents"):
            store.post(tx, replace(payment, amount=Money(31)), now=NOON)


def test_a_hold_sets_money_aside_and_settling_returns_the_rest(db: Database) -> None:
    with db.transaction() as tx:
        wallet, revenue = accounts(tx)
        held = transfer(wallet, revenue, 80)
        assert store.hold(tx, held, holder="me", expires_at=LATER, now=NOON)
        assert store.get_account(tx, wallet.code).available == Money(20)
        assert store.settle(tx, held.id, Money(50), happened_at=NOON, now=NOON) is not None
        after = store.get_account(tx, wallet.code)
        assert (after.balance, after.held, after.available) == (Money(50), Money(0), Money(50))
        assert store.get_account(tx, "revenue").balance == Money(50)
        assert store.holds_of(tx, "me") == []


def test_a_hold_is_resolved_once(db: Database) -> None:
    with db.transaction() as tx:
        wallet, revenue = accounts(tx)
        held = transfer(wallet, revenue, 80)
        store.hold(tx, held, holder="me", expires_at=LATER, now=NOON)
        first = store.settle(tx, held.id, Money(50), happened_at=NOON, now=NOON)
        assert store.settle(tx, held.id, Money(50), happened_at=NOON, now=LATER) == first
        with pytest.raises(Invalid):
            store.settle(tx, held.id, Money(51), happened_at=NOON, now=NOON)
        with pytest.raises(Conflict):
            store.void(tx, held.id, now=NOON)
        assert store.get_account(tx, wallet.code).balance == Money(50)


def test_more_than_was_held_cannot_be_settled(db: Database) -> None:
    with db.transaction() as tx:
        wallet, revenue = accounts(tx)
        held = transfer(wallet, revenue, 80)
        store.hold(tx, held, holder="me", expires_at=LATER, now=NOON)
        with pytest.raises(Invalid, match="holds 80 nanos, not 81"):
            store.settle(tx, held.id, Money(81), happened_at=NOON, now=NOON)


def test_holds_and_payments_cannot_exceed_the_balance(db: Database) -> None:
    with db.transaction() as tx:
        wallet, revenue = accounts(tx)
        held = transfer(wallet, revenue, 80)
        store.hold(tx, held, holder="me", expires_at=LATER, now=NOON)
    for attempt in (21, 10**18):
        with pytest.raises(Unpaid), db.transaction() as tx:
            store.post(tx, transfer(wallet, revenue, attempt), now=NOON)
    with db.transaction() as tx:
        store.post(tx, transfer(wallet, revenue, 20), now=NOON)


def test_the_database_itself_refuses_an_overspent_wallet(db: Database) -> None:
    with db.transaction() as tx:
        wallet, _ = accounts(tx)
    with pytest.raises(psycopg.errors.CheckViolation), db.transaction() as tx:
        tx.execute("UPDATE account SET debits_posted = 101 WHERE id = %s", [wallet.id])


@pytest.mark.parametrize("statement", ["UPDATE transfer SET reason = 'x'", "DELETE FROM transfer"])
def test_the_past_stands(db: Database, statement: str) -> None:
    with db.transaction() as tx:
        accounts(tx)
    with (
        pytest.raises(psycopg.errors.IntegrityError, match="never changed"),
        db.transaction() as tx,
    ):
        tx.execute(statement.encode())


def test_time_returns_what_nobody_settled(db: Database) -> None:
    with db.transaction() as tx:
        wallet, revenue = accounts(tx)
        held = transfer(wallet, revenue, 80)
        store.hold(tx, held, holder="me", expires_at=LATER, now=NOON)
        assert store.expire(tx, now=LATER - timedelta(seconds=1)) == []
        assert store.expire(tx, now=LATER) == [held.id]
        assert store.get_account(tx, wallet.code).available == Money(100)
        with pytest.raises(Conflict, match="expire"):
            store.settle(tx, held.id, Money(1), happened_at=NOON, now=LATER)


def test_what_does_not_exist_is_said_so(db: Database) -> None:
    with db.transaction() as tx:
        wallet, _ = accounts(tx)
    ghost = replace(wallet, id=10**9)
    with pytest.raises(NotFound), db.transaction() as tx:
        store.post(tx, transfer(wallet, ghost, 1), now=NOON)
    with pytest.raises(NotFound), db.transaction() as tx:
        store.void(tx, UUID(int=1), now=NOON)
    with pytest.raises(Invalid), db.transaction() as tx:
        store.post(tx, transfer(wallet, wallet, 0), now=NOON)


def test_holds_are_listed_by_how_their_holder_s_name_starts_to_the_letter(db: Database) -> None:
    """Whoever cleans up behind a dead gateway must not touch the holds of a living one."""
    names = ["gateway:a_b:1", "gateway:axb:1", "gateway:a%:1", "gateway:a\\b:1", "gateway:a", "%"]
    with db.transaction() as tx:
        wallet, revenue = accounts(tx)
        holds = {}
        for name in names:
            holds[name] = transfer(wallet, revenue, 1)
            store.hold(tx, holds[name], holder=name, expires_at=LATER, now=NOON)
        for prefix in [*names, *(name[:-1] for name in names), "", "_", "\\", "a"]:
            expected = {(holds[name].id, name) for name in names if name.startswith(prefix)}
            found = store.holds_of(tx, prefix)
            assert {(one.id, one.holder) for one in found} == expected
            assert {(one.debit_account, one.nanos) for one in found} <= {(wallet.id, 1)}


def test_movements_are_of_the_currency_of_their_accounts(db: Database) -> None:
    with db.transaction() as tx:
        bank = store.open_account(tx, "bank:eur", prepaid=False, currency="EUR")
        revenue = store.open_account(tx, "revenue:eur", prepaid=False, currency="EUR")
        payment = replace(transfer(bank, revenue, 7), amount=Money(7, "EUR"))
        assert store.post(tx, payment, now=NOON)
        currencies = {account.id: account.currency for account in store.list_accounts(tx)}
        [movement] = store.read_movements(tx, currencies)
        assert movement.transfer == payment
        assert store.get_account(tx, "revenue:eur").balance == Money(7, "EUR")
        dollars = store.open_account(tx, "revenue", prepaid=False)
        with pytest.raises(AssertionError):
            store.post(tx, transfer(bank, dollars, 1), now=NOON)
