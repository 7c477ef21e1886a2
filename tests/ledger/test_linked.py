"""A chain of steps is taken whole or not at all, by whomever, in whatever order."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from threading import Barrier, Thread
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.core.databases import fresh, undone

from sublet.core.audit import Findings
from sublet.core.db import Database, Tx
from sublet.core.errors import Conflict, Invalid, NotFound, SubletError, Unpaid
from sublet.core.ids import sibling_id
from sublet.core.money import Money
from sublet.core.process import wait_for
from sublet.ledger import audit, store
from sublet.ledger.batch import Hold, Settlement, hold_many
from sublet.ledger.linked import Broken, Expire, Post, Step, Void, link, link_many
from sublet.ledger.transfer import Transfer

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
T = TypeVar("T")
CODES = ("revenue", "wallet:0", "wallet:1")


@pytest.fixture(scope="module")
def book(postgres_url: str, template: str) -> Iterator[Database]:
    """A database with revenue and two wallets of 100 nanos, to which nothing is ever added."""
    with fresh(postgres_url, template) as db:
        with db.transaction() as tx:
            accounts(tx)
        yield db


def accounts(tx: Tx) -> list[int]:
    """Return revenue, two wallets, and an account that does not exist."""
    bank = store.open_account(tx, "bank", prepaid=False).id
    opened = [store.open_account(tx, code, prepaid=code.startswith("wallet")).id for code in CODES]
    for number, wallet in enumerate(opened[1:]):
        store.post(tx, transfer(10**6 + number, bank, wallet, 100), now=NOON)
    return [*opened, 10**9]


def transfer(number: int, debit: int, credit: int, nanos: int) -> Transfer:
    return Transfer(
        id=UUID(int=number),
        debit_account=debit,
        credit_account=credit,
        amount=Money(nanos),
        reason="test",
        happened_at=NOON,
    )


def post(number: int, debit: int, credit: int, nanos: int) -> Post:
    return Post(transfer=transfer(number, debit, credit, nanos))


def hold(number: int, debit: int, credit: int, nanos: int, *, until: datetime = LATER) -> Hold:
    return Hold(transfer=transfer(number, debit, credit, nanos), holder="me", expires_at=until)


def settle(number: int, nanos: int) -> Settlement:
    return Settlement(hold_id=UUID(int=number), amount=Money(nanos), happened_at=NOON)


def void(number: int) -> Void:
    return Void(hold_id=UUID(int=number))


def expire(number: int) -> Expire:
    return Expire(hold_id=UUID(int=number))


def audited(tx: Tx) -> None:
    findings = Findings()
    audit.audit(tx, findings, now=NOON)
    assert findings.differences == []


# ── the same as one by one, all or none ──────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Plan:
    """A step as plain numbers; `debit` and `credit` are places in `accounts`."""

    way: str
    number: int
    debit: int
    credit: int
    nanos: int
    late: bool  # it expires only later

    def step(self, known: list[int]) -> Step:
        debit, credit = known[self.debit], known[self.credit]
        match self.way:
            case "post":
                return post(self.number, debit, credit, self.nanos)
            case "hold":
                until = LATER if self.late else NOON
                return hold(self.number, debit, credit, self.nanos, until=until)
            case "settle":
                return settle(self.number, self.nanos)
            case "void":
                return void(self.number)
            case _:
                return expire(self.number)


# Few ids and few accounts, so that repeats, other contents and empty wallets are common. The
# ids are in no order: what the record is numbered by is the order of the steps.
PLAN = st.builds(
    Plan,
    way=st.sampled_from(["post", "hold", "hold", "settle", "settle", "void", "expire"]),
    number=st.integers(1, 6),
    debit=st.sampled_from([0, 1, 1, 2, 2, 3]),
    credit=st.sampled_from([0, 0, 1, 2]),
    nanos=st.sampled_from([-1, 0, 1, 30, 60, 10**28]),
    late=st.booleans(),
)
CHAINS = st.lists(st.lists(PLAN, max_size=5), min_size=1, max_size=3)


def by_one(tx: Tx, chain: list[Step]) -> bool | tuple[int, type[SubletError]]:
    """What `store` makes of a chain, one step after the other."""
    news: list[bool] = []
    try:
        with tx.transaction():
            for step in chain:
                try:
                    with tx.transaction():
                        news.append(take(tx, step))
                except SubletError as error:
                    raise _Undo(len(news), type(error)) from None
                if news[-1] is not news[0]:
                    raise _Undo(len(news) - 1, Invalid)
    except _Undo as undo:
        return undo.args[0], undo.args[1]
    return any(news)


class _Undo(Exception):
    pass


def take(tx: Tx, step: Step) -> bool:
    match step:
        case Post(transfer=it):
            if it.debit_account == it.credit_account and it.amount.nanos in range(1, 100):
                raise Invalid("the database would refuse it")
            return store.post(tx, it, now=NOON)
        case Hold(transfer=it):
            if it.debit_account == it.credit_account and it.amount.nanos in range(1, 100):
                raise Invalid("the database would refuse it")
            return store.hold(tx, it, holder=step.holder, expires_at=step.expires_at, now=NOON)
        case Settlement():
            new = is_open(tx, step.hold_id)
            store.settle(tx, step.hold_id, step.amount, happened_at=step.happened_at, now=NOON)
            return new
        case Void():
            new = is_open(tx, step.hold_id)
            store.void(tx, step.hold_id, now=NOON)
            return new
        case Expire():
            return expire_one(tx, step.hold_id)


def is_open(tx: Tx, hold_id: UUID) -> bool:
    return bool(tx.execute("SELECT FROM open_hold WHERE transfer_id = %s", [hold_id]).fetchall())


def expire_one(tx: Tx, hold_id: UUID) -> bool:
    """What the sweeper would do, were this the only hold there is."""
    if is_open(tx, hold_id):
        with tx.transaction():
            others = tx.execute(
                "DELETE FROM open_hold WHERE transfer_id <> %s RETURNING *", [hold_id]
            ).fetchall()
            expired = store.expire(tx, now=NOON)
            for row in others:
                tx.execute(
                    "INSERT INTO open_hold VALUES (%(transfer_id)s, %(holder)s, %(expires_at)s)",
                    row,
                )
        if expired == [hold_id]:
            return True
        raise Conflict("not yet")
    rows = tx.execute(
        "SELECT r.kind FROM transfer h LEFT JOIN transfer r ON r.pending_id = h.id"
        " WHERE h.id = %s AND h.kind = 'pending'",
        [hold_id],
    ).fetchall()
    if not rows:
        raise NotFound("no such hold")
    if rows[0]["kind"] != "expire":
        raise Conflict("resolved otherwise")
    return False


def written(tx: Tx) -> list[object]:
    """Everything the ledger says; for a transfer's number its place among the others."""
    queries = (
        (
            "SELECT id, debits_pending, debits_posted, credits_pending, credits_posted"
            " FROM account ORDER BY id"
        ),
        (
            "SELECT id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,"
            " expires_at, happened_at, recorded_at FROM transfer ORDER BY sequence"
        ),
        "SELECT * FROM open_hold ORDER BY transfer_id",
    )
    return [tx.execute(query.encode()).fetchall() for query in queries]


