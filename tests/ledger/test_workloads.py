"""Two of Jepsen's workloads for ledgers, over real connections: transfers, and idempotence.

The third, operations of which nobody knows whether they happened, is in test_indefinite.py.

Clients work at the same time while the server is paused and killed. What was recorded is then
replayed, in the order that the record gives itself, by a single-threaded model that knows nothing
of SQL: what many did must be what one could have done, and what each was told must be true of it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from tests.ledger.crowds import CLIENTS, LATER, NOON, SOON, UNKNOWN, Crowd, Row, Step
from tests.ledger.servers import private_server

from sublet.core.db import Tx
from sublet.core.errors import Conflict, Invalid, NotFound, SubletError, Unpaid
from sublet.core.money import Money
from sublet.core.postgres import Postgres
from sublet.ledger import store
from sublet.ledger.batch import Hold, Settlement, hold_many, void_many
from sublet.ledger.linked import Expire, Post, link
from sublet.ledger.transfer import Account, Kind, Transfer

pytestmark = pytest.mark.real

# What threads do is not what they did when it is shrunk: look again at what failed, and no more.
QUICK = settings(
    max_examples=4, stateful_step_count=16, deadline=None, phases=[Phase.explicit, Phase.generate]
)


@pytest.fixture
def server() -> Iterator[Postgres]:
    with private_server(now=NOON) as server:
        yield server


# ── transfers ────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Model:
    """One thread, whole numbers: what each account has and holds after every transfer."""

    prepaid: frozenset[int]
    balance: Counter[int] = field(default_factory=Counter)
    held: Counter[int] = field(default_factory=Counter)
    rows: dict[UUID, Row] = field(default_factory=dict)
    resolved: dict[UUID, Row] = field(default_factory=dict)
    # Of each account, what was available from which transfer on.
    moments: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def replay(self, row: Row) -> None:
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

    def least(self, account: int, since: int, until: int | None) -> int:
        """Return the least that was available between two looks at the record."""
        moments = [*self.moments.get(account, [(0, 0)]), (2**63, 0)]
        return min(
            available
            for (begin, available), (end, _) in pairwise(moments)
            if (until is None or begin <= until) and end > since
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """`which` of what was planned before; `payer` and `payee` are places among the accounts."""

    way: str
    which: int
    payer: int
    payee: int
    nanos: int
    soon: bool  # it expires soon


PLANS = st.builds(
    Plan,
    way=st.sampled_from(
        ["post", "post", "hold", "hold", "hold", "settle", "settle", "void", "sweep", "expire",
         "chain", "repeat"]
    ),
    which=st.integers(0, 5),
    payer=st.integers(1, 4),
    payee=st.integers(1, 4),
    nanos=st.integers(1, 60),
    soon=st.booleans(),
)  # fmt: skip


def scripts(plans: st.SearchStrategy[Any]) -> st.SearchStrategy[list[list[Any]]]:
    return st.lists(st.lists(plans, min_size=1, max_size=6), min_size=2, max_size=CLIENTS)


class Ledger(Crowd):
    """What both workloads have: accounts, and a model that follows the record."""

    prepaid: tuple[bool, ...]

    def __init__(self, server: Postgres, told: Counter[str]) -> None:
        super().__init__(server, told)
        self.accounts: list[Account] = self.patiently(self._open)
        own = [account.id for account in self.accounts]
        self.model = Model(prepaid=frozenset(a.id for a in self.accounts if a.prepaid))
        for row in self.patiently(self._opening):
            self.model.replay(row)
        self.own = frozenset(own)
        self.last = max((row["sequence"] for row in self.model.rows.values()), default=self.last)

    def _open(self, tx: Tx) -> list[Account]:
        accounts = [
            store.open_account(tx, f"{self.salt}:{number}", prepaid=prepaid)
            for number, prepaid in enumerate(self.prepaid)
        ]
        for account in accounts:
            if account.prepaid:
                store.post(tx, self.transfer(accounts[0], account, 150), now=NOON)
        return accounts

    def _opening(self, tx: Tx) -> list[Row]:
        return tx.execute(
            "SELECT * FROM transfer WHERE debit_account = %s ORDER BY sequence",
            [self.accounts[0].id],
        ).fetchall()

    def transfer(self, payer: Account, payee: Account, nanos: int) -> Transfer:
        return Transfer(
            id=self.next_id(),
            debit_account=payer.id,
            credit_account=payee.id,
            amount=Money(nanos),
            reason="test",
            happened_at=NOON,
        )

    def check(self, rows: Sequence[Row], steps: Sequence[Step]) -> None:
        """Replay what is new; then each row has its step, and each step its row."""
        new = [row for row in rows if row["debit_account"] in self.own]
        for row in new:
            self.model.replay(row)
        claims = Counter(id_ for step in steps for id_ in self.claims(step))
        assert all(number == 1 for number in claims.values()), "one id had two effects"
        made = {row["id"] for row in new if row["pending_id"] is None}
        assert set(claims) <= made, "what somebody was told is not in the record"
        for row in new:
            if row["id"] not in claims:
                assert any(self.explains(step, row) for step in steps), row
        for step in steps:
            if step.told is not UNKNOWN:
                self.judge(step)
        for account in self.accounts:
            found = self.patiently(partial(store.get_account, code=account.code))
            assert found.balance == Money(self.model.balance[account.id])
            assert found.held == Money(self.model.held[account.id])

    def claims(self, step: Step) -> list[UUID]:
        """Return the ids of which the step was told that it, and no other, recorded them."""
        raise NotImplementedError

    def explains(self, step: Step, row: Row) -> bool:
        """Say whether a row that nobody claims may be of this step's making."""
        raise NotImplementedError

    def judge(self, step: Step) -> None:
        """Hold what the step was told against the record."""
        raise NotImplementedError

    def judge_resolution(self, hold_id: UUID, kind: Kind, nanos: int, told: object) -> None:
        hold, found = self.model.rows.get(hold_id), self.model.resolved.get(hold_id)
        if isinstance(told, NotFound):
            # It was not there then: not before these clients started, that is.
            pending = hold is not None and hold["kind"] == Kind.PENDING
            assert not pending or hold["sequence"] > self.last
            return
        assert hold is not None
        if isinstance(told, Invalid) and nanos > hold["amount_nanos"]:
            return
        assert found is not None
        if isinstance(told, Conflict):
            assert found["kind"] != kind
        elif isinstance(told, Invalid):
            assert found["kind"] == kind and found["amount_nanos"] != nanos
        else:
            assert not isinstance(told, SubletError), told
            assert (found["kind"], found["amount_nanos"]) == (kind, nanos)


