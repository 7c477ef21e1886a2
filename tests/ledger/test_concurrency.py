"""Many at once: no wallet is spent twice, no hold resolved twice, nobody waits for ever."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Barrier, Thread
from uuid import uuid4

import psycopg
import pytest

from sublet.core.audit import Findings
from sublet.core.db import Database
from sublet.core.errors import Conflict, SubletError, Unpaid
from sublet.core.money import Money
from sublet.core.process import wait_for
from sublet.ledger import audit, store
from sublet.ledger.transfer import Account, Transfer

pytestmark = pytest.mark.real

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
THREADS = 16


@pytest.fixture
def wide(database_url: str) -> Iterator[Database]:
    """A connection for every thread, and at the end an audit that finds nothing."""
    with Database(database_url, connections=THREADS, wait_seconds=30) as db:
        yield db
        findings = Findings()
        with db.transaction() as tx:
            audit.audit(tx, findings, now=NOON)
        assert findings.differences == []


def transfer(debit: Account, credit: Account, nanos: int) -> Transfer:
    return Transfer(
        id=uuid4(),
        debit_account=debit.id,
        credit_account=credit.id,
        amount=Money(nanos),
        reason="test",
        happened_at=NOON,
    )


def accounts(db: Database, *wallets: int) -> tuple[Account, ...]:
    """Open revenue, and a wallet with each of these amounts."""
    with db.transaction() as tx:
        bank = store.open_account(tx, "bank", prepaid=False)
        opened = [store.open_account(tx, "revenue", prepaid=False)]
        for number, nanos in enumerate(wallets):
            wallet = store.open_account(tx, f"wallet:{number}", prepaid=True)
            if nanos:
                store.post(tx, transfer(bank, wallet, nanos), now=NOON)
            opened.append(wallet)
    return tuple(opened)


def balance(db: Database, code: str) -> Account:
    with db.transaction() as tx:
        return store.get_account(tx, code)


def together(calls: list[Callable[[], object]]) -> list[object]:
    """Make every call in a thread of its own, all at once; an error of ours is a result."""
    gate = Barrier(len(calls))

    def go(call: Callable[[], object]) -> object:
        gate.wait(120)
        try:
            return call()
        except SubletError as error:
            return type(error)

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(go, calls))


def test_a_wallet_worth_so_many_holds_grants_so_many(wide: Database) -> None:
    grants, nanos = 23, 1000
    revenue, wallet = accounts(wide, grants * nanos)

    def hold_several() -> list[object]:
        got: list[object] = []
        for _ in range(4):
            try:
                with wide.transaction() as tx:
                    held = transfer(wallet, revenue, nanos)
                    got.append(store.hold(tx, held, holder="me", expires_at=LATER, now=NOON))
            except Unpaid:
                got.append(Unpaid)
        return got

    answers = [one for got in together([hold_several] * THREADS) for one in got]  # type: ignore[attr-defined]
    assert Counter(answers) == {True: grants, Unpaid: 4 * THREADS - grants}
    account = balance(wide, wallet.code)
    assert (account.held, account.available) == (Money(grants * nanos), Money(0))


def test_one_id_from_many_moves_the_money_once(wide: Database) -> None:
    revenue, wallet = accounts(wide, 100)
    payment = transfer(wallet, revenue, 60)

    def post() -> bool:
        with wide.transaction() as tx:
            return store.post(tx, payment, now=NOON)

    assert Counter(together([post] * THREADS)) == {True: 1, False: THREADS - 1}
    assert balance(wide, wallet.code).balance == Money(40)


def test_of_all_who_resolve_a_hold_one_wins(wide: Database) -> None:
    revenue, wallet = accounts(wide, 1000)

    def settle(hold: Transfer) -> str:
        with wide.transaction() as tx:
            store.settle(tx, hold.id, Money(70), happened_at=NOON, now=NOON)
        return "settled"

    def void(hold: Transfer) -> str:
        with wide.transaction() as tx:
            store.void(tx, hold.id, now=NOON)
        return "void"

    def expire(hold: Transfer) -> str:
        with wide.transaction() as tx:
            return "expired" if hold.id in store.expire(tx, now=LATER) else "missed"

    left = 1000
    for _ in range(6):
        with wide.transaction() as tx:
            held = transfer(wallet, revenue, 100)
            store.hold(tx, held, holder="me", expires_at=LATER, now=NOON)
        ways: list[Callable[[], object]] = [
            partial(way, held) for way in (settle, void, expire) for _ in range(4)
        ]
        answers = Counter(together(ways))
        # A repeat of the same resolution is no second one; every other way is refused.
        won = {"settled", "void", "expired"} & set(answers)
        assert len(won) == 1, answers
        assert set(answers) - won <= {Conflict, "missed"}
        left -= 70 if won == {"settled"} else 0
        account = balance(wide, wallet.code)
        assert (account.balance, account.held) == (Money(left), Money(0))


def test_crossing_transfers_do_not_block_each_other(wide: Database) -> None:
    _, first, second = accounts(wide, 10_000, 10_000)

    def cross(debit: Account, credit: Account) -> int:
        for _ in range(8):
            with wide.transaction() as tx:
                store.post(tx, transfer(debit, credit, 7), now=NOON)
            with wide.transaction() as tx:
                held = transfer(debit, credit, 5)
                store.hold(tx, held, holder="me", expires_at=LATER, now=NOON)
            with wide.transaction() as tx:
                store.settle(tx, held.id, Money(3), happened_at=NOON, now=NOON)
        return 1

    both = [partial(cross, first, second), partial(cross, second, first)]
    assert together(both * (THREADS // 2)) == [1] * THREADS
    for code in (first.code, second.code):
        account = balance(wide, code)
        assert (account.balance, account.held) == (Money(10_000), Money(0))


def test_a_payment_that_waited_for_its_money_was_never_short_of_it(
    wide: Database, database_url: str
) -> None:
    """The record is replayed in its own order, so that must be the order money moved in."""
    revenue, wallet = accounts(wide, 0)
    spend = transfer(wallet, revenue, 50)

    def pay() -> None:
        with wide.transaction() as tx:
            store.post(tx, spend, now=NOON)

    def somebody_waits() -> bool:
        with psycopg.connect(database_url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone()
        return row is not None and row[0] > 0

    with wide.transaction() as tx:
        bank = store.get_account(tx, "bank")
        tx.execute("SELECT 1 FROM account WHERE id = %s FOR NO KEY UPDATE", [wallet.id])
        payer = Thread(target=pay)
        payer.start()
        assert wait_for(somebody_waits, wait_seconds=20)
        store.post(tx, transfer(bank, wallet, 50), now=NOON)
    payer.join(20)
    assert balance(wide, wallet.code).balance == Money(0)
