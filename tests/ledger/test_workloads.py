"""Two of Jepsen's workloads for ledgers, over real connections: transfers, and idempotence.

The third, operations of which nobody knows whether they happened, is in test_indefinite.py.
The record is replayed, in the order that it gives itself, by a single-threaded model that
knows nothing of SQL: what many threads did must be what one could have done.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from random import Random
from threading import Barrier
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest

from sublet.core.audit import Findings
from sublet.core.db import Database
from sublet.core.errors import Conflict, Invalid, Unpaid
from sublet.core.money import Money
from sublet.ledger import audit, store
from sublet.ledger.batch import void_many
from sublet.ledger.transfer import Account, Kind, Transfer

pytestmark = pytest.mark.real

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SOON, LATER = NOON + timedelta(seconds=1), NOON + timedelta(hours=1)
THREADS = 8
STEPS = 60
T = TypeVar("T")


@pytest.fixture
def wide(database_url: str) -> Iterator[Database]:
    with Database(database_url, connections=THREADS, wait_seconds=30) as db:
        yield db
        findings = Findings()
        with db.transaction() as tx:
            audit.audit(tx, findings, now=NOON)
        assert findings.differences == []
        assert findings.counts["money"]["transfers"] > 0


def together(calls: list[Callable[[], T]]) -> list[T]:
    """Make every call in a thread of its own, all at once."""
    gate = Barrier(len(calls))

    def go(call: Callable[[], T]) -> T:
        gate.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(go, calls))


# ── transfers ────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Model:
    """One thread, whole numbers: what each account has and holds after every transfer."""

    prepaid: frozenset[int]
    balance: Counter[int] = field(default_factory=Counter)
    held: Counter[int] = field(default_factory=Counter)
    rows: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    resolved: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    # Of each account, what was available from which transfer on.
    moments: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def replay(self, row: dict[str, Any]) -> None:
        payer, payee, nanos = row["debit_account"], row["credit_account"], int(row["amount_nanos"])
        assert row["id"] not in self.rows
        self.rows[row["id"]] = row
        match row["kind"]:
            case Kind.POSTED:
                self._move(payer, payee, nanos)
            case Kind.PENDING:
                self.held[payer] += nanos
            case _:
                hold = self.rows[row["pending_id"]]
                assert hold["id"] not in self.resolved
                assert (hold["kind"], hold["debit_account"]) == (Kind.PENDING, payer)
                assert nanos <= hold["amount_nanos"]
                assert bool(nanos) == (row["kind"] == Kind.POST)
                self.resolved[hold["id"]] = row
                self.held[payer] -= int(hold["amount_nanos"])
                self._move(payer, payee, nanos)
        for account in (payer, payee):
            available = self.balance[account] - self.held[account]
            assert account not in self.prepaid or available >= 0
            self.moments.setdefault(account, [(0, 0)]).append((row["sequence"], available))

    def _move(self, payer: int, payee: int, nanos: int) -> None:
        self.balance[payer] -= nanos
        self.balance[payee] += nanos

    def least(self, account: int, since: int, until: int) -> int:
        """Return the least that was available between two looks at the record."""
        moments = [*self.moments.get(account, [(0, 0)]), (until + 1, 0)]
        return min(
            available
            for (begin, available), (end, _) in pairwise(moments)
            if begin <= until and end > since
        )


@dataclass(slots=True)
class Crowd:
    """Threads that move money between a few accounts; each notes what it was told."""

    db: Database
    accounts: list[Account]
    posted: list[Transfer] = field(default_factory=list)
    holds: list[Transfer] = field(default_factory=list)
    refused: list[tuple[Transfer, int, int]] = field(default_factory=list)
    settled: list[tuple[UUID, int]] = field(default_factory=list)
    voided: list[UUID] = field(default_factory=list)
    expired: list[UUID] = field(default_factory=list)
    beaten: list[tuple[UUID, Kind]] = field(default_factory=list)  # somebody resolved it otherwise

    def work(self, dice: Random) -> None:
        for _ in range(STEPS):
            way = dice.choices(
                (self.pay, self.hold, self.settle, self.void, self.sweep, self.expire, self.repeat),
                weights=(6, 8, 4, 2, 1, 1, 1),
            )[0]
            way(dice)

    def pay(self, dice: Random) -> None:
        self._try(dice, self.posted, lambda tx, it: store.post(tx, it, now=NOON))

    def hold(self, dice: Random) -> None:
        expires_at = dice.choice((SOON, LATER, LATER))
        self._try(
            dice,
            self.holds,
            lambda tx, it: store.hold(tx, it, holder="me", expires_at=expires_at, now=NOON),
        )

    def _try(
        self, dice: Random, done: list[Transfer], act: Callable[[Any, Transfer], bool]
    ) -> None:
        payer, payee = dice.sample(self.accounts, 2)
        wanted = Transfer(
            id=UUID(int=dice.getrandbits(128)),
            debit_account=payer.id,
            credit_account=payee.id,
            amount=Money(dice.randint(1, 60)),
            reason="test",
            happened_at=NOON,
        )
        since = self._last(payer)
        try:
            with self.db.transaction() as tx:
                assert act(tx, wanted)
        except Unpaid:
            self.refused.append((wanted, since, self._last(payer)))
        else:
            done.append(wanted)

    def _last(self, account: Account) -> int:
        """Return the account's last transfer that everybody can see."""
        with self.db.transaction() as tx:
            row = tx.execute(
                "SELECT coalesce(max(sequence), 0) AS last FROM transfer"
                " WHERE %(id)s IN (debit_account, credit_account)",
                {"id": account.id},
            ).fetchone()
        assert row is not None
        return int(row["last"])

    def settle(self, dice: Random) -> None:
        if not self.holds:
            return
        hold = dice.choice(self.holds)
        nanos = dice.choice((1, hold.amount.nanos))
        try:
            with self.db.transaction() as tx:
                store.settle(tx, hold.id, Money(nanos), happened_at=NOON, now=NOON)
        except (Conflict, Invalid):
            self.beaten.append((hold.id, Kind.POST))
        else:
            self.settled.append((hold.id, nanos))

    def void(self, dice: Random) -> None:
        if not self.holds:
            return
        hold = dice.choice(self.holds)
        try:
            with self.db.transaction() as tx:
                store.void(tx, hold.id, now=NOON)
        except Conflict:
            self.beaten.append((hold.id, Kind.VOID))
        else:
            self.voided.append(hold.id)

    def sweep(self, dice: Random) -> None:
        some = [hold.id for hold in dice.sample(list(self.holds), min(len(self.holds), 5))]
        with self.db.transaction() as tx:
            outcomes = void_many(tx, some, now=NOON)
        for hold_id, outcome in zip(some, outcomes, strict=True):
            assert outcome is None or isinstance(outcome, Conflict)
            if outcome is None:
                self.voided.append(hold_id)

    def expire(self, _: Random) -> None:
        with self.db.transaction() as tx:
            expired = store.expire(tx, now=SOON)
        self.expired.extend(expired)

    def repeat(self, dice: Random) -> None:
        if self.posted:
            with self.db.transaction() as tx:
                assert not store.post(tx, dice.choice(self.posted), now=NOON)


