"""The ledger against whole numbers in memory: after every step the two must agree."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from sublet.core.audit import Findings
from sublet.core.db import Database
from sublet.core.errors import Conflict, Invalid, NotFound, Unpaid
from sublet.core.money import Money
from sublet.ledger import audit, store
from sublet.ledger.transfer import Account, Transfer

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NANOS = st.integers(1, 60) | st.sampled_from([10**9, 10**20])


@dataclass(slots=True)
class Book:
    """What an account must say."""

    account: Account
    balance: int = 0
    held: int = 0  # of what it pays


@dataclass(slots=True)
class Hold:
    transfer: Transfer
    expires_at: datetime
    resolved: tuple[str, int] | None = None  # how, and for how much
    resolution: UUID | None = field(default=None)


class Books(RuleBasedStateMachine):
    accounts: Bundle[str] = Bundle("accounts")
    posted: Bundle[Transfer] = Bundle("posted")
    holds: Bundle[UUID] = Bundle("holds")

    def __init__(self, db: Database) -> None:
        super().__init__()
        self.db = db
        self.now = NOON
        self.books: dict[str, Book] = {}
        self.held: dict[UUID, Hold] = {}
        self.ids = Random(uuid4().int)  # other examples share the database

    @initialize(target=accounts)
    def a_bank_and_a_wallet(self) -> object:
        bank, wallet = self._open(prepaid=False), self._open(prepaid=True)
        self.post(debit=bank, credit=wallet, nanos=100)
        return multiple(bank, wallet)

    @rule(target=accounts, prepaid=st.booleans())
    def open_account(self, prepaid: bool) -> str:
        return self._open(prepaid=prepaid)

    @rule(code=accounts)
    def opening_it_again_changes_nothing(self, code: str) -> None:
        with self.db.transaction() as tx:
            again = store.open_account(tx, code, prepaid=self.books[code].account.prepaid)
        assert again.id == self.books[code].account.id

    @rule(target=posted, debit=accounts, credit=accounts, nanos=NANOS)
    def post(self, debit: str, credit: str, nanos: int) -> object:
        if debit == credit:
            return multiple()
        transfer = self._transfer(debit, credit, nanos)
        if not self._can_pay(debit, nanos):
            with pytest.raises(Unpaid), self.db.transaction() as tx:
                store.post(tx, transfer, now=self.now)
            return multiple()
        with self.db.transaction() as tx:
            assert store.post(tx, transfer, now=self.now)
        self._move(transfer, nanos)
        return transfer

    @rule(transfer=posted, change=st.sampled_from(["nothing", "amount", "reason", "way", "hold"]))
    def post_again(self, transfer: Transfer, change: str) -> None:
        """One id, one movement; other contents are an error and move nothing."""
        again = {
            "nothing": transfer,
            "amount": _with(transfer, amount=Money(transfer.amount.nanos + 1)),
            "reason": _with(transfer, reason="other"),
            "way": _with(
                transfer,
                debit_account=transfer.credit_account,
                credit_account=transfer.debit_account,
            ),
            "hold": transfer,
        }[change]
        if change == "nothing":
            with self.db.transaction() as tx:
                assert not store.post(tx, again, now=self.now)
            return
        if change == "hold":
            with pytest.raises(Invalid), self.db.transaction() as tx:
                store.hold(tx, again, holder="x", expires_at=self.now, now=self.now)
            return
        with pytest.raises(Invalid), self.db.transaction() as tx:
            store.post(tx, again, now=self.now)

    @rule(target=holds, debit=accounts, credit=accounts, nanos=NANOS, seconds=st.integers(1, 60))
    def hold(self, debit: str, credit: str, nanos: int, seconds: int) -> object:
        if debit == credit:
            return multiple()
        transfer = self._transfer(debit, credit, nanos)
        expires_at = self.now + timedelta(seconds=seconds)
        if not self._can_pay(debit, nanos):
            with pytest.raises(Unpaid), self.db.transaction() as tx:
                store.hold(tx, transfer, holder="me", expires_at=expires_at, now=self.now)
            return multiple()
        with self.db.transaction() as tx:
            assert store.hold(tx, transfer, holder="me", expires_at=expires_at, now=self.now)
        self._book(transfer.debit_account).held += nanos
        self.held[transfer.id] = Hold(transfer=transfer, expires_at=expires_at)
        return transfer.id

    @rule(hold_id=holds)
    def hold_again(self, hold_id: UUID) -> None:
        hold = self.held[hold_id]
        with self.db.transaction() as tx:
            assert not store.hold(tx, hold.transfer, holder="me", expires_at=self.now, now=self.now)
        other = _with(hold.transfer, amount=Money(hold.transfer.amount.nanos + 1))
        with pytest.raises(Invalid), self.db.transaction() as tx:
            store.hold(tx, other, holder="me", expires_at=self.now, now=self.now)

    @rule(hold_id=holds, part=st.sampled_from(["nothing", "a little", "all", "too much"]))
    def settle(self, hold_id: UUID, part: str) -> None:
        hold = self.held[hold_id]
        nanos = hold.transfer.amount.nanos
        nanos = {"nothing": 0, "a little": (nanos + 1) // 2, "all": nanos, "too much": nanos + 1}[
            part
        ]
        kind = "post" if nanos else "void"
        if part == "too much":
            expected: type[Exception] | None = Invalid
        elif hold.resolved is None or hold.resolved == (kind, nanos):
            expected = None
        else:
            expected = Invalid if hold.resolved[0] == kind else Conflict
        if expected is not None:
            with pytest.raises(expected), self.db.transaction() as tx:
                store.settle(tx, hold_id, Money(nanos), happened_at=self.now, now=self.now)
            return
        with self.db.transaction() as tx:
            made = store.settle(tx, hold_id, Money(nanos), happened_at=self.now, now=self.now)
        assert (made is None) == (nanos == 0)
        if hold.resolved is None:
            self._resolve(hold, kind, nanos)
            hold.resolution = made
        assert made == hold.resolution

    @rule(hold_id=holds)
    def void(self, hold_id: UUID) -> None:
        hold = self.held[hold_id]
        if hold.resolved is not None and hold.resolved[0] != "void":
            with pytest.raises(Conflict), self.db.transaction() as tx:
                store.void(tx, hold_id, now=self.now)
            return
        with self.db.transaction() as tx:
            store.void(tx, hold_id, now=self.now)
        if hold.resolved is None:
            self._resolve(hold, "void", 0)

    @rule(transfer=posted)
    def what_was_posted_is_no_hold(self, transfer: Transfer) -> None:
        with pytest.raises(NotFound), self.db.transaction() as tx:
            store.void(tx, transfer.id, now=self.now)

    @rule(seconds=st.integers(0, 90))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        with self.db.transaction() as tx:
            expired = set(store.expire(tx, now=self.now))
        due = {
            id_
            for id_, hold in self.held.items()
            if hold.resolved is None and hold.expires_at <= self.now
        }
        assert expired & set(self.held) == due
        for id_ in due:
            self._resolve(self.held[id_], "expire", 0)

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        with self.db.transaction() as tx:
            for code, book in self.books.items():
                account = store.get_account(tx, code)
                assert account.balance == Money(book.balance)
                assert account.held == Money(book.held)
                assert account.available == Money(book.balance - book.held)
                if account.prepaid:
                    assert account.available.nanos >= 0
            for row in tx.execute(store.QUERIES["trial_balance"]).fetchall():
                assert (row["posted_difference"], row["pending_difference"]) == (0, 0)
            mine = {hold.id for hold in store.holds_of(tx, "me")} & set(self.held)
        assert mine == {id_ for id_, hold in self.held.items() if hold.resolved is None}

    # ---- inside

    def _open(self, *, prepaid: bool) -> str:
        code = f"account:{uuid4()}"
        with self.db.transaction() as tx:
            self.books[code] = Book(account=store.open_account(tx, code, prepaid=prepaid))
        return code

    def _transfer(self, debit: str, credit: str, nanos: int) -> Transfer:
        return Transfer(
            id=UUID(int=self.ids.getrandbits(128)),
            debit_account=self.books[debit].account.id,
            credit_account=self.books[credit].account.id,
            amount=Money(nanos),
            reason="test",
            happened_at=self.now,
        )

    def _can_pay(self, code: str, nanos: int) -> bool:
        book = self.books[code]
        return not book.account.prepaid or book.balance - book.held >= nanos

    def _book(self, account: int) -> Book:
        return next(book for book in self.books.values() if book.account.id == account)

    def _move(self, transfer: Transfer, nanos: int) -> None:
        self._book(transfer.debit_account).balance -= nanos
        self._book(transfer.credit_account).balance += nanos

    def _resolve(self, hold: Hold, kind: str, nanos: int) -> None:
        hold.resolved = (kind, nanos)
        self._book(hold.transfer.debit_account).held -= hold.transfer.amount.nanos
        self._move(hold.transfer, nanos)


def _with(transfer: Transfer, **changes: object) -> Transfer:
    row = {name: getattr(transfer, name) for name in Transfer.__slots__}
    return Transfer(**{**row, **changes})


def test_the_ledger_is_arithmetic(db: Database) -> None:
    quick = settings(max_examples=20, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(lambda: Books(db), settings=quick)
    findings = Findings()
    with db.transaction() as tx:
        audit.audit(tx, findings, now=NOON)
    assert findings.differences == []
    assert findings.counts["money"]["transfers"] >= 20
