"""Selling a lease on a real database: its GPUs and its first minute's money, or neither."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from uuid import UUID

import pytest

from sublet.app import bootstrap
from sublet.core.db import Database, Tx
from sublet.core.errors import Conflict, Invalid, NotFound, Refused, SubletError, Unpaid
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.leases import service, store
from sublet.leases.lease import EndReason, Lease, LeaseId, Move, State
from sublet.leases.service import Request, admit
from sublet.leases.store import Spec
from sublet.ledger import store as ledger
from sublet.market.price import Tier
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CENT = 10_000_000
REQUEST = Request(
    pool="h200", gpus=2, tier=Tier.INTERRUPTIBLE, max_duration=600 * SECOND,
    spec=Spec(command=["serve"], files={"a/b.txt": b"\x00\xff"}, environment={"A": "1"}),
)  # fmt: skip
JOB = InternalJob(
    id=UUID(int=1), name="training", gpu_model="h200", gpus=4, submitted_at=NOON
)  # fmt: skip


def open_shop(db: Database, *, cents: int, gpus: int = 8) -> Tenant:
    """Return a tenant with so much, where a GPU-minute costs two cents, or four on demand."""
    with db.transaction() as tx:
        fleet.observe_pools(tx, {"h200": gpus}, notice_seconds=10, now=NOON)
        bootstrap.first_prices(tx, ["h200"], now=NOON)
        tenant = tenants.create_tenant(tx, "acme", now=NOON)
        bootstrap.open_accounts(tx, tenant)
        if cents:
            bootstrap.top_up(tx, tenant, Money(cents * CENT), payment=1, now=NOON)
    return tenant


def buy(db: Database, tenant: Tenant, request: Request, *jobs: InternalJob) -> Lease:
    with db.transaction() as tx:
        return admit(tx, tenant, request, jobs=jobs, now=NOON)


def held(tx: Tx, tenant: Tenant) -> tuple[int, Money]:
    return store.held_gpus(tx, "h200"), ledger.get_account(tx, tenant.wallet).held


def test_a_lease_sets_its_gpus_and_its_first_minute_aside(db: Database) -> None:
    tenant = open_shop(db, cents=100)
    lease = buy(db, tenant, REQUEST)
    assert (lease.state, lease.gpus, lease.notice) == (State.ADMITTED, 2, 10 * SECOND)
    with db.transaction() as tx:
        assert held(tx, tenant) == (2, Money(4 * CENT))
        assert store.get(tx, lease.id) == lease
        assert store.get_spec(tx, lease.id) == REQUEST.spec
        assert [event["state"] for event in store.list_events(tx, lease.id)] == [
            "requested",
            "admitted",
        ]


@pytest.mark.parametrize(
    ("changes", "jobs", "error"),
    [
        ({"gpus": 9}, [], Invalid),
        ({"gpus": 0}, [], Invalid),
        ({"gpus": 10**9}, [], Invalid),
        ({"max_duration": timedelta(0)}, [], Invalid),
        ({"max_duration": timedelta(days=31)}, [], Invalid),
        ({"pool": "b200"}, [], NotFound),
        ({"gpus": 5}, [JOB], Refused),
        ({"gpus": 5}, [replace(JOB, started_at=NOON)], Refused),
        ({"gpus": 8}, [], Unpaid),
        ({"tier": Tier.ON_DEMAND, "gpus": 3}, [], Unpaid),
        ({"spec": Spec(command=["x"], network=True)}, [], Refused),
    ],
)
def test_a_refused_lease_leaves_nothing_behind(
    db: Database, changes: dict[str, object], jobs: list[InternalJob], error: type[Exception]
) -> None:
    tenant = open_shop(db, cents=10)
    with pytest.raises(error):
        buy(db, tenant, replace(REQUEST, **changes), *jobs)
    with db.transaction() as tx:
        assert held(tx, tenant) == (0, Money(0))
        assert store.list_of(tx, None, limit=9, before=None, live=False) == []
        assert ledger.holds_of(tx, "lease:") == []


def test_asking_twice_with_one_id_gives_one_lease(db: Database) -> None:
    tenant = open_shop(db, cents=100)
    request = replace(REQUEST, id=LeaseId(new_id()), gpus=8)
    first = buy(db, tenant, request)
    # Also when by now it would be refused, or it has moved on.
    assert buy(db, tenant, request, JOB) == first
    with db.transaction() as tx:
        moved = first.move(Move(to=State.PROVISIONING, at=NOON))
        store.save(tx, moved, now=NOON)
    assert buy(db, tenant, request) == moved
    with db.transaction() as tx:
        assert held(tx, tenant) == (8, Money(16 * CENT))


@pytest.mark.parametrize(
    "changes",
    [
        {"gpus": 1},
        {"tier": Tier.ON_DEMAND},
        {"max_duration": 601 * SECOND},
        {"spec": Spec(command=["other"])},
    ],
)
def test_one_id_is_not_for_two_things(db: Database, changes: dict[str, object]) -> None:
    tenant = open_shop(db, cents=100)
    request = replace(REQUEST, id=LeaseId(new_id()))
    buy(db, tenant, request)
    with pytest.raises(Invalid, match="already used"):
        buy(db, tenant, replace(request, **changes))
    with db.transaction() as tx:
        other = tenants.create_tenant(tx, "other", now=NOON)
        bootstrap.open_accounts(tx, other)
    with pytest.raises(Invalid, match="already used"):
        buy(db, other, request)


@pytest.mark.parametrize(("cents", "sold"), [(10_000, 4), (13, 3)])
def test_of_many_who_ask_at_once_only_those_that_fit_are_served(
    database_url: str, cents: int, sold: int
) -> None:
    """Eight GPUs hold four leases of two; thirteen cents pay three of them for a minute."""
    gate = Barrier(12)
    with Database(database_url, connections=12, wait_seconds=30) as db:
        tenant = open_shop(db, cents=cents)

        def ask(_: int) -> str:
            gate.wait(30)
            try:
                return buy(db, tenant, REQUEST).state
            except SubletError as error:
                return error.code

        with ThreadPoolExecutor(12) as threads:
            answers = Counter(threads.map(ask, range(12)))
        assert answers[State.ADMITTED] == sold
        with db.transaction() as tx:
            assert held(tx, tenant) == (2 * sold, Money(4 * CENT * sold))


def test_of_two_who_move_a_lease_the_second_is_told(db: Database) -> None:
    tenant = open_shop(db, cents=100)
    lease = buy(db, tenant, REQUEST)
    one = lease.move(Move(to=State.PROVISIONING, at=NOON))
    other = lease.move(Move(to=State.ENDED, at=NOON, reason=EndReason.RELEASED))
    with db.transaction() as tx:
        store.save(tx, one, now=NOON)
    for late in (one, other):
        with pytest.raises(Conflict), db.transaction() as tx:
            store.save(tx, late, now=NOON)
    with db.transaction() as tx:
        assert store.get(tx, lease.id) == one


def test_the_first_who_wants_a_lease_back_decides_why(db: Database) -> None:
    tenant = open_shop(db, cents=100)
    lease = buy(db, tenant, REQUEST)
    with db.transaction() as tx:
        assert store.ask_release(tx, lease.id, EndReason.RECLAIMED)
        assert not store.ask_release(tx, lease.id, EndReason.RELEASED)
        assert store.get(tx, lease.id).release_asked is EndReason.RECLAIMED


def test_another_tenants_lease_does_not_exist(db: Database) -> None:
    tenant = open_shop(db, cents=100)
    lease = buy(db, tenant, REQUEST)
    with db.transaction() as tx:
        for owner in (tenant.id, None):  # None: the operator
            assert service.check_owner(tx, lease.id, owner) == lease
        with pytest.raises(NotFound):
            service.check_owner(tx, lease.id, new_id())
