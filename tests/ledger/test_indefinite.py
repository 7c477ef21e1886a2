"""Jepsen's third workload: operations of which nobody knows whether they happened.

The server is killed or paused in the middle, or the connection is closed just before or just
after COMMIT was sent. Each such operation then happened whole, or not at all; a final read
says which, and repeating it with its id settles it. Private servers: they are killed.
"""

import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from random import Random
from threading import Event, Thread
from typing import Any

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from psycopg.rows import dict_row
from tests.ledger.servers import (
    kill_backends,
    kill_postmaster,
    kill_server,
    pause,
    pause_and_kill,
    private_server,
)

from sublet.core.db import Database, Tx
from sublet.core.errors import Unavailable, Unpaid
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.core.postgres import Postgres
from sublet.core.process import wait_for
from sublet.ledger import store
from sublet.ledger.transfer import Account, Transfer

pytestmark = pytest.mark.real

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
THREADS = 6


@pytest.fixture
def server() -> Iterator[Postgres]:
    with private_server(now=NOON) as server:
        yield server


def open_accounts(tx: Tx) -> list[Account]:
    """Open a bank, revenue, and two wallets with a little money."""
    accounts = [
        store.open_account(tx, code, prepaid=code.startswith("wallet"))
        for code in ("bank", "revenue", "wallet:1", "wallet:2")
    ]
    for wallet in accounts[2:]:
        store.post(tx, transfer(accounts[0], wallet, 2000), now=NOON)
    return accounts


def transfer(payer: Account, payee: Account, nanos: int) -> Transfer:
    return Transfer(
        id=new_id(),
        debit_account=payer.id,
        credit_account=payee.id,
        amount=Money(nanos),
        reason="test",
        happened_at=NOON,
    )


# ── a crowd, and a server that dies ──────────────────────────────────────────────────────