@settings(max_examples=80, deadline=None)
@example([[Plan("hold", 2, 1, 0, 60, True), Plan("settle", 2, 0, 0, 30, True)]] * 2)
@example([[Plan("post", 2, 1, 2, 60, True), Plan("post", 1, 2, 0, 160, True)]])
@given(CHAINS)
def test_a_chain_does_what_its_steps_do_or_nothing(book: Database, plans: list[list[Plan]]) -> None:
    ends: list[list[object]] = []
    for together in (True, False):
        with undone(book) as tx:
            known = accounts(tx)
            chains = [[plan.step(known) for plan in plan_] for plan_ in plans]
            if together:
                outcomes: list[object] = [
                    (one.at, type(one.error)) if isinstance(one, Broken) else one
                    for one in link_many(tx, chains, now=NOON)
                ]
            else:
                outcomes = [by_one(tx, chain) for chain in chains]
            audited(tx)
            ends.append([outcomes, *written(tx)])
    assert ends[0] == ends[1]


# ── by example ───────────────────────────────────────────────────────────────────────────


def test_a_chain_spends_what_it_has_just_received_and_settles_what_it_has_just_held(
    book: Database,
) -> None:
    with undone(book) as tx:
        revenue, payer, payee, _ = accounts(tx)
        chain = [post(9, payer, payee, 100), hold(8, payee, revenue, 200), settle(8, 150)]
        assert link(tx, chain, now=NOON) is True
        assert store.get_account(tx, "wallet:0").balance == Money(0)
        account = store.get_account(tx, "wallet:1")
        assert (account.balance, account.held) == (Money(50), Money(0))
        assert store.holds_of(tx, "") == []
        audited(tx)


