"""Clients that work at the same time, and a state machine that does things to their server.

What threads do cannot be replayed. So nothing that Hypothesis draws may depend on it: a client is
given its whole script before it starts, a step names what it is about by its place among all that
was ever *planned*, and rules look at plans and at nothing that was answered. The same draws are
then possible in every run, and an example that failed can be shrunk as far as it fails again.
"""

import signal
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from tests.ledger.servers import everybody, kill_backends, kill_postmaster, kill_server

from sublet.core.db import Database, Tx
from sublet.core.errors import SubletError, Unavailable
from sublet.core.ids import new_id
from sublet.core.postgres import Postgres
from sublet.core.process import wait_for

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SOON, LATER = NOON + timedelta(seconds=1), NOON + timedelta(hours=1)
CLIENTS = 5
T = TypeVar("T")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unknown:
    """What a client knows whose connection ended: nothing."""


UNKNOWN = Unknown()


@dataclass(slots=True, kw_only=True)
class Step:
    """Something a client asks for, and what it was told."""

    way: str
    act: Callable[[Tx], Any]
    about: Any  # what the checker needs to judge it
    payer: int = 0  # the account whose money it needs, if it needs some
    told: Any = None
    since: int = 0  # the payer's newest transfer that everybody could see before it …
    until: int | None = None  # … and after it, if it could be looked for


class Crowd(RuleBasedStateMachine):
    """Rules that start clients, pause and kill the server, and collect what clients were told."""

    def __init__(self, server: Postgres, told: Counter[str]) -> None:
        super().__init__()
        self.server = server
        self.db = Database(server.url, connections=CLIENTS + 1, wait_seconds=2)
        self.db.__enter__()
        self.counted = told
        self.salt = new_id().int >> 64  # other examples share the server
        self.planned = 0
        self.paused = False
        self.pool = ThreadPoolExecutor(CLIENTS)
        self.flying: list[Future[None]] = []
        self.steps: list[Step] = []  # of those who fly
        self.last = self.patiently(newest)  # the record was checked up to here

    # ---- what a workload says

    @abstractmethod
    def plan(self, drawn: Any) -> Step:
        """Return the step that was drawn."""

    @abstractmethod
    def check(self, rows: Sequence[Row], steps: Sequence[Step]) -> None:
        """Judge what was told, all of it, by the rows that the record has more than before."""

    # ---- rules

    def start(self, scripts: Sequence[Sequence[Any]]) -> None:
        for script in scripts[: CLIENTS - len(self.flying)]:
            steps = [self.plan(drawn) for drawn in script]
            self.steps += steps
            self.flying.append(self.pool.submit(self._work, steps))

    @precondition(lambda self: self.flying)
    @rule(how=st.sampled_from([None, None, kill_server, kill_postmaster, kill_backends]))
    def trouble(self, how: Callable[[Postgres], None] | None) -> None:
        """Stop every process of the server in the middle of what it does; or kill it, stopped or not."""
        if how is None:
            everybody(self.server, signal.SIGCONT if self.paused else signal.SIGSTOP)
            self.paused = not self.paused
            return
        if how is not kill_server:  # a power cut needs nobody's help, to leave one must run
            everybody(self.server, signal.SIGCONT)
        how(self.server)
        self.paused = False

    @precondition(lambda self: self.flying)
    @rule()
    def collect(self) -> None:
        everybody(self.server, signal.SIGCONT)
        self.paused = False
        for client in self.flying:
            client.result(120)
        self.flying.clear()
        steps, self.steps = self.steps, []
        for step in steps:
            note(f"{step.way} {step.about}: {step.told!r}")
            said = step.told if isinstance(step.told, Unknown) else type(step.told).__name__
            self.counted[f"{step.way}: {said}"] += 1
        rows = self.patiently(partial(newer, than=self.last))
        self.check(rows, steps)
        # The final word on what nobody knows: once more, with the same ids.
        unknown = [step for step in steps if step.told is UNKNOWN]
        for step in unknown:
            step.told = self.patiently(lambda tx, step=step: answer(tx, step.act))
            step.way = f"{step.way} again"
        self.last = rows[-1]["sequence"] if rows else self.last
        self.check(self.patiently(partial(newer, than=self.last)), unknown)
        self.last = self.patiently(newest)

    def teardown(self) -> None:
        try:
            if self.flying:
                self.collect()
        finally:
            everybody(self.server, signal.SIGCONT)
            self.pool.shutdown()
            self.db.__exit__(None, None, None)

    # ---- inside

    def next_id(self) -> UUID:
        self.planned += 1
        return UUID(int=(self.salt << 64) + self.planned)

    def _work(self, steps: Sequence[Step]) -> None:
        for step in steps:
            step.told = UNKNOWN
            try:
                with self.db.transaction() as tx:
                    step.since = newest(tx, of=step.payer)
                with self.db.transaction() as tx:
                    told = answer(tx, step.act)
                step.told = told  # it is known only now: COMMIT was answered
                with self.db.transaction() as tx:
                    step.until = newest(tx, of=step.payer)
            except Unavailable:
                continue

    def patiently(self, look: Callable[[Tx], T]) -> T:
        """Look once the server is there again."""
        found: list[T] = []

        def looked() -> bool:
            try:
                with self.db.transaction() as tx:
                    found.append(look(tx))
            except Unavailable:
                return False
            return True

        assert wait_for(looked, wait_seconds=60)
        return found[0]


def answer(tx: Tx, act: Callable[[Tx], Any]) -> Any:
    """Do it; an error of ours is an answer, and leaves nothing behind."""
    tx.execute("SELECT 1")  # so that what follows is a savepoint
    try:
        with tx.transaction():
            return act(tx)
    except SubletError as error:
        return error


def newest(tx: Tx, *, of: int | None = None) -> int:
    """Return the number of the newest transfer, or of an account's newest."""
    row = tx.execute(
        "SELECT coalesce(max(sequence), 0) AS last FROM transfer"
        " WHERE %(of)s::bigint IS NULL OR %(of)s IN (debit_account, credit_account)",
        {"of": of},
    ).fetchone()
    assert row is not None
    return int(row["last"])


def newer(tx: Tx, *, than: int) -> list[Row]:
    return tx.execute(
        "SELECT * FROM transfer WHERE sequence > %s ORDER BY sequence", [than]
    ).fetchall()