@pytest.mark.parametrize("seed", range(3))
def test_what_many_threads_did_one_could_have_done(wide: Database, seed: int) -> None:
    with wide.transaction() as tx:
        accounts = [
            store.open_account(tx, f"account:{number}", prepaid=number < 4) for number in range(6)
        ]
    crowd = Crowd(wide, accounts)
    together([partial(crowd.work, Random(f"{seed} {n}")) for n in range(THREADS)])

    model = Model(prepaid=frozenset(account.id for account in accounts if account.prepaid))
    with wide.transaction() as tx:
        for row in tx.execute("SELECT * FROM transfer ORDER BY sequence").fetchall():
            model.replay(row)
        for account in accounts:
            found = store.get_account(tx, account.code)
            assert found.balance == Money(model.balance[account.id])
            assert found.held == Money(model.held[account.id])

    # Whatever was told to a thread is in the record, and nothing else is.
    kinds: dict[Kind, set[UUID]] = {kind: set() for kind in Kind}
    for id_, row in model.rows.items():
        kinds[Kind(row["kind"])].add(id_)
    assert kinds[Kind.POSTED] == {transfer.id for transfer in crowd.posted}
    assert kinds[Kind.PENDING] == {transfer.id for transfer in crowd.holds}
    of_record = {id_: (row["kind"], row["amount_nanos"]) for id_, row in model.resolved.items()}
    assert of_record == (
        {id_: (Kind.POST, nanos) for id_, nanos in crowd.settled}
        | dict.fromkeys(crowd.voided, (Kind.VOID, 0))
        | dict.fromkeys(crowd.expired, (Kind.EXPIRE, 0))
    )
    assert len(crowd.expired) == len(set(crowd.expired))
    for id_, kind in crowd.beaten:
        assert of_record[id_][0] != kind or kind is Kind.POST
    # Whoever was refused for want of money: there was a moment at which it was not there.
    for wanted, since, until in crowd.refused:
        assert model.least(wanted.debit_account, since, until) < wanted.amount.nanos
    assert crowd.refused and crowd.settled and crowd.voided and crowd.expired and crowd.beaten


