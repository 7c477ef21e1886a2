"""What a lease is promised, and what an operator may still change, on a real database."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.databases import fresh
from tests.leases.test_admission import JOB, NOON, REQUEST, SECOND, Shop, buy, open_shop

from sublet.app import bootstrap
from sublet.core.db import Database, Tx
from sublet.core.errors import Invalid, Refused, Unconfirmed
from sublet.core.money import Rate
from sublet.fleet import store as fleet
from sublet.fleet.pool import parse_quiet
from sublet.leases import policy, service, store
from sublet.leases.lease import EndReason, Lease, Move, State
from sublet.market.price import Tier
from sublet.planner import store as plans
from sublet.planner.surplus import sellable_gpus
from sublet.tenants import store as tenants
from sublet.tenants.tenant import TenantKind

HOUR = timedelta(hours=1)
ON_DEMAND = replace(REQUEST, tier=Tier.ON_DEMAND, max_duration=2 * HOUR)


@pytest.fixture(scope="module")
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        yield database


@pytest.fixture
def shop(db: Database) -> Shop:
    return open_shop(db, cents=10**6)


def put_plan(
    tx: Tx, pool: str, firm: int, *, reasons: tuple[str, ...] = (), later: int = 0
) -> None:
    document = {
        "known_hours": 500.0,
        "firm": {"1h": firm, "4h": firm, "24h": firm},
        "later": dict.fromkeys(("1h", "4h", "24h"), [later] * 168),
        "reasons": [{"reason": reason, "windows": [], "why": ""} for reason in reasons],
    }
    plans.put_plans(tx, {pool: document}, now=NOON)


def nodes_of(db: Database, shop: Shop, gpus: int) -> None:
    with db.transaction() as tx:
        seen = {shop.pool: gpus}
        fleet.observe_pools(tx, {shop.pool: 8}, notice_seconds=10, now=NOON, node_gpus=seen)


def set_policy(db: Database, shop: Shop, *, confirmed: bool = False, **changes: Any) -> fleet.Pool:
    with db.transaction() as tx:
        pool = fleet.lock_pool(tx, shop.pool)
        return policy.change(
            tx, shop.pool, replace(pool.policy, **changes), confirmed=confirmed, now=NOON
        )


def run(db: Database, lease: Lease) -> Lease:
    for to in (State.PROVISIONING, State.RUNNING):
        lease = lease.move(Move(to=to, at=NOON))
        with db.transaction() as tx:
            store.save(tx, lease, now=NOON)
    return lease


def test_what_is_sold_firm_is_what_the_plan_holds(db: Database, shop: Shop) -> None:
    with db.transaction() as tx:
        put_plan(tx, shop.pool, 5)
    first = run(db, buy(db, shop, replace(ON_DEMAND, gpus=4)))
    assert first.firm_until == NOON + HOUR, "the pool's minimum run"
    with pytest.raises(Refused) as refused:
        buy(db, shop, replace(ON_DEMAND, gpus=2))
    assert str(refused.value) == (
        f"not firm: 2 of {shop.pool} were asked for 3600 seconds and 1 can be promised: the plan"
        " holds 5 GPUs for 1 h, 4 promised already; possible now: 1 on_demand, or 2 interruptible"
    )
    buy(db, shop, replace(ON_DEMAND, gpus=1))
    # What is idle beside may go to those who do not mind being interrupted.
    assert buy(db, shop, replace(REQUEST, gpus=3)).firm == timedelta(0)


def test_what_is_firm_no_longer_makes_room_for_a_new_promise(db: Database, shop: Shop) -> None:
    with db.transaction() as tx:
        put_plan(tx, shop.pool, 4)
    run(db, buy(db, shop, replace(ON_DEMAND, gpus=4)))
    with db.transaction() as tx:
        assert store.standing(tx, shop.pool, now=NOON + HOUR - SECOND, soon=NOON).promised == 4
        assert store.standing(tx, shop.pool, now=NOON + HOUR, soon=NOON).promised == 0


def test_a_promise_is_no_longer_than_the_lease(db: Database, shop: Shop) -> None:
    lease = run(db, buy(db, shop, replace(ON_DEMAND, max_duration=90 * SECOND)))
    assert lease.firm_until == lease.ends_at == NOON + 90 * SECOND


@pytest.mark.parametrize("reason", [None, "no_history", "not_learnt", "cold_start"])
def test_while_nothing_is_known_an_idle_machine_can_be_leased(
    db: Database, shop: Shop, reason: str | None
) -> None:
    if reason:
        with db.transaction() as tx:
            put_plan(tx, shop.pool, 0, reasons=(reason,))
    assert buy(db, shop, replace(ON_DEMAND, gpus=8)).state is State.ADMITTED


@pytest.mark.parametrize("seconds", [10, 11, 60, 120])
def test_a_notice_is_a_term_of_the_lease(db: Database, shop: Shop, seconds: int) -> None:
    set_policy(db, shop, notice_seconds=120)
    lease = run(db, buy(db, shop, replace(REQUEST, notice=seconds * SECOND)))
    assert lease.notice == seconds * SECOND
    told = lease.move(Move(to=State.DRAINING, at=NOON + HOUR, reason=EndReason.RECLAIMED))
    with db.transaction() as tx:
        store.save(tx, told, now=NOON)
        kept = store.get(tx, lease.id)
    assert (kept.noticed_at, kept.stops_at) == (NOON + HOUR, NOON + HOUR + seconds * SECOND)


@pytest.mark.parametrize("seconds", [0, 9, 121, 86_400])
def test_a_notice_that_the_pool_does_not_sell_is_refused(
    db: Database, shop: Shop, seconds: int
) -> None:
    set_policy(db, shop, notice_seconds=120)
    with pytest.raises(Invalid, match=f"sells notices of 10 to 120 seconds, not {seconds}"):
        buy(db, shop, replace(REQUEST, notice=seconds * SECOND))


def test_a_pool_of_short_notices_sells_its_own(db: Database, shop: Shop) -> None:
    set_policy(db, shop, notice_seconds=2)
    assert buy(db, shop, REQUEST).notice == 2 * SECOND
    with pytest.raises(Invalid, match="notices of 2 to 2 seconds"):
        buy(db, shop, replace(REQUEST, notice=SECOND))


@pytest.mark.parametrize(
    ("changes", "request_", "match"),
    [
        ({"reserve": 7}, REQUEST, "1 can be sold now"),
        ({"quiet": parse_quiet("11:00-13:00")}, REQUEST, "nothing new in its quiet hours"),
        ({"quiet": parse_quiet("12:30-13:00")}, ON_DEMAND, "can be had until 12:30"),
        ({"floor": Rate(nanos=1_200_000_001, per=3600)}, REQUEST, "1.200000001 USD a GPU-hour"),
    ],
)
def test_a_policy_holds_for_what_is_sold_from_then_on(
    db: Database, shop: Shop, changes: dict[str, Any], request_: service.Request, match: str
) -> None:
    set_policy(db, shop, **changes)
    with pytest.raises(Refused, match=match):
        buy(db, shop, request_)


def test_a_pool_of_whole_nodes_sells_no_parts_of_them_but_to_the_house(
    db: Database, shop: Shop
) -> None:
    nodes_of(db, shop, 4)
    shared = buy(db, shop, REQUEST)
    set_policy(db, shop, exclusive=True, confirmed=True)
    with pytest.raises(Invalid, match="a multiple of 4, not 2"):
        buy(db, shop, REQUEST)
    with db.transaction() as tx:
        house = tenants.create_tenant(tx, f"us {shop.pool}", now=NOON, kind=TenantKind.HOUSE)
        bootstrap.open_accounts(tx, house)
    sold = [
        shared,
        buy(db, shop, replace(REQUEST, gpus=4)),
        buy(db, replace(shop, tenant=house), REQUEST),
    ]
    assert [lease.exclusive for lease in sold] == [False, True, False]
    with db.transaction() as tx:
        assert [store.get(tx, lease.id) for lease in sold] == sold


def test_a_policy_does_not_refuse_what_it_need_not(db: Database, shop: Shop) -> None:
    set_policy(
        db, shop, reserve=4, quiet=parse_quiet("13:00-14:00"),
        floor=Rate(nanos=1_200_000_000, per=3600),
    )  # fmt: skip
    buy(db, shop, ON_DEMAND)
    buy(db, shop, REQUEST)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"lendable": False}, "is promised 4 GPUs until 2026-01-01 13:00 UTC"),
        ({"lending_limit": 3}, "is promised 4 GPUs until"),
        ({"reserve": 5}, "is promised 4 GPUs until"),
        ({"notice_seconds": 5}, "was promised 10 s of notice"),
        ({"exclusive": True}, "has 4 GPUs, which are no whole nodes"),
        ({"quiet": parse_quiet("12:30-12:31")}, "reaches into the quiet hours 12:30-12:31"),
    ],
)
def test_a_policy_that_promises_stand_against_must_be_confirmed(
    db: Database, shop: Shop, changes: dict[str, Any], why: str
) -> None:
    lease = run(db, buy(db, shop, replace(ON_DEMAND, gpus=4)))
    nodes_of(db, shop, 8)
    with db.transaction() as tx:
        before = fleet.lock_pool(tx, shop.pool)
    with pytest.raises(Unconfirmed, match=why) as asked:
        set_policy(db, shop, **changes)
    assert [hit["id"] for hit in asked.value.hits] == [lease.id]
    with db.transaction() as tx:
        assert fleet.lock_pool(tx, shop.pool) == before, "nothing was changed"
    changed = set_policy(db, shop, confirmed=True, **changes)
    assert changed.policy == replace(before.policy, **changes)
    with db.transaction() as tx:
        assert store.get(tx, lease.id) == lease, "what was promised stands"
    # It is known now, so the next change need not be confirmed for it again.
    set_policy(db, shop, credit_percent=50)


def test_a_policy_that_everything_fits_is_not_asked_about(db: Database, shop: Shop) -> None:
    run(db, buy(db, shop, replace(ON_DEMAND, gpus=4)))
    buy(db, shop, replace(REQUEST, gpus=4))
    set_policy(
        db, shop, lending_limit=4, reserve=4, notice_seconds=10, quiet=parse_quiet("13:00-14:00")
    )


ACTS = st.one_of(
    st.tuples(
        st.just("ask"), st.sampled_from([Tier.INTERRUPTIBLE, Tier.ON_DEMAND]), st.integers(1, 5)
    ),
    st.tuples(st.just("policy"), st.integers(0, 4), st.none() | st.integers(0, 8)),
    st.tuples(st.just("jobs"), st.integers(0, 8), st.integers(0, 4)),
    st.tuples(st.just("plan"), st.integers(0, 8), st.none()),
    st.tuples(st.just("end"), st.integers(0, 9), st.none()),
)


@settings(max_examples=25)
@given(st.lists(ACTS, min_size=4, max_size=14))
def test_admission_never_exceeds_the_surplus_whatever_comes_between(
    db: Database, acts: list[tuple[Any, ...]]
) -> None:
    shop = open_shop(db, cents=10**6)
    jobs = []
    firm: int | None = None
    for act, one, two in acts:
        match act:
            case "policy":
                set_policy(db, shop, confirmed=True, reserve=one, lending_limit=two)
            case "jobs":
                jobs = [
                    replace(JOB, gpu_model=shop.pool, gpus=gpus, started_at=started)
                    for gpus, started in ((one, NOON), (two, None))
                    if gpus
                ]
            case "plan":
                firm = one
                with db.transaction() as tx:
                    put_plan(tx, shop.pool, one)
            case "end":
                with db.transaction() as tx:
                    live = [lease for lease in store.list_live(tx) if lease.pool == shop.pool]
                    if live:
                        move = Move(to=State.ENDED, at=NOON, reason=EndReason.RELEASED)
                        store.save(tx, live[one % len(live)].move(move), now=NOON)
            case _:
                request = replace(ON_DEMAND, tier=one, gpus=two)
                with db.transaction() as tx:
                    pool = fleet.lock_pool(tx, shop.pool)
                    room = sellable_gpus(service.pressure_of(tx, pool, jobs, now=NOON))
                    promised = store.standing(tx, shop.pool, now=NOON, soon=NOON).promised
                try:
                    buy(db, shop, request, *jobs)
                    sold = two
                except Refused:
                    sold = 0
                fits = two <= room
                if one is Tier.ON_DEMAND:
                    fits = fits and promised + two <= (8 if firm is None else firm)
                assert sold == (two if fits else 0)