def test_a_chain_spends_no_more_than_is_left_by_the_steps_ahead_of_it(book: Database) -> None:
    with undone(book) as tx:
        revenue, payer, payee, _ = accounts(tx)
        too_much: list[list[Step]] = [
            [hold(1, payer, revenue, 60), hold(2, payer, revenue, 41)],
            [post(1, payer, revenue, 60), post(2, payer, revenue, 41)],
            [hold(1, payer, revenue, 100), settle(1, 60), post(2, payer, revenue, 41)],
            [post(1, payer, payee, 60), post(2, payee, revenue, 161)],
            [hold(1, payer, payee, 60), post(2, payee, revenue, 101)],  # held is not had
        ]
        for chain in too_much:
            with pytest.raises(Unpaid, match=f"^step {len(chain)} "):
                link(tx, chain, now=NOON)
        enough: list[list[Step]] = [
            [hold(1, payer, revenue, 100), settle(1, 60), hold(2, payer, revenue, 40), void(2)],
            [post(3, payer, payee, 40), hold(4, payee, revenue, 140)],
        ]
        assert link_many(tx, enough, now=NOON) == [True, True]
        for code, nanos in (("wallet:0", 0), ("wallet:1", 0)):
            assert store.get_account(tx, code).available == Money(nanos)
        audited(tx)


def test_chains_of_one_call_spend_what_the_chains_ahead_of_them_left(book: Database) -> None:
    with undone(book) as tx:
        revenue, payer, _, _ = accounts(tx)
        outcomes = link_many(
            tx,
            [
                [hold(1, payer, revenue, 60)],
                [hold(2, payer, revenue, 60)],
                [settle(1, 50), hold(3, payer, revenue, 50)],
                [hold(1, payer, revenue, 60)],
                [settle(1, 50)],
                [settle(3, 51)],
                [settle(2, 1)],
            ],
            now=NOON,
        )
        kinds = [type(one.error) if isinstance(one, Broken) else one for one in outcomes]
        assert kinds == [True, Unpaid, True, False, False, Invalid, NotFound]
        audited(tx)


def test_a_hold_of_a_chain_that_broke_stays_open(book: Database) -> None:
    with undone(book) as tx:
        revenue, payer, _, _ = accounts(tx)
        assert link(tx, [hold(1, payer, revenue, 10), hold(2, payer, revenue, 10)], now=NOON)
        outcomes = link_many(tx, [[settle(1, 11)], [settle(2, 5)]], now=NOON)
        assert isinstance(outcomes[0], Broken) and outcomes[1] is True
        assert [one.id for one in store.holds_of(tx, "me")] == [UUID(int=1)]
        audited(tx)
        assert store.expire(tx, now=LATER) == [UUID(int=1)]