class Transfers(Ledger):
    prepaid = (False, False, True, True, True)

    def __init__(self, server: Postgres, told: Counter[str]) -> None:
        self.holds: list[Transfer] = []
        self.posts: list[Transfer] = []
        super().__init__(server, told)

    @precondition(lambda self: len(self.flying) < CLIENTS)
    @rule(drawn=scripts(PLANS))
    def work(self, drawn: list[list[Plan]]) -> None:
        self.start(drawn)

    def plan(self, drawn: Plan) -> Step:
        payer, payee = self.accounts[drawn.payer], self.accounts[drawn.payee]
        if payer is payee:
            payee = self.accounts[0]
        way = drawn.way
        if way in {"settle", "void", "sweep"} and not self.holds:
            way = "hold"
        if way == "repeat" and not self.posts:
            way = "post"
        hold = self.holds[-1 - drawn.which % len(self.holds)] if self.holds else None
        match way:
            case "post" | "repeat":
                wanted = self.transfer(payer, payee, drawn.nanos)
                if way == "repeat":
                    wanted = self.posts[-1 - drawn.which % len(self.posts)]
                self.posts.append(wanted)
                return Step(
                    way=way,
                    act=partial(store.post, transfer=wanted, now=NOON),
                    about=wanted,
                    payer=wanted.debit_account,
                )
            case "hold":
                wanted = self.transfer(payer, payee, drawn.nanos)
                self.holds.append(wanted)
                until = SOON if drawn.soon else LATER
                return Step(
                    way=way,
                    act=partial(
                        store.hold, transfer=wanted, holder="me", expires_at=until, now=NOON
                    ),
                    about=wanted,
                    payer=payer.id,
                )
            case "settle":
                assert hold is not None
                nanos = 1 if drawn.soon else hold.amount.nanos
                return Step(
                    way=way,
                    act=partial(
                        store.settle,
                        hold_id=hold.id,
                        amount=Money(nanos),
                        happened_at=NOON,
                        now=NOON,
                    ),
                    about=(hold.id, nanos),
                )
            case "void":
                assert hold is not None
                act = partial(store.void, hold_id=hold.id, now=NOON)
                return Step(way=way, act=act, about=hold.id)
            case "sweep":
                some = [one.id for one in self.holds[-1 - drawn.which :]]
                act = partial(void_many, hold_ids=some, now=NOON)
                return Step(way=way, act=act, about=some)
            case "chain":
                there = self.transfer(payer, payee, drawn.nanos)
                back = self.transfer(payee, payer, drawn.nanos)
                chain = [
                    Post(transfer=there),
                    Hold(transfer=back, holder="me", expires_at=LATER),
                    Settlement(hold_id=back.id, amount=Money(1), happened_at=NOON),
                ]
                act = partial(link, chain=chain, now=NOON)
                return Step(way=way, act=act, about=(there, back), payer=payer.id)
            case _:
                return Step(way=way, act=partial(store.expire, now=SOON), about=None)

    def claims(self, step: Step) -> list[UUID]:
        if step.told is not True:
            return []
        about = step.about
        return [one.id for one in (about if isinstance(about, tuple) else (about,))]

    def explains(self, step: Step, row: Row) -> bool:
        unknown = step.told is UNKNOWN
        failed = isinstance(step.told, SubletError)
        match step.way.split()[0]:
            case "post" | "repeat" | "hold":
                return unknown and row["id"] == step.about.id
            case "chain":
                ids = {one.id for one in step.about}
                return (unknown or step.told is True) and not ids.isdisjoint(
                    {row["id"], row["pending_id"]}
                )
            case "settle":
                return not failed and (row["pending_id"], row["amount_nanos"]) == step.about
            case "void":
                return not failed and (row["pending_id"], row["kind"]) == (step.about, Kind.VOID)
            case "sweep":
                return row["pending_id"] in step.about and row["kind"] == Kind.VOID
            case _:
                told = unknown or row["pending_id"] in step.told
                return told and row["kind"] == Kind.EXPIRE

    def judge(self, step: Step) -> None:
        model, told = self.model, step.told
        match step.way.split()[0]:
            case "post" | "repeat" | "hold":
                if told is False:
                    assert step.about.id in model.rows
                self._judge_refusal(step, step.about)
            case "chain":
                there, back = step.about
                known = [there.id in model.rows, back.id in model.rows, back.id in model.resolved]
                assert known == [not isinstance(told, SubletError)] * 3
                # The hold is of money that the payment ahead of it has just brought.
                assert not isinstance(told, Unpaid) or str(told).startswith("step 1 ")
                assert isinstance(told, bool | Unpaid)
            case "settle":
                self.judge_resolution(step.about[0], Kind.POST, step.about[1], told)
            case "void":
                self.judge_resolution(step.about, Kind.VOID, 0, told)
            case "sweep":
                for hold_id, outcome in zip(step.about, told, strict=True):
                    self.judge_resolution(hold_id, Kind.VOID, 0, outcome)
            case _:
                assert len(told) == len(set(told))
                mine = [id_ for id_ in told if id_ in model.rows]
                assert all(model.resolved[id_]["kind"] == Kind.EXPIRE for id_ in mine)

    def _judge_refusal(self, step: Step, wanted: Transfer) -> None:
        """Whoever was refused for want of money: there was a moment at which it was not there."""
        if isinstance(step.told, Unpaid):
            least = self.model.least(wanted.debit_account, step.since, step.until)
            assert least < wanted.amount.nanos
        else:
            assert isinstance(step.told, bool), step.told


