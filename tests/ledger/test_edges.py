"""The edges of what the ledger takes: the largest amounts, the last instant, both times."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from threading import Thread
from typing import Final
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.core.databases import fresh, undone

from sublet.core.audit import Findings
from sublet.core.db import Database, Tx
from sublet.core.errors import Conflict, Invalid, SubletError, Unpaid
from sublet.core.ids import sibling_id
from sublet.core.money import MAX_NANOS, Money
from sublet.core.process import wait_for
from sublet.ledger import audit, store
from sublet.ledger.batch import Hold, Settlement, hold_many, settle_many, void_many
from sublet.ledger.linked import Expire, Post, Void, link
from sublet.ledger.transfer import Kind, Transfer

NOON: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)
# The most that a counter of an account can say.
MOST: Final = 10**38 - 1


@pytest.fixture(scope="module")
def book(postgres_url: str, template: str) -> Iterator[Database]:
    """A bank, a wallet with nothing in it and revenue, to which nothing is ever added."""
    with fresh(postgres_url, template) as db:
        with db.transaction() as tx:
            for code in ("bank", "wallet", "revenue"):
                store.open_account(tx, code, prepaid=code == "wallet")
        yield db


def transfer(tx: Tx, debit: str, credit: str, nanos: int, *, at: datetime = NOON) -> Transfer:
    return Transfer(
        id=uuid4(),
        debit_account=store.get_account(tx, debit).id,
        credit_account=store.get_account(tx, credit).id,
        amount=Money(nanos),
        reason="test",
        happened_at=at,
    )


# Three ways to do the same: alone, in a batch, in a chain. Each raises what `store` raises.


def raised(outcome: object) -> None:
    if isinstance(outcome, SubletError):
        raise outcome


def hold(tx: Tx, way: str, wanted: Transfer, *, until: datetime, now: datetime = NOON) -> None:
    one = Hold(transfer=wanted, holder="me", expires_at=until)
    match way:
        case "alone":
            store.hold(tx, wanted, holder="me", expires_at=until, now=now)
        case "batch":
            raised(hold_many(tx, [one], now=now)[0])
        case _:
            link(tx, [one], now=now)


def settle(
    tx: Tx, way: str, hold_id: UUID, nanos: int, *, at: datetime = NOON, now: datetime = NOON
) -> None:
    one = Settlement(hold_id=hold_id, amount=Money(nanos), happened_at=at)
    match way:
        case "alone":
            store.settle(tx, hold_id, Money(nanos), happened_at=at, now=now)
        case "batch":
            raised(settle_many(tx, [one], now=now)[0])
        case _:
            link(tx, [one], now=now)


def void(tx: Tx, way: str, hold_id: UUID, *, now: datetime) -> None:
    match way:
        case "alone":
            store.void(tx, hold_id, now=now)
        case "batch":
            raised(void_many(tx, [hold_id], now=now)[0])
        case _:
            link(tx, [Void(hold_id=hold_id)], now=now)


WAYS = st.sampled_from(["alone", "batch", "chain"])
EVERY_WAY = pytest.mark.parametrize("way", ["alone", "batch", "chain"])


def counters(tx: Tx, code: str) -> tuple[int, int, int, int]:
    account = store.get_account(tx, code)
    return (
        account.debits_pending, account.debits_posted,
        account.credits_pending, account.credits_posted,
    )  # fmt: skip


# ── amounts ──────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@example(MAX_NANOS, MAX_NANOS, "batch", "chain")
@example(2**63, 2**63 - 1, "batch", "batch")
@given(st.integers(1, MAX_NANOS), st.integers(0, MAX_NANOS), WAYS, WAYS)
def test_every_amount_moves_to_the_nano(
    book: Database, held: int, used: int, holding: str, settling: str
) -> None:
    used = min(used, held)
    with undone(book) as tx:
        store.post(tx, transfer(tx, "bank", "wallet", held), now=NOON)
        wanted = transfer(tx, "wallet", "revenue", held)
        hold(tx, holding, wanted, until=NOON)
        assert counters(tx, "wallet") == (held, 0, 0, held)
        assert counters(tx, "revenue") == (0, 0, held, 0)
        for code in ("wallet", "bank"):
            assert store.get_account(tx, code).held == Money(held if code == "wallet" else 0)
        settle(tx, settling, wanted.id, used)
        assert counters(tx, "wallet") == (0, used, 0, held)
        assert counters(tx, "revenue") == (0, 0, 0, used)
        assert counters(tx, "bank") == (0, held, 0, 0)
        account = store.get_account(tx, "wallet")
        assert account.available == account.balance == Money(held - used)
        findings = Findings()
        audit.audit(tx, findings, now=NOON)
        assert findings.differences == []


@EVERY_WAY
@pytest.mark.parametrize("nanos", [-1, 0, MAX_NANOS + 1, MOST, MOST + 1, 10**40])
def test_what_is_no_amount_is_not_moved(book: Database, way: str, nanos: int) -> None:
    with undone(book) as tx:
        wanted = transfer(tx, "bank", "revenue", nanos)
        for act in (
            lambda tx: hold(tx, way, wanted, until=NOON),
            lambda tx: store.post(tx, wanted, now=NOON),
            lambda tx: link(tx, [Post(transfer=wanted)], now=NOON),
        ):
            with pytest.raises(Invalid, match="moves more than nothing and at most"):
                act(tx)
        assert counters(tx, "bank") == counters(tx, "revenue") == (0, 0, 0, 0)


@EVERY_WAY
@pytest.mark.parametrize("beyond", [1, -101, MAX_NANOS, -MAX_NANOS, 10**40])
def test_no_more_is_settled_than_was_held_and_no_less_than_nothing(
    book: Database, way: str, beyond: int
) -> None:
    with undone(book) as tx:
        wanted = transfer(tx, "bank", "revenue", 100)
        other = transfer(tx, "bank", "revenue", 100)
        for one in (wanted, other):
            hold(tx, way, one, until=NOON)
        with pytest.raises(Invalid, match=f"holds 100 nanos, not {100 + beyond}"):
            settle(tx, way, wanted.id, 100 + beyond)
        both = [
            Settlement(hold_id=wanted.id, amount=Money(100 + beyond), happened_at=NOON),
            Settlement(hold_id=other.id, amount=Money(100), happened_at=NOON),
        ]
        refused, moved = settle_many(tx, both, now=NOON)
        assert isinstance(refused, Invalid) and isinstance(moved, UUID)
        assert counters(tx, "bank") == (100, 100, 0, 0)


@EVERY_WAY
def test_a_wallet_pays_its_last_nano_and_not_one_more(book: Database, way: str) -> None:
    with undone(book) as tx:
        store.post(tx, transfer(tx, "bank", "wallet", 100), now=NOON)
        with pytest.raises(Unpaid):
            hold(tx, way, transfer(tx, "wallet", "revenue", 101), until=NOON)
        hold(tx, way, transfer(tx, "wallet", "revenue", 60), until=NOON)
        with pytest.raises(Unpaid):
            hold(tx, way, transfer(tx, "wallet", "revenue", 41), until=NOON)
        hold(tx, way, transfer(tx, "wallet", "revenue", 40), until=NOON)
        assert store.get_account(tx, "wallet").available == Money(0)


@EVERY_WAY
@pytest.mark.parametrize("nanos", [0, 1, 100])
def test_the_id_of_a_resolution_stays_as_it_is(book: Database, way: str, nanos: int) -> None:
    """A repeat after an update of Sublet must find what the version before it recorded."""
    with undone(book) as tx:
        wanted = transfer(tx, "bank", "revenue", 100)
        hold(tx, way, wanted, until=NOON)
        settle(tx, way, wanted.id, nanos)
        rows = tx.execute("SELECT id FROM transfer WHERE pending_id = %s", [wanted.id]).fetchall()
        assert rows == [{"id": sibling_id(wanted.id, store.RESOLUTION)}]
        assert rows == [{"id": UUID(int=wanted.id.int ^ 1 << 48)}]


@EVERY_WAY
def test_a_full_counter_takes_nothing_more_and_forgets_nothing(book: Database, way: str) -> None:
    with undone(book) as tx:
        tx.execute(
            "UPDATE account SET debits_posted = %(most)s - 10, debits_pending = %(most)s - 10"
            " WHERE code = 'bank'",
            {"most": MOST},
        )
        full = counters(tx, "bank")
        for act in (
            lambda tx: hold(tx, way, transfer(tx, "bank", "revenue", 11), until=NOON),
            lambda tx: store.post(tx, transfer(tx, "bank", "revenue", 11), now=NOON),
        ):
            with pytest.raises(psycopg.errors.NumericValueOutOfRange), tx.transaction():
                act(tx)
        assert counters(tx, "bank") == full
        hold(tx, way, transfer(tx, "bank", "revenue", 10), until=NOON)
        store.post(tx, transfer(tx, "bank", "revenue", 10), now=NOON)
        assert counters(tx, "bank") == (MOST, MOST, 0, 0)


# ── the last instant ─────────────────────────────────────────────────────────────────────


@settings(max_examples=30, deadline=None)
@given(st.integers(-2, 2), st.integers(-2, 2), WAYS, st.booleans())
def test_a_hold_expires_at_its_instant_and_until_then_it_can_be_settled(
    book: Database, swept: int, settled: int, way: str, sweep_first: bool
) -> None:
    """Who is late may still settle, as long as nobody has swept; nobody may do both."""
    microsecond = timedelta(microseconds=1)
    with undone(book) as tx:
        wanted = transfer(tx, "bank", "revenue", 100)
        hold(tx, way, wanted, until=NOON)

        def sweep() -> bool:
            expired = store.expire(tx, now=NOON + swept * microsecond)
            assert expired in ([], [wanted.id])
            return bool(expired)

        def use() -> bool:
            try:
                settle(tx, way, wanted.id, 30, now=NOON + settled * microsecond)
            except Conflict:
                return False
            return True

        first, second = (sweep, use) if sweep_first else (use, sweep)
        outcomes = {first.__name__: first(), second.__name__: second()}
        due = swept >= 0
        assert outcomes == {"sweep": sweep_first and due, "use": not (sweep_first and due)}
        assert counters(tx, "bank") == (0, 30 if outcomes["use"] else 0, 0, 0)


@pytest.fixture
def pair(database_url: str) -> Iterator[tuple[Database, Transfer]]:
    """Three connections, and a hold of 100 nanos that expires at noon."""
    with Database(database_url, connections=3, wait_seconds=30) as db:
        with db.transaction() as tx:
            for code in ("bank", "revenue"):
                store.open_account(tx, code, prepaid=False)
            wanted = transfer(tx, "bank", "revenue", 100)
            hold(tx, "alone", wanted, until=NOON)
        yield db, wanted
        findings = Findings()
        with db.transaction() as tx:
            audit.audit(tx, findings, now=NOON)
        assert findings.differences == []


def waits(db: Database) -> bool:
    with db.transaction() as tx:
        return bool(
            tx.execute(
                "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock'"
            ).fetchall()
        )


class _Failed(Exception):
    pass


@EVERY_WAY
@pytest.mark.parametrize("fails", [False, True])
def test_who_settles_while_a_hold_is_swept_waits_and_then_knows(
    pair: tuple[Database, Transfer], way: str, fails: bool
) -> None:
    db, wanted = pair
    outcomes: list[object] = []

    def use() -> None:
        try:
            with db.transaction() as tx:
                settle(tx, way, wanted.id, 30, now=NOON)
            outcomes.append("settled")
        except Conflict:
            outcomes.append(Conflict)

    thread = Thread(target=use)
    try:
        with db.transaction() as tx:
            assert store.expire(tx, now=NOON) == [wanted.id]
            thread.start()
            assert wait_for(lambda: waits(db), wait_seconds=20)
            if fails:
                raise _Failed
    except _Failed:
        pass
    thread.join(20)
    assert outcomes == (["settled"] if fails else [Conflict])
    with db.transaction() as tx:
        assert counters(tx, "bank") == (0, 30 if fails else 0, 0, 0)


@EVERY_WAY
@pytest.mark.parametrize("fails", [False, True])
def test_who_sweeps_while_a_hold_is_settled_passes_it_by(
    pair: tuple[Database, Transfer], way: str, fails: bool
) -> None:
    db, wanted = pair
    try:
        with db.transaction() as tx:
            settle(tx, way, wanted.id, 30, now=NOON)
            with db.transaction() as sweeper:
                assert store.expire(sweeper, now=NOON + SECOND) == []
            if fails:
                raise _Failed
    except _Failed:
        pass
    with db.transaction() as tx:
        assert store.expire(tx, now=NOON + SECOND) == ([wanted.id] if fails else [])
        assert counters(tx, "bank") == (0, 0 if fails else 30, 0, 0)


# ── both times ───────────────────────────────────────────────────────────────────────────

INSTANTS = st.datetimes(
    min_value=datetime(1971, 1, 1),  # noqa: DTZ001 -- Hypothesis puts the zone to it
    max_value=datetime(2200, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(-9.5 * 3600 * SECOND)]),
)


@settings(max_examples=30, deadline=None)
@given(
    way=WAYS,
    resolve=st.sampled_from([Kind.POST, Kind.VOID, Kind.EXPIRE]),
    happened=st.tuples(INSTANTS, INSTANTS),
    recorded=st.tuples(INSTANTS, INSTANTS),
    until=INSTANTS,
)
def test_every_fact_has_the_time_it_happened_and_the_time_it_was_recorded(
    book: Database,
    way: str,
    resolve: Kind,
    happened: tuple[datetime, datetime],
    recorded: tuple[datetime, datetime],
    until: datetime,
) -> None:
    """In no order that anybody promised: clocks step, and what happened is recorded late."""
    with undone(book) as tx:
        wanted = transfer(tx, "bank", "revenue", 100, at=happened[0])
        paid = transfer(tx, "bank", "revenue", 1, at=happened[0])
        hold(tx, way, wanted, until=until, now=recorded[0])
        if way == "chain":
            link(tx, [Post(transfer=paid)], now=recorded[0])
        else:
            store.post(tx, paid, now=recorded[0])
        resolved_at = recorded[1]
        match resolve:
            case Kind.POST:
                settle(tx, way, wanted.id, 1, at=happened[1], now=recorded[1])
                resolved_at = happened[1]
            case Kind.VOID:
                void(tx, way, wanted.id, now=recorded[1])
            case _:
                resolved_at = max(recorded[1], until)
                recorded = (recorded[0], resolved_at)
                if way == "chain":
                    link(tx, [Expire(hold_id=wanted.id)], now=resolved_at)
                else:
                    assert store.expire(tx, now=resolved_at) == [wanted.id]
        rows = tx.execute(
            "SELECT kind, happened_at, recorded_at, expires_at FROM transfer ORDER BY sequence"
        ).fetchall()
        assert [tuple(row.values()) for row in rows] == [
            (Kind.PENDING, happened[0], recorded[0], until),
            (Kind.POSTED, happened[0], recorded[0], None),
            (resolve, resolved_at, recorded[1], None),
        ]
        [movement] = [m for m in store.read_movements(tx, currencies(tx)) if m.hold_id is None]
        assert (movement.transfer, movement.recorded_at) == (paid, recorded[0])


def currencies(tx: Tx) -> dict[int, str]:
    return {account.id: account.currency for account in store.list_accounts(tx)}


def test_every_table_of_facts_has_both_times(book: Database) -> None:
    with book.transaction() as tx:
        rows = tx.execute(
            "SELECT table_name, array_agg(column_name::text) AS names"
            " FROM information_schema.columns WHERE table_schema = 'public'"
            " AND column_name IN ('happened_at', 'recorded_at')"
            " AND data_type = 'timestamp with time zone' AND is_nullable = 'NO'"
            " GROUP BY table_name"
        ).fetchall()
    both = {row["table_name"] for row in rows if len(row["names"]) == 2}
    # What somebody asked and what was sealed did not happen anywhere but here.
    assert both >= set(audit.RECORDS) - {"idempotency_key", "seal"}