def test_what_has_expired_has_expired_also_when_the_clock_was_set_back(book: Database) -> None:
    with undone(book) as tx:
        revenue, payer, _, _ = accounts(tx)
        assert link(tx, [hold(1, payer, revenue, 60), hold(2, payer, revenue, 1)], now=NOON)
        assert link(tx, [expire(1)], now=LATER) is True
        assert link(tx, [expire(1)], now=NOON) is False
        with pytest.raises(Conflict, match=r"runs until 2026-01-01T13:00:00"):
            link(tx, [expire(2)], now=LATER - timedelta(microseconds=1))


def test_a_repeat_of_a_whole_chain_has_no_effect_and_of_a_part_is_invalid(book: Database) -> None:
    with undone(book) as tx:
        revenue, payer, payee, _ = accounts(tx)
        chain: list[Step] = [hold(1, payer, revenue, 60), settle(1, 50), post(2, payee, revenue, 5)]
        assert link(tx, chain, now=NOON) is True
        before = written(tx)
        assert link(tx, chain, now=LATER) is False
        assert link(tx, chain[1:], now=LATER) is False
        for longer, which in (
            ([*chain, post(3, payer, revenue, 1)], "step 4 .* it is new"),
            ([post(3, payer, revenue, 1), *chain], "step 2 .* it was recorded before"),
            ([*chain[:2], post(2, payee, revenue, 6)], "step 3 .* other contents"),
            ([post(3, payer, revenue, 1)] * 2, "step 2 .* it was recorded before"),
        ):
            with pytest.raises(Invalid, match=which):
                link(tx, longer, now=NOON)
        assert written(tx) == before


def test_the_step_that_breaks_a_chain_is_named_and_the_others_are_not_taken(
    book: Database,
) -> None:
    with undone(book) as tx:
        revenue, payer, payee, nowhere = accounts(tx)
        open_ = [hold(1, payer, revenue, 10), hold(2, payer, revenue, 10, until=NOON)]
        assert link(tx, open_, now=NOON)
        before = written(tx)
        first = post(3, payer, payee, 1)
        breaking: list[tuple[Step, type[SubletError]]] = [
            (post(4, payee, revenue, 102), Unpaid),
            (post(4, payee, nowhere, 1), NotFound),
            (post(4, payee, payee, 1), Invalid),
            (hold(4, payee, revenue, 0), Invalid),
            (settle(1, 11), Invalid),
            (settle(1, -1), Invalid),
            (settle(5, 1), NotFound),
            (void(3), NotFound),  # a payment is no hold
            (expire(1), Conflict),
        ]
        for step, kind in breaking:
            with pytest.raises(kind, match=r"^step 3 cannot be taken, so none of the chain was: "):
                link(tx, [first, settle(2, 1), step], now=NOON)
        assert written(tx) == before
        outcomes = link_many(
            tx, [[first, breaking[0][0]], [], [expire(2), first], [first]], now=NOON
        )
        assert isinstance(outcomes[0], Broken) and outcomes[0].at == 1
        assert outcomes[1:3] == [False, True]
        assert isinstance(outcomes[3], bool) and outcomes[3] is False
        audited(tx)


def test_every_step_has_two_times(book: Database) -> None:
    with undone(book) as tx:
        revenue, payer, _, _ = accounts(tx)
        assert link(tx, [hold(1, payer, revenue, 9), settle(1, 4)], now=LATER)
        rows = tx.execute(
            "SELECT kind, happened_at, recorded_at, expires_at FROM transfer"
            " WHERE %(id)s IN (id, pending_id) ORDER BY sequence",
            {"id": UUID(int=1)},
        ).fetchall()
        assert [tuple(row.values()) for row in rows] == [
            ("pending", NOON, LATER, LATER),
            ("post", NOON, LATER, None),
        ]


