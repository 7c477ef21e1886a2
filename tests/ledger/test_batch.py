"""Many at once must do what one after the other does, and nothing else."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import Random
from threading import Barrier
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.databases import fresh, undone

from sublet.core.audit import Findings
from sublet.core.db import Database, Tx
from sublet.core.errors import Conflict, Invalid, NotFound, SubletError, Unpaid
from sublet.core.money import Money
from sublet.ledger import audit, batch, store
from sublet.ledger.transfer import Transfer

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
WALLETS = 3


@pytest.fixture(scope="module")
def book(postgres_url: str, template: str) -> Iterator[Database]:
    """A database with a bank, revenue and some wallets, to which nothing is ever added."""
    with fresh(postgres_url, template) as db:
        with db.transaction() as tx:
            accounts(tx, *[100] * WALLETS)
        yield db


def accounts(tx: Tx, *wallets: int) -> list[int]:
    bank = store.open_account(tx, "bank", prepaid=False).id
    opened = [store.open_account(tx, "revenue", prepaid=False).id]
    for number, nanos in enumerate(wallets):
        wallet = store.open_account(tx, f"wallet:{number}", prepaid=True).id
        store.post(tx, transfer(number + 10**6, bank, wallet, nanos), now=NOON)
        opened.append(wallet)
    return opened


def ids(tx: Tx) -> list[int]:
    codes = ["revenue", *(f"wallet:{number}" for number in range(WALLETS))]
    return [*(store.get_account(tx, code).id for code in codes), 10**9]


def transfer(number: int, debit: int, credit: int, nanos: int) -> Transfer:
    return Transfer(
        id=UUID(int=number),
        debit_account=debit,
        credit_account=credit,
        amount=Money(nanos),
        reason="test",
        happened_at=NOON,
    )


# ── the same as one by one ───────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Step:
    """Some items of one kind, as plain numbers: (id, from, to, nanos)."""

    what: str
    items: list[tuple[int, int, int, int]]


# Few ids and few accounts, so that repeats, other contents and empty wallets are common.
ITEM = st.tuples(
    st.integers(1, 9), st.integers(0, 4), st.integers(0, 2), st.sampled_from([0, 1, 30, 60])
)
STEP = st.builds(
    Step, st.sampled_from(["hold", "hold", "settle", "void", "expire"]), st.lists(ITEM, max_size=8)
)


def together(tx: Tx, step: Step, accounts: list[int]) -> list[object]:
    match step.what:
        case "hold":
            return list(
                batch.hold_many(tx, [hold(item, accounts) for item in step.items], now=NOON)
            )
        case "settle":
            return list(batch.settle_many(tx, [settlement(item) for item in step.items], now=NOON))
        case "void":
            return list(batch.void_many(tx, [UUID(int=i[0]) for i in step.items], now=NOON))
        case _:
            return sorted(store.expire(tx, now=LATER, limit=1))


def apart(tx: Tx, step: Step, accounts: list[int]) -> list[object]:
    def one(item: tuple[int, int, int, int]) -> object:
        match step.what:
            case "hold":
                it = hold(item, accounts)
                return store.hold(
                    tx, it.transfer, holder=it.holder, expires_at=it.expires_at, now=NOON
                )
            case "settle":
                of = settlement(item)
                return store.settle(tx, of.hold_id, of.amount, happened_at=NOON, now=NOON)
            case _:
                return store.void(tx, UUID(int=item[0]), now=NOON)

    if step.what == "expire":
        return sorted(store.expire(tx, now=LATER, limit=1))
    outcomes: list[object] = []
    for item in step.items:
        try:
            with tx.transaction():
                outcomes.append(one(item))
        except SubletError as error:
            outcomes.append(error)
    return outcomes


def hold(item: tuple[int, int, int, int], accounts: list[int]) -> batch.Hold:
    number, debit, credit, nanos = item
    if debit == credit:
        credit = (credit + 1) % 3
    return batch.Hold(
        transfer=transfer(number, accounts[debit], accounts[credit], nanos),
        holder="me",
        expires_at=LATER,
    )


def settlement(item: tuple[int, int, int, int]) -> batch.Settlement:
    return batch.Settlement(hold_id=UUID(int=item[0]), amount=Money(item[3]), happened_at=NOON)


def said(outcome: object) -> object:
    return (type(outcome), str(outcome)) if isinstance(outcome, SubletError) else outcome


def written(tx: Tx) -> tuple[object, ...]:
    """Everything the ledger says, but for the numbers that a sequence gave out."""
    queries = (
        (
            "SELECT id, debits_pending, debits_posted, credits_pending, credits_posted"
            " FROM account ORDER BY id"
        ),
        (
            "SELECT id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,"
            " expires_at, happened_at, recorded_at FROM transfer ORDER BY id"
        ),
        "SELECT * FROM open_hold ORDER BY transfer_id",
    )
    return tuple(tx.execute(query.encode()).fetchall() for query in queries)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, min_size=1, max_size=8))
def test_a_batch_does_what_one_by_one_does(book: Database, steps: list[Step]) -> None:
    ends: list[tuple[object, ...]] = []
    for way in (together, apart):
        with undone(book) as tx:
            known = ids(tx)
            outcomes = [[said(one) for one in way(tx, step, known)] for step in steps]
            findings = Findings()
            audit.audit(tx, findings, now=NOON)
            assert findings.differences == []
            ends.append((outcomes, *written(tx)))
    assert ends[0] == ends[1]


def test_each_item_has_an_outcome_of_its_own(book: Database) -> None:
    with undone(book) as tx:
        revenue, wallet, *_, nowhere = ids(tx)
        first = transfer(1, wallet, revenue, 60)
        asked = [
            first,
            transfer(2, wallet, revenue, 41),  # one more than is left
            transfer(3, wallet, revenue, 40),
            first,
            replace(first, amount=Money(61)),
            transfer(4, wallet, nowhere, 1),
            transfer(5, wallet, revenue, 0),
            transfer(6, wallet, wallet, 1),
        ]
        held = batch.hold_many(
            tx, [batch.Hold(transfer=one, holder="me", expires_at=LATER) for one in asked], now=NOON
        )
        true, unpaid, *rest = held
        assert true is True
        assert str(unpaid) == "0.000000041 USD is needed and 0.00000004 USD is available"
        assert rest[:2] == [True, False]
        assert [type(one) for one in (unpaid, *rest[2:])] == [
            Unpaid, Invalid, NotFound, Invalid, Invalid,
        ]  # fmt: skip

        def settle(number: int, nanos: int) -> batch.Settlement:
            return batch.Settlement(hold_id=UUID(int=number), amount=Money(nanos), happened_at=NOON)

        moved, again, other, voided, conflict, missing = batch.settle_many(
            tx,
            [settle(1, 5), settle(1, 5), settle(1, 6), settle(3, 0), settle(3, 1), settle(2, 1)],
            now=NOON,
        )
        assert isinstance(moved, UUID) and moved == again
        assert voided is None
        assert [type(one) for one in (other, conflict, missing)] == [Invalid, Conflict, NotFound]
        account = store.get_account(tx, "wallet:0")
        assert (account.balance, account.held) == (Money(95), Money(0))


def test_a_batch_of_nothing_is_nothing(book: Database) -> None:
    with undone(book) as tx:
        assert batch.hold_many(tx, [], now=NOON) == []
        assert batch.settle_many(tx, [], now=NOON) == []
        assert batch.void_many(tx, [], now=NOON) == []


# ── many batches at once ─────────────────────────────────────────────────────────────────


def test_overlapping_batches_grant_what_the_wallets_hold_and_wait_for_nobody_for_ever(
    database_url: str,
) -> None:
    threads, batches, size = 8, 6, 20
    worth = 61  # holds that each wallet can pay
    gate = Barrier(threads)
    with Database(database_url, connections=threads + 1, wait_seconds=30) as db:
        with db.transaction() as tx:
            revenue, *wallets = accounts(tx, *[worth * 10] * WALLETS)

        def work(number: int) -> tuple[Counter[tuple[int, object]], list[UUID]]:
            random, outcomes, granted = Random(number), Counter[tuple[int, object]](), []
            gate.wait(120)
            for round_ in range(batches):
                asked = [
                    batch.Hold(
                        transfer=transfer(
                            (number * batches + round_) * size + each + 1,
                            random.choice(wallets),
                            revenue,
                            10,
                        ),
                        holder="me",
                        expires_at=LATER,
                    )
                    for each in range(size)
                ]
                with db.transaction() as tx:
                    answers = batch.hold_many(tx, asked, now=NOON)
                for one, answer in zip(asked, answers, strict=True):
                    kind = answer if isinstance(answer, bool) else type(answer)
                    outcomes[one.transfer.debit_account, kind] += 1
                    granted += [one.transfer.id] if answer is True else []
            return outcomes, granted

        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(work, range(threads)))
            outcomes = sum((result[0] for result in results), Counter[tuple[int, object]]())
            for wallet in wallets:
                asked_of = outcomes[wallet, True] + outcomes[wallet, Unpaid]
                assert outcomes[wallet, True] == min(worth, asked_of) == worth
            assert sum(outcomes.values()) == threads * batches * size

            # Everybody now settles everything, each in an order of their own.
            granted = [id_ for result in results for id_ in result[1]]

            def settle(number: int) -> list[UUID | SubletError | None]:
                mine = Random(number).sample(granted, len(granted))
                gate.wait(120)
                with db.transaction() as tx:
                    settlements = [
                        batch.Settlement(hold_id=id_, amount=Money(7), happened_at=NOON)
                        for id_ in mine
                    ]
                    return batch.settle_many(tx, settlements, now=NOON)

            for made in pool.map(settle, range(threads)):
                assert all(isinstance(one, UUID) for one in made)
                assert len(set(made)) == len(granted)
        findings = Findings()
        with db.transaction() as tx:
            audit.audit(tx, findings, now=NOON)
            assert store.get_account(tx, "revenue").balance == Money(7 * len(granted))
        assert findings.differences == []
        assert findings.counts["no_overspend"]["open_holds"] == 0


def test_an_id_that_somebody_takes_at_this_moment_is_not_held(database_url: str) -> None:
    with Database(database_url, connections=3) as db:
        with db.transaction() as tx:
            revenue, wallet, other = accounts(tx, 100, 100)
            bank = store.get_account(tx, "bank").id
        mine, lost = (
            batch.Hold(
                transfer=transfer(number, wallet, revenue, 40), holder="me", expires_at=LATER
            )
            for number in (1, 2)
        )
        with db.transaction() as tx:
            taken = batch.Holds(tx, accounts=[wallet, revenue], ids=[UUID(int=1), UUID(int=2)])
            assert [taken.hold(one, now=NOON) for one in (mine, lost)] == [True, True]
            with db.transaction() as theirs:
                thief = transfer(2, other, bank, 5)
                store.hold(theirs, thief, holder="them", expires_at=LATER, now=NOON)
            assert taken.write(now=NOON) == {UUID(int=2)}
        findings = Findings()
        with db.transaction() as tx:
            assert store.get_account(tx, "wallet:0").held == Money(40)
            assert [(one.id, one.holder) for one in store.holds_of(tx, "me")] == [
                (UUID(int=1), "me")
            ]
            audit.audit(tx, findings, now=NOON)
        assert findings.differences == []


def test_payments_are_made_all_or_none_and_a_repeat_changes_nothing(db: Database) -> None:
    with db.transaction() as tx:
        revenue, poor, rich = accounts(tx, 100, 1000)
    before = [transfer(1, rich, revenue, 70), transfer(2, poor, revenue, 100)]
    with db.transaction() as tx:
        assert batch.pay_many(tx, [], now=NOON) == {}
        assert batch.pay_many(tx, before, now=NOON) == {}
    wrong: dict[str, Transfer] = {
        "Unpaid": transfer(3, poor, revenue, 1),
        "Invalid": transfer(2, poor, revenue, 99),  # the same id, other contents
        "NotFound": transfer(4, rich, 10**9, 1),
    }
    for kind, one in wrong.items():
        with db.transaction() as tx:
            refused = batch.pay_many(tx, [transfer(5, rich, revenue, 5), one], now=NOON)
        assert {id_: type(error).__name__ for id_, error in refused.items()} == {one.id: kind}
    for nothing in (transfer(6, rich, revenue, 0), transfer(6, rich, rich, 1)):
        with db.transaction() as tx:
            refused = batch.pay_many(tx, [transfer(5, rich, revenue, 5), nothing], now=NOON)
        assert {id_: type(error) for id_, error in refused.items()} == {nothing.id: Invalid}
    with db.transaction() as tx:
        # One that was made before asks the wallet for nothing.
        again = [*before, transfer(7, rich, revenue, 930)]
        assert batch.pay_many(tx, again, now=NOON) == {}
        assert store.get_account(tx, "wallet:0").available == Money(0)
        assert store.get_account(tx, "wallet:1").available == Money(0)
        assert store.get_account(tx, "revenue").balance == Money(1100)
        assert batch.existing(tx, [UUID(int=number) for number in range(1, 8)]) == {
            UUID(int=number) for number in (1, 2, 7)
        }
        findings = Findings()
        audit.audit(tx, findings, now=NOON)
    assert findings.differences == []


def test_several_payments_of_one_wallet_must_fit_it_together(db: Database) -> None:
    with db.transaction() as tx:
        revenue, wallet = accounts(tx, 100)
        held = batch.Hold(transfer=transfer(1, wallet, revenue, 40), holder="me", expires_at=LATER)
        assert batch.hold_many(tx, [held], now=NOON) == [True]
        asked = [transfer(number, wallet, revenue, 30) for number in (2, 3, 4)]
        assert set(batch.pay_many(tx, asked, now=NOON)) == {UUID(int=n) for n in (2, 3, 4)}
        assert batch.pay_many(tx, asked[:2], now=NOON) == {}
        assert store.get_account(tx, "wallet:0").available == Money(0)


def test_of_two_payments_at_once_the_second_sees_what_the_first_has_left(
    database_url: str,
) -> None:
    with Database(database_url, connections=3) as db:
        with db.transaction() as tx:
            revenue, wallet = accounts(tx, 100)
        with db.transaction() as first, ThreadPoolExecutor(1) as pool:
            assert batch.pay_many(first, [transfer(1, wallet, revenue, 60)], now=NOON) == {}

            def pay() -> dict[UUID, SubletError]:
                with db.transaction() as tx:
                    return batch.pay_many(tx, [transfer(2, wallet, revenue, 60)], now=NOON)

            paying = pool.submit(pay)
            until_one_waits(db)
            first.commit()
            refused = paying.result(30)
        assert {id_: type(error) for id_, error in refused.items()} == {UUID(int=2): Unpaid}
        with db.transaction() as tx:
            assert store.get_account(tx, "wallet:0").available == Money(40)


def test_a_payment_whose_id_somebody_takes_at_this_moment_is_not_made(database_url: str) -> None:
    # Two ask for the same id over other accounts, so their locks do not keep them apart.
    with Database(database_url, connections=3) as db:
        with db.transaction() as tx:
            revenue, wallet, other = accounts(tx, 100, 100)
            bank = store.get_account(tx, "bank").id
        with db.transaction() as theirs:
            store.post(theirs, transfer(2, other, bank, 5), now=NOON)
            with ThreadPoolExecutor(1) as pool:

                def pay() -> None:
                    with db.transaction() as tx:
                        batch.pay_many(tx, [transfer(2, wallet, revenue, 40)], now=NOON)

                paying = pool.submit(pay)
                until_one_waits(db)
                theirs.commit()
                with pytest.raises(Invalid, match="other contents"):
                    paying.result(30)
        with db.transaction() as tx:
            assert store.get_account(tx, "wallet:0").available == Money(100)


def until_one_waits(db: Database) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with db.transaction() as tx:
            found = tx.execute(
                "SELECT count(*) AS n FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone()
        if found == {"n": 1}:
            return
        time.sleep(0.01)
    raise AssertionError("nobody waits for a lock")
