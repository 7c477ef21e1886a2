"""Selling a lease on a real database: its GPUs and its first minute's money, or neither."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from uuid import UUID

import pytest
from tests.core.databases import fresh

from sublet.app import bootstrap
from sublet.core.db import Database, Tx
from sublet.core.errors import Conflict, Invalid, NotFound, Refused, SubletError, Unpaid
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.leases import service, store
from sublet.leases.admission import admit
from sublet.leases.lease import EndReason, Lease, LeaseId, Move, State
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.ledger import store as ledger
from sublet.market.price import Tier
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CENT = 10_000_000
REQUEST = Request(
    pool="", gpus=2, tier=Tier.INTERRUPTIBLE, max_duration=600 * SECOND,
    spec=Spec(command=["serve"], files={"a/b.txt": b"\x00\xff"}, environment={"A": "1"}),
)  # fmt: skip
JOB = InternalJob(
    id=UUID(int=1), name="training", gpu_model="h200", gpus=4, submitted_at=NOON
)  # fmt: skip


@pytest.fixture(scope="module")
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        yield database


@dataclass(frozen=True, slots=True)
class Shop:
    """A pool of eight GPUs, and a tenant. A GPU-minute costs two cents, or four on demand."""

    pool: str
    tenant: Tenant


def open_shop(db: Database, *, cents: int) -> Shop:
    pool = f"pool-{new_id()}"
    with db.transaction() as tx:
        fleet.observe_pools(tx, {pool: 8}, notice_seconds=10, now=NOON)
        bootstrap.first_prices(tx, [pool], now=NOON)
        tenant = tenants.create_tenant(tx, f"acme {pool}", now=NOON)
        bootstrap.open_accounts(tx, tenant)
        bootstrap.top_up(tx, tenant, Money(cents * CENT), payment=1, now=NOON)
    return Shop(pool, tenant)


def buy(db: Database, shop: Shop, request: Request, *jobs: InternalJob) -> Lease:
    request = replace(request, pool=request.pool or shop.pool)
    ours = [replace(job, gpu_model=shop.pool) for job in jobs]
    with db.transaction() as tx:
        return admit(tx, shop.tenant, request, jobs=ours, now=NOON)


def held(tx: Tx, shop: Shop) -> tuple[int, Money]:
    stands = store.standing(tx, shop.pool, now=NOON, soon=NOON)
    return stands.held, ledger.get_account(tx, shop.tenant.wallet).held


def test_a_lease_sets_its_gpus_and_its_first_minute_aside(db: Database) -> None:
    shop = open_shop(db, cents=100)
    lease = buy(db, shop, REQUEST)
    assert (lease.state, lease.gpus, lease.notice) == (State.ADMITTED, 2, 10 * SECOND)
    with db.transaction() as tx:
        assert held(tx, shop) == (2, Money(4 * CENT))
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
    shop = open_shop(db, cents=10)
    with pytest.raises(error):
        buy(db, shop, replace(REQUEST, **changes), *jobs)
    with db.transaction() as tx:
        assert held(tx, shop) == (0, Money(0))
        assert store.list_of(tx, shop.tenant.id, limit=9, before=None, live=False) == []


def test_asking_twice_with_one_id_gives_one_lease(db: Database) -> None:
    shop = open_shop(db, cents=100)
    request = replace(REQUEST, id=LeaseId(new_id()), gpus=8)
    first = buy(db, shop, request)
    # Also when by now it would be refused, or it has moved on.
    assert buy(db, shop, request, JOB) == first
    with db.transaction() as tx:
        moved = first.move(Move(to=State.PROVISIONING, at=NOON))
        store.save(tx, moved, now=NOON)
    assert buy(db, shop, request) == moved
    with db.transaction() as tx:
        assert held(tx, shop) == (8, Money(16 * CENT))


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
    shop = open_shop(db, cents=100)
    request = replace(REQUEST, id=LeaseId(new_id()))
    buy(db, shop, request)
    with pytest.raises(Invalid, match="already used"):
        buy(db, shop, replace(request, **changes))
    with db.transaction() as tx:
        other = tenants.create_tenant(tx, f"other {shop.pool}", now=NOON)
        bootstrap.open_accounts(tx, other)
    with pytest.raises(Invalid, match="already used"):
        buy(db, replace(shop, tenant=other), request)


@pytest.mark.parametrize(("cents", "sold"), [(10_000, 4), (13, 3)])
def test_of_many_who_ask_at_once_only_those_that_fit_are_served(
    database_url: str, cents: int, sold: int
) -> None:
    """Eight GPUs hold four leases of two; thirteen cents pay three of them for a minute."""
    gate = Barrier(12)
    with Database(database_url, connections=12, wait_seconds=30) as db:
        shop = open_shop(db, cents=cents)

        def ask(_: int) -> str:
            gate.wait(120)
            try:
                return buy(db, shop, REQUEST).state
            except SubletError as error:
                return error.code

        with ThreadPoolExecutor(12) as threads:
            answers = Counter(threads.map(ask, range(12)))
        assert answers[State.ADMITTED] == sold
        with db.transaction() as tx:
            assert held(tx, shop) == (2 * sold, Money(4 * CENT * sold))


def test_of_two_who_move_a_lease_the_second_is_told(db: Database) -> None:
    shop = open_shop(db, cents=100)
    lease = buy(db, shop, REQUEST)
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
    shop = open_shop(db, cents=100)
    lease = buy(db, shop, REQUEST)
    with db.transaction() as tx:
        assert store.ask_release(tx, lease.id, EndReason.RECLAIMED)
        assert not store.ask_release(tx, lease.id, EndReason.RELEASED)
        assert store.get(tx, lease.id).release_asked is EndReason.RECLAIMED


def test_another_tenants_lease_does_not_exist(db: Database) -> None:
    shop = open_shop(db, cents=100)
    lease = buy(db, shop, REQUEST)
    with db.transaction() as tx:
        for owner in (shop.tenant.id, None):  # None: the operator
            assert service.check_owner(tx, lease.id, owner) == lease
        with pytest.raises(NotFound):
            service.check_owner(tx, lease.id, new_id())