def test_the_caller_owns_the_transaction(book: Database) -> None:
    before: list[object] = []
    with undone(book) as tx:
        accounts(tx)
        before += written(tx)
    with undone(book) as tx:  # as the first statement of all
        revenue, one = (row["id"] for row in find(book))
        assert link(tx, [post(1, one, revenue, 5)], now=NOON)
    with undone(book) as tx:
        assert written(tx) == before


def find(db: Database) -> list[dict[str, Any]]:
    with db.transaction() as tx:
        return tx.execute(
            "SELECT id FROM account WHERE code = ANY(%s) ORDER BY code", [list(CODES[:2])]
        ).fetchall()


# ── many at once ─────────────────────────────────────────────────────────────────────────


def together(calls: list[Callable[[], object]]) -> list[object]:
    gate = Barrier(len(calls))

    def go(call: Callable[[], object]) -> object:
        gate.wait(120)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(go, calls))


def test_chains_that_cross_wait_for_nobody_for_ever_and_move_all_or_nothing(
    database_url: str,
) -> None:
    threads, rounds = 6, 8
    with Database(database_url, connections=threads, wait_seconds=30) as db:
        with db.transaction() as tx:
            revenue, one, two, _ = accounts(tx)

        def work(number: int) -> Counter[object]:
            dice, told = Random(number), Counter[object]()
            for round_ in range(rounds):
                # The same ids for whoever comes, in an order and with accounts of their own.
                first, second = dice.sample([round_ * 2 + 1, round_ * 2 + 2], 2)
                payer, payee = dice.sample([one, two, revenue], 2)
                chain = [
                    post(first, payer, payee, 3),
                    hold(second, payee, payer, 3),
                    settle(second, 2),
                ]
                with db.transaction() as tx:
                    outcome = link_many(tx, [chain], now=NOON)[0]
                assert isinstance(outcome, bool) or isinstance(outcome.error, Invalid), outcome
                told[outcome if isinstance(outcome, bool) else Invalid] += 1
            return told

        answers = together([partial(work, number) for number in range(threads)])
        told = sum(answers, Counter())  # type: ignore[arg-type]
        assert told[True] == rounds
        with db.transaction() as tx:
            audited(tx)
            rows = tx.execute(
                "SELECT kind, count(*) FROM transfer WHERE id < %s OR pending_id < %s"
                " GROUP BY kind ORDER BY kind",
                [UUID(int=10**6)] * 2,
            ).fetchall()
            assert [tuple(row.values()) for row in rows] == [
                ("pending", rounds),
                ("post", rounds),
                ("posted", rounds),
            ]


@pytest.fixture
def pair(database_url: str) -> Iterator[Database]:
    with Database(database_url, connections=3) as db:
        yield db
        with db.transaction() as tx:
            audited(tx)


def waits(db: Database) -> bool:
    """Return whether somebody waits for a lock."""
    with db.transaction() as tx:
        return bool(
            tx.execute(
                "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock'"
            ).fetchall()
        )


def while_another(db: Database, act: Callable[[Tx], object], chain: list[Step]) -> bool | Broken:
    """Link `chain` while a transaction that did `act` is open, which then commits."""
    return meanwhile(db, act, lambda tx: link_many(tx, [chain], now=NOON)[0])


def meanwhile(db: Database, act: Callable[[Tx], object], then: Callable[[Tx], T]) -> T:
    answers: list[T] = []

    def other() -> None:
        with db.transaction() as tx:
            answers.append(then(tx))

    thread = Thread(target=other)
    with db.transaction() as tx:
        act(tx)
        thread.start()
        assert wait_for(lambda: waits(db), wait_seconds=20)
    thread.join(20)
    return answers[0]


