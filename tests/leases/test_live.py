"""What is kept in memory of live leases is what the database has, whoever wrote it and when."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from tests.core.databases import fresh_url

from sublet.app import bootstrap
from sublet.core.db import Database, Tx
from sublet.core.money import Money
from sublet.fleet import store as fleet
from sublet.leases import store
from sublet.leases.admission import admit
from sublet.leases.lease import MOVES, EndReason, Lease, Move, State
from sublet.leases.live import Live
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.market.price import Tier
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
POOL = "h200"


@pytest.fixture
def url(postgres_url: str, template: str) -> Iterator[str]:
    with fresh_url(postgres_url, template, options="-csynchronous_commit=off") as found:
        yield found


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    with Database(url) as database:
        yield database


@pytest.fixture
def tenant(db: Database) -> Tenant:
    with db.transaction() as tx:
        fleet.observe_pools(tx, {POOL: 1000}, notice_seconds=10, now=NOON)
        bootstrap.first_prices(tx, [POOL], now=NOON)
        found = tenants.create_tenant(tx, "acme", now=NOON)
        bootstrap.open_accounts(tx, found)
        bootstrap.top_up(tx, found, Money(10**12), payment=1, now=NOON)
    return found


def sell(tx: Tx, tenant: Tenant, *, seconds: int = 0) -> Lease:
    request = Request(
        pool=POOL, gpus=1, tier=Tier.INTERRUPTIBLE, max_duration=timedelta(hours=1),
        spec=Spec(command=["x"]),
    )  # fmt: skip
    return admit(tx, tenant, request, jobs=[], now=NOON + timedelta(seconds=seconds))


def move(tx: Tx, lease: Lease, to: State) -> None:
    leaving = to in {State.DRAINING, State.ENDED}
    reason = EndReason.RELEASED if leaving and lease.end_reason is None else None
    moved = lease.move(Move(to=to, at=lease.since, reason=reason))
    if to is State.RUNNING:
        moved = replace(moved, paid_until=NOON)
    store.save(tx, moved, now=NOON)


def same(live: Live, db: Database) -> bool:
    with db.transaction() as tx:
        return (
            live.look(tx)
            == store.list_live(tx)
            == sorted(live.by_id.values(), key=lambda lease: (lease.requested_at, lease.id))
        )


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_written_is_seen_at_the_next_look(
    db: Database, tenant: Tenant, seed: int
) -> None:
    dice, live = Random(seed), Live()
    for step in range(60):
        with db.transaction() as tx:
            leases = store.list_live(tx)
            for _ in range(dice.randrange(4)):
                lease = dice.choice(leases) if leases else None
                if lease is None or dice.random() < 0.3:
                    sell(tx, tenant, seconds=100 - step)
                elif dice.random() < 0.2:
                    store.ask_release(tx, lease.id, EndReason.RELEASED)
                elif to := sorted(MOVES[store.get(tx, lease.id).state]):
                    move(tx, store.get(tx, lease.id), dice.choice(to))
        shape = live.shape
        if dice.random() < 0.7:
            assert same(live, db)
            held = sum(lease.gpus for lease in live.by_id.values())
            assert live.held().get(POOL, 0) == held
            assert same(live, db)
        assert live.shape >= shape


def test_what_was_begun_before_a_look_and_committed_after_it_is_seen(
    db: Database, tenant: Tenant
) -> None:
    live = Live()
    with db.transaction() as tx:
        first, second = sell(tx, tenant), sell(tx, tenant)
    assert same(live, db)
    with db.transaction() as slow:
        sell(slow, tenant)
        store.ask_release(slow, first.id, EndReason.RELEASED)
        for _ in range(3):  # others go on meanwhile, with later transactions
            with db.transaction() as tx:
                store.ask_release(tx, second.id, EndReason.RECLAIMED)
            assert same(live, db)
            assert len(live.by_id) == 2
    assert same(live, db)
    assert len(live.by_id) == 3
    assert live.by_id[first.id].release_asked is EndReason.RELEASED


def test_a_look_at_what_has_not_changed_reads_no_lease(db: Database, tenant: Tenant) -> None:
    live = Live()
    with db.transaction() as tx:
        ours = [sell(tx, tenant) for _ in range(5)]
    assert same(live, db)
    before, shape = dict(live.by_id), live.shape
    assert same(live, db)
    assert all(live.by_id[id_] is lease for id_, lease in before.items())
    assert live.shape == shape
    with db.transaction() as tx:
        move(tx, ours[0], State.ENDED)
    live.drop(ours[0].id)
    with db.transaction() as tx:
        live.look(tx)
    assert all(live.by_id[one.id] is before[one.id] for one in ours[1:]), "not read anew"