# ── idempotence ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Attempt:
    """One use of an id; `variant` makes the contents."""

    id: int
    variant: int
    hold: bool


def test_one_id_has_one_effect_and_one_contents(wide: Database) -> None:
    # Dice, not Hypothesis: what threads do cannot be replayed, so nothing could be shrunk.
    dice = Random(1)
    with wide.transaction() as tx:
        accounts = [store.open_account(tx, f"account:{n}", prepaid=False) for n in range(2)]

    def race(attempts: list[Attempt], parts: list[int]) -> None:
        ids = [uuid4() for _ in range(3)]

        def contents(attempt: Attempt) -> Transfer:
            way = accounts[:: -1 if attempt.variant == 2 else 1]
            return Transfer(
                id=ids[attempt.id],
                debit_account=way[0].id,
                credit_account=way[1].id,
                amount=Money(10 + attempt.variant % 2),
                reason="test",
                happened_at=NOON,
            )

        def use(attempt: Attempt) -> tuple[Attempt, bool | type[Invalid]]:
            try:
                with wide.transaction() as tx:
                    if attempt.hold:
                        return attempt, store.hold(
                            tx, contents(attempt), holder="me", expires_at=LATER, now=NOON
                        )
                    return attempt, store.post(tx, contents(attempt), now=NOON)
            except Invalid:
                return attempt, Invalid

        shares = [share for n in range(THREADS) if (share := attempts[n::THREADS])]
        told = [
            one
            for answers in together([lambda s=share: [use(one) for one in s] for share in shares])
            for one in answers
        ]
        winners = {}
        for attempt, answer in told:
            if answer is True:
                assert winners.setdefault(attempt.id, attempt) is attempt, "two effects"
        for attempt, answer in told:
            same = replace(attempt) == winners[attempt.id]
            assert answer in ((True, False) if same else (Invalid,))

        # The same for what resolves a hold: many amounts, one of them.
        for winner in winners.values():
            if winner.hold:
                check_resolution(wide, ids[winner.id], parts)

    for _ in range(30):
        attempts = [
            Attempt(dice.randrange(3), dice.randrange(3), dice.random() < 0.5)
            for _ in range(dice.randint(2, 3 * THREADS))
        ]
        race(attempts, [dice.randrange(4) for _ in range(dice.randint(2, THREADS))])


def check_resolution(db: Database, hold_id: UUID, parts: list[int]) -> None:
    def settle(nanos: int) -> tuple[int, bool]:
        try:
            with db.transaction() as tx:
                store.settle(tx, hold_id, Money(nanos), happened_at=NOON, now=NOON)
        except (Conflict, Invalid):
            return nanos, False
        return nanos, True

    answers = together([lambda n=nanos: settle(n) for nanos in parts])
    with db.transaction() as tx:
        rows = tx.execute("SELECT * FROM transfer WHERE pending_id = %s", [hold_id]).fetchall()
    assert len(rows) == 1
    assert all(done == (nanos == rows[0]["amount_nanos"]) for nanos, done in answers)