def test_of_many_holds_the_one_whose_id_somebody_takes_at_this_moment_is_not_granted(
    pair: Database,
) -> None:
    with pair.transaction() as tx:
        revenue, one, two, _ = accounts(tx)
        bank = store.get_account(tx, "bank").id
    theft = transfer(2, bank, two, 1)
    asked = [hold(number, one, revenue, 5) for number in (1, 2, 3)]
    answers = meanwhile(
        pair,
        lambda tx: store.post(tx, theft, now=NOON),
        lambda tx: hold_many(tx, asked, now=NOON),
    )
    assert [answers[0], type(answers[1]), answers[2]] == [True, Invalid, True]
    with pair.transaction() as tx:
        assert store.get_account(tx, "wallet:0").held == Money(10)


def test_an_id_that_somebody_takes_at_this_moment_breaks_the_chain(pair: Database) -> None:
    with pair.transaction() as tx:
        revenue, one, two, _ = accounts(tx)
        bank = store.get_account(tx, "bank").id
    theft = transfer(2, bank, two, 1)
    chain: list[Step] = [post(1, one, revenue, 5), post(2, one, revenue, 6)]
    outcome = while_another(pair, lambda tx: store.post(tx, theft, now=NOON), chain)
    assert isinstance(outcome, Broken) and outcome.at == 1
    assert isinstance(outcome.error, Invalid)
    with pair.transaction() as tx:
        assert store.get_account(tx, "wallet:0").balance == Money(100)


def test_a_hold_that_somebody_resolves_at_this_moment_breaks_the_chain(pair: Database) -> None:
    with pair.transaction() as tx:
        revenue, one, two, _ = accounts(tx)
        assert link(tx, [hold(1, one, revenue, 50)], now=NOON)
    outcome = while_another(
        pair,
        lambda tx: store.void(tx, UUID(int=1), now=NOON),
        [post(2, two, revenue, 5), settle(1, 50)],
    )
    assert isinstance(outcome, Broken) and outcome.at == 1
    assert isinstance(outcome.error, Conflict)
    with pair.transaction() as tx:
        assert store.get_account(tx, "wallet:1").balance == Money(100)


def test_a_hold_that_somebody_makes_at_this_moment_is_found_or_not_but_never_half(
    pair: Database,
) -> None:
    """It is looked for before accounts are locked, and read when they are."""
    with pair.transaction() as tx:
        revenue, one, two, _ = accounts(tx)

    def make(tx: Tx) -> None:
        made = transfer(1, one, revenue, 50)
        store.hold(tx, made, holder="them", expires_at=LATER, now=NOON)

    # Waits for the wallet that the hold is out of, having looked for the hold in vain.
    chain: list[Step] = [post(2, one, two, 50), settle(1, 20)]
    assert while_another(pair, make, chain) is True
    with pair.transaction() as tx:
        assert store.get_account(tx, "wallet:0").balance == Money(30)
        rows = tx.execute("SELECT id FROM transfer WHERE pending_id IS NOT NULL").fetchall()
        assert rows == [{"id": sibling_id(UUID(int=1), store.RESOLUTION)}]


def test_an_id_that_is_never_free_is_a_conflict_and_no_endless_search(book: Database) -> None:
    with undone(book) as tx:
        revenue, payer, payee, _ = accounts(tx)
        assert link(tx, [hold(1, payer, revenue, 5)], now=NOON)
        taken = sibling_id(UUID(int=1), store.RESOLUTION)
        assert store.post(tx, transfer(taken.int, payee, revenue, 1), now=NOON)
        before = written(tx)
        with pytest.raises(Conflict, match="in a row"):
            link(tx, [settle(1, 5)], now=NOON)
        assert written(tx) == before


def test_a_chain_of_another_reason_is_another_chain(book: Database) -> None:
    with undone(book) as tx:
        revenue, payer, _, _ = accounts(tx)
        first = post(1, payer, revenue, 5)
        assert link(tx, [first], now=NOON)
        other = replace(first, transfer=replace(first.transfer, reason="other"))
        with pytest.raises(Invalid, match=r"step 1 .*other contents"):
            link(tx, [other], now=NOON)