class Told(StrEnum):
    DONE = "done"
    UNPAID = "unpaid"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Operation:
    """One step with an id of the caller's; doing it again with that id is safe."""

    transfer: Transfer
    way: str  # 'post', 'hold', or 'settle' and 'void' of a hold that is made with it
    told: Told = Told.UNKNOWN

    def act(self, tx: Tx) -> bool:
        """Do it; False when it was done before."""
        if self.way == "post":
            return store.post(tx, self.transfer, now=NOON)
        first = store.hold(tx, self.transfer, holder="me", expires_at=LATER, now=NOON)
        if self.way == "settle":
            half = Money((self.transfer.amount.nanos + 1) // 2)
            store.settle(tx, self.transfer.id, half, happened_at=NOON, now=NOON)
        elif self.way == "void":
            store.void(tx, self.transfer.id, now=NOON)
        return first

    def happened(self, tx: Tx) -> bool:
        """Read whether it did, and that it did whole."""
        rows = tx.execute(
            "SELECT kind FROM transfer WHERE %(id)s IN (id, pending_id) ORDER BY sequence",
            {"id": self.transfer.id},
        ).fetchall()
        kinds = [row["kind"] for row in rows]
        whole = {
            "post": ["posted"],
            "hold": ["pending"],
            "settle": ["pending", "post"],
            "void": ["pending", "void"],
        }[self.way]
        assert kinds in ([], whole), kinds
        held = tx.execute(
            "SELECT FROM open_hold WHERE transfer_id = %s", [self.transfer.id]
        ).fetchall()
        assert len(held) == (self.way == "hold" and bool(kinds))
        return bool(kinds)


@dataclass(slots=True)
class Crowd:
    accounts: list[Account]
    stop: Event = field(default_factory=Event)
    operations: list[Operation] = field(default_factory=list)

    def work(self, db: Database, dice: Random) -> None:
        while not self.stop.is_set():
            payer, payee = dice.sample(self.accounts, 2)
            way = dice.choice(("post", "hold", "settle", "void"))
            operation = Operation(transfer(payer, payee, dice.randint(1, 60)), way)
            try:
                with db.transaction() as tx:
                    operation.act(tx)
                operation.told = Told.DONE
            except Unpaid:
                operation.told = Told.UNPAID
            except Unavailable:
                self.stop.wait(0.02)
            self.operations.append(operation)

    def told(self, what: Told) -> int:
        return sum(operation.told is what for operation in list(self.operations))

    @contextmanager
    def working(self, url: str, seed: int) -> Iterator[None]:
        with Database(url, connections=THREADS, wait_seconds=1) as db:
            threads = [
                Thread(target=self.work, args=(db, Random(f"{seed} {number}")))
                for number in range(THREADS)
            ]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self.stop.set()
                for thread in threads:
                    thread.join(60)
            assert not any(thread.is_alive() for thread in threads)

    def goes_on(self, more: int = 20) -> None:
        """Wait until so many more operations were done."""
        target = self.told(Told.DONE) + more
        assert wait_for(lambda: self.told(Told.DONE) >= target, wait_seconds=60)


FAULTS: list[Callable[[Postgres], None]] = [
    kill_server, pause, kill_backends, kill_postmaster, pause_and_kill,
]  # fmt: skip


def test_what_a_dying_server_left_open_happened_whole_or_not_at_all(server: Postgres) -> None:
    with Database(server.url) as db, db.transaction() as tx:
        crowd = Crowd(open_accounts(tx))
    with crowd.working(server.url, seed=1):
        for fault in FAULTS:
            crowd.goes_on()
            fault(server)
        crowd.goes_on()

    assert crowd.told(Told.UNKNOWN) > 0
    found: Counter[str] = Counter()
    with Database(server.url) as db:
        for operation in crowd.operations:
            with db.transaction() as tx:
                happened = operation.happened(tx)
            found[f"{operation.told}, {'happened' if happened else 'did not'}"] += 1
            if operation.told is not Told.UNKNOWN:
                assert happened == (operation.told is Told.DONE)
                continue
            # The final word: once more, with the same id.
            try:
                with db.transaction() as tx:
                    assert operation.act(tx) is not happened
            except Unpaid:
                assert not happened
            else:
                with db.transaction() as tx:
                    assert operation.happened(tx)
    print(dict(found))


# ── the moment of COMMIT, a step at a time ───────────────────────────────────────────────


class End(StrEnum):
    """What becomes of the connection around COMMIT, and whether it then happened."""

    COMMITTED = "committed"
    CLOSED_BEFORE = "closed before COMMIT was sent"
    CLOSED_AFTER = "closed when COMMIT was sent, its answer unread"
    STOPPED = "closed so while the server's process stood still, which then went on"
    TERMINATED_BEFORE = "ended by the server before COMMIT"
    KILLED_STOPPED = "COMMIT sent to a process that stood still, and was killed so"


HAPPENED = {
    End.COMMITTED: True,
    End.CLOSED_BEFORE: False,
    End.CLOSED_AFTER: True,  # what was sent arrives, also from one that hung up
    End.STOPPED: True,
    End.TERMINATED_BEFORE: False,
    End.KILLED_STOPPED: False,
}


class Commits(RuleBasedStateMachine):
    def __init__(self, server: Postgres) -> None:
        super().__init__()
        self.server = server
        self.control = psycopg.connect(server.url, autocommit=True, row_factory=dict_row)
        with self.control.transaction():
            self.accounts = open_accounts(self.control)
        self.operations: list[tuple[Operation, bool]] = []
        self.balances = self._balances()

    def teardown(self) -> None:
        self.control.close()

    @rule(
        way=st.sampled_from(["post", "hold", "settle", "void"]),
        end=st.sampled_from(End),
        payer=st.integers(2, 3),
        nanos=st.integers(1, 60),
        impatient=st.booleans(),
    )
    def operate(self, way: str, end: End, payer: int, nanos: int, *, impatient: bool) -> None:
        operation = Operation(transfer(self.accounts[payer], self.accounts[1], nanos), way)
        connection: Tx = psycopg.connect(self.server.url, row_factory=dict_row)
        backend = connection.info.backend_pid
        try:
            assert operation.act(connection)
            getattr(self, f"_{end.name.lower()}")(connection, backend)
            if impatient and end is End.STOPPED:
                # Repeated while nobody knows: it waits, and then says what became of it.
                self._repeat_meanwhile(operation, backend)
        finally:
            with suppress(ProcessLookupError):
                os.kill(backend, signal.SIGCONT)
            connection.close()
        self._await_end(backend)
        with self.control.transaction():
            happened = operation.happened(self.control)
        assert happened == HAPPENED[end]
        self.operations.append((operation, happened))
        if happened:
            self._book(operation)

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """Whatever became of it: after this it happened, once."""
        if not self.operations:
            return
        which = data.draw(st.integers(0, len(self.operations) - 1))
        operation, happened = self.operations[which]
        with self.control.transaction():
            assert operation.act(self.control) is not happened
            assert operation.happened(self.control)
        if not happened:
            self._book(operation)
        self.operations[which] = operation, True

    @invariant()
    def the_accounts_say_what_happened(self) -> None:
        assert self._balances() == self.balances

    # ---- ends

    def _committed(self, connection: Tx, _: int) -> None:
        connection.commit()

    def _closed_before(self, connection: Tx, _: int) -> None:
        connection.close()

    def _closed_after(self, connection: Tx, _: int) -> None:
        send_commit(connection)
        hang_up(connection)

    def _stopped(self, connection: Tx, backend: int) -> None:
        os.kill(backend, signal.SIGSTOP)
        send_commit(connection)
        hang_up(connection)

    def _terminated_before(self, connection: Tx, backend: int) -> None:
        self.control.execute("SELECT pg_terminate_backend(%s)", [backend])
        self._await_end(backend)
        with pytest.raises(psycopg.OperationalError):
            connection.commit()

    def _killed_stopped(self, connection: Tx, backend: int) -> None:
        os.kill(backend, signal.SIGSTOP)
        send_commit(connection)
        os.kill(backend, signal.SIGKILL)
        hang_up(connection)
        # One that dies so takes all with it: the server recovers, and we come back.
        assert wait_for(self._reconnected, wait_seconds=30)

    # ---- inside

    def _repeat_meanwhile(self, operation: Operation, backend: int) -> None:
        answers: list[bool] = []

        def repeat() -> None:
            with psycopg.connect(self.server.url, row_factory=dict_row) as other:
                answers.append(operation.act(other))

        def waits() -> bool:
            row = self.control.execute(
                "SELECT count(*) AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            ).fetchone()
            return row is not None and row["n"] > 0

        thread = Thread(target=repeat)
        thread.start()
        assert wait_for(waits, wait_seconds=20)
        os.kill(backend, signal.SIGCONT)
        thread.join(20)
        assert answers == [False]

    def _await_end(self, backend: int) -> None:
        def ended() -> bool:
            query = "SELECT FROM pg_stat_activity WHERE pid = %s"
            return not self.control.execute(query, [backend]).fetchall()

        assert wait_for(ended, wait_seconds=20)

    def _reconnected(self) -> bool:
        self.control.close()
        try:
            self.control = psycopg.connect(
                self.server.url, autocommit=True, row_factory=dict_row, connect_timeout=5
            )
            self.control.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _balances(self) -> dict[str, list[int]]:
        with self.control.transaction():
            found = [store.get_account(self.control, account.code) for account in self.accounts]
        return {one.code: [one.balance.nanos, one.held.nanos] for one in found}

    def _book(self, operation: Operation) -> None:
        codes = {account.id: account.code for account in self.accounts}
        payer = self.balances[codes[operation.transfer.debit_account]]
        payee = self.balances[codes[operation.transfer.credit_account]]
        nanos = operation.transfer.amount.nanos
        moved = {"post": nanos, "hold": 0, "settle": (nanos + 1) // 2, "void": 0}[operation.way]
        payer[0] -= moved
        payee[0] += moved
        payer[1] += nanos if operation.way == "hold" else 0


def send_commit(connection: psycopg.Connection[Any]) -> None:
    """Send COMMIT, and read no answer."""
    connection.pgconn.send_query(b"COMMIT")
    while connection.pgconn.flush():
        pass


def hang_up(connection: psycopg.Connection[Any]) -> None:
    """End the connection without a word of goodbye, as a process does that dies."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as own, suppress(OSError):
        own.shutdown(socket.SHUT_RDWR)
    connection.close()


def test_around_commit_all_or_nothing_and_the_id_settles_it(server: Postgres) -> None:
    quick = settings(max_examples=5, stateful_step_count=12, deadline=None)
    run_state_machine_as_test(lambda: Commits(server), settings=quick)