def test_what_many_did_one_could_have_done(server: Postgres) -> None:
    told: Counter[str] = Counter()
    run_state_machine_as_test(lambda: Transfers(server, told), settings=QUICK)
    print(dict(sorted(told.items())))
    assert {"post: bool", "hold: bool", "chain: bool"} <= set(told)


# ── idempotence ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Use:
    """One use of an id. For what records it `variant` makes the contents, else the amount."""

    way: str
    id: int
    variant: int


USES = st.builds(
    Use,
    st.sampled_from(
        ["post", "hold", "hold", "hold_many", "chain", "settle", "settle", "void", "expire"]
    ),
    st.integers(0, 4),
    st.integers(0, 2),
)


class Ids(Ledger):
    """The same few ids, over and over, from everybody, before and after the server died."""

    prepaid = (False, False)

    def __init__(self, server: Postgres, told: Counter[str]) -> None:
        super().__init__(server, told)
        self.ids = [self.next_id() for _ in range(5)]

    @precondition(lambda self: len(self.flying) < CLIENTS)
    @rule(drawn=scripts(USES))
    def use(self, drawn: list[list[Use]]) -> None:
        self.start(drawn)

    def contents(self, use: Use) -> Transfer:
        payer, payee = self.accounts[:: -1 if use.variant == 2 else 1]
        made = self.transfer(payer, payee, 10 + use.variant % 2)
        return replace(made, id=self.ids[use.id])

    def plan(self, drawn: Use) -> Step:
        wanted, id_ = self.contents(drawn), self.ids[drawn.id]
        held = Hold(transfer=wanted, holder="me", expires_at=LATER)
        match drawn.way:
            case "post":
                act: Any = partial(store.post, transfer=wanted, now=NOON)
            case "hold":
                act = partial(store.hold, transfer=wanted, holder="me", expires_at=LATER, now=NOON)
            case "hold_many":
                act = partial(_first, many=partial(hold_many, holds=[held], now=NOON))
            case "chain":
                act = partial(link, chain=[Post(transfer=wanted)], now=NOON)
            case "settle":
                act = partial(
                    store.settle,
                    hold_id=id_,
                    amount=Money(drawn.variant * 6),
                    happened_at=NOON,
                    now=NOON,
                )
            case "void":
                act = partial(store.void, hold_id=id_, now=NOON)
            case _:
                act = partial(link, chain=[Expire(hold_id=id_)], now=LATER)
        return Step(way=drawn.way, act=act, about=drawn)

    def claims(self, step: Step) -> list[UUID]:
        records = step.way.split()[0] in {"post", "hold", "hold_many", "chain"}
        return [self.ids[step.about.id]] if records and step.told is True else []

    def explains(self, step: Step, row: Row) -> bool:
        if isinstance(step.told, SubletError):
            return False
        use: Use = step.about
        if row["pending_id"] is None:
            return step.told is UNKNOWN and row["id"] == self.ids[use.id] and self._is(row, step)
        return row["pending_id"] == self.ids[use.id] and (
            (row["kind"], row["amount_nanos"]) == self._resolution(step)
        )

    def judge(self, step: Step) -> None:
        use: Use = step.about
        resolution = self._resolution(step)
        if resolution is not None:
            self.judge_resolution(self.ids[use.id], *resolution, step.told)
            return
        # Nobody is told anything of an id before it is in the record, for good.
        row = self.model.rows[self.ids[use.id]]
        if isinstance(step.told, bool):
            assert self._is(row, step)
        else:
            assert isinstance(step.told, Invalid) and not self._is(row, step)

    def _is(self, row: Row, step: Step) -> bool:
        wanted = self.contents(step.about)
        kind = Kind.PENDING if step.way.startswith("hold") else Kind.POSTED
        return (row["kind"], row["debit_account"], row["amount_nanos"]) == (
            kind,
            wanted.debit_account,
            wanted.amount.nanos,
        )

    def _resolution(self, step: Step) -> tuple[Kind, int] | None:
        match step.way.split()[0]:
            case "settle":
                nanos = step.about.variant * 6
                return (Kind.POST if nanos else Kind.VOID), nanos
            case "void":
                return Kind.VOID, 0
            case "expire":
                return Kind.EXPIRE, 0
            case _:
                return None


def _first(tx: Tx, many: Any) -> bool:
    [outcome] = many(tx)
    if isinstance(outcome, SubletError):
        raise outcome
    return bool(outcome)


def test_one_id_has_one_effect_and_one_contents(server: Postgres) -> None:
    told: Counter[str] = Counter()
    run_state_machine_as_test(lambda: Ids(server, told), settings=QUICK)
    print(dict(sorted(told.items())))
    assert {"post: bool", "post: Invalid", "hold: bool"} <= set(told)
