"""Reserved windows, from booking to their end, with the real loop on a simulated cluster."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.core.databases import fresh
from tests.leases.test_terms import put_plan
from tests.simulation.shop import GPU_HOUR, HOUR, MINUTE, NOON, POOL, SECOND, World

from sublet.core.errors import Invalid, NotFound, Refused, Unconfirmed
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.fleet import store as fleet
from sublet.fleet.pool import parse_quiet
from sublet.leases import booking, policy, quoting, store
from sublet.leases.lease import EndReason, State
from sublet.leases.quoting import Ask
from sublet.leases.store import Spec
from sublet.market.price import Tier
from sublet.metering.credits import list_credits


@pytest.fixture
def world(postgres_url: str, template: str) -> Iterator[World]:
    with fresh(postgres_url, template) as db:
        yield World(db)


def test_all_of_a_window_is_held_when_it_is_booked_and_charged_used_or_not(world: World) -> None:
    sold = world.book()
    cost = 2 * 4 * GPU_HOUR
    assert world.wallet(world.acme) == (0, cost)
    world.until(sold.starts_at + HOUR, 10 * MINUTE)
    assert world.wallet(world.acme) == (cost // 2, cost // 2), "an hour at a time"
    lease = world.draw(sold, 2)
    world.until(sold.ends_at, 10 * MINUTE)
    ended = world.show(lease.id)
    assert ended.end_reason is EndReason.EXPIRED
    assert ended.stopped_at == sold.ends_at
    assert world.wallet(world.acme) == (cost, 0)
    world.finish()


def test_a_window_starts_to_the_second_and_those_in_its_way_have_left_by_then(
    world: World,
) -> None:
    sold = world.book(starts_at=NOON + HOUR + 7 * SECOND, gpus=6, spec=Spec(command=["serve"]))
    soft = world.lease(8)
    world.until(sold.starts_at - MINUTE, MINUTE)
    assert world.show(soft).state is State.RUNNING, "until then the GPUs are of use to others"
    world.until(sold.starts_at)
    assert world.show(soft).end_reason is EndReason.RECLAIMED
    with world.db.transaction() as tx:
        (mine,) = [one for one in store.list_live(tx) if one.reservation_id == sold.id]
    assert (mine.gpus, mine.requested_at) == (6, sold.starts_at)
    with pytest.raises(Refused, match="2 can be sold now"):
        world.lease(3)
    world.lease(2)
    world.until(sold.ends_at + 20 * SECOND, 10 * MINUTE)
    assert world.show(mine.id).end_reason is EndReason.EXPIRED
    world.finish()


def test_internal_jobs_come_before_a_window_and_what_was_left_of_it_is_credited(
    world: World,
) -> None:
    sold = world.book(spec=Spec(command=["serve"]))
    world.until(sold.starts_at + HOUR, 5 * MINUTE)
    world.internal(8)
    world.until(world.clock.now() + 30 * SECOND)
    with world.db.transaction() as tx:
        (credit,) = list_credits(tx, world.acme.id, limit=9)
    lease = world.show(credit["lease_id"])
    assert lease.noticed_at is not None
    left = (sold.ends_at - lease.noticed_at) // SECOND
    assert credit["amount_nanos"] == round(4 * left * GPU_HOUR / 3600)
    states = [event["state"] for event in credit["evidence"]["lease_events"]]
    assert states[-2:] == ["running", "draining"]
    assert [job["gpus"] for job in credit["evidence"]["internal_jobs"]] == [8]
    with pytest.raises(Refused, match="4 were taken back and credited"):
        world.draw(sold, 1)
    world.until(sold.ends_at + MINUTE, 10 * MINUTE)
    assert world.wallet(world.acme) == (2 * 4 * GPU_HOUR - int(credit["amount_nanos"]), 0)
    world.finish()


def test_a_window_that_cannot_start_is_credited_from_when_it_should_have(world: World) -> None:
    sold = world.book(spec=Spec(command=["serve"]))
    world.until(sold.starts_at - MINUTE, 10 * MINUTE)
    world.internal(6)
    world.until(sold.starts_at + 14 * SECOND)
    assert world.wallet(world.acme)[0] == 0, "it may start yet"
    world.until(sold.starts_at + 16 * SECOND)
    assert world.wallet(world.acme)[0] == -2 * 4 * GPU_HOUR
    world.until(sold.ends_at + MINUTE, 10 * MINUTE)
    assert world.wallet(world.acme) == (0, 0)
    world.finish()


def test_who_leases_from_a_window_itself_waits_no_longer_than_a_notice(world: World) -> None:
    sold = world.book()
    job = world.internal(6)
    world.until(sold.starts_at + MINUTE, 10 * MINUTE)
    with pytest.raises(booking.NotFree, match="2 of 4 GPUs are free yet"):
        world.draw(sold)
    first = world.draw(sold, 2)
    with world.db.transaction() as tx:
        booking.wait_for(tx, sold.id, now=world.clock.now())
    world.engine.cancel_internal(job)
    world.until(world.clock.now() + 5 * SECOND)
    second = world.draw(sold, 2)
    world.until(world.clock.now() + MINUTE)
    assert {world.show(one.id).state for one in (first, second)} == {State.RUNNING}
    assert world.wallet(world.acme)[0] == 0, "it came in time"
    with pytest.raises(Refused, match="has 0 left: 4 of 4 are in use"):
        world.draw(sold, 1)


def test_windows_are_sold_inside_the_plan_less_what_is_promised_then(world: World) -> None:
    with world.db.transaction() as tx:
        put_plan(tx, POOL, 6, later=6)
    world.book(gpus=4)
    with pytest.raises(Refused, match=r"3 of h200 were asked for .* and 2 can be promised"):
        world.book(gpus=3, starts_at=NOON + 2 * HOUR, ends_at=NOON + 4 * HOUR)
    world.book(gpus=2, starts_at=NOON + 2 * HOUR, ends_at=NOON + 4 * HOUR)
    world.book(gpus=6, starts_at=NOON + 4 * HOUR, ends_at=NOON + 5 * HOUR)
    # Who is firm for an hour from now on would be in the way of the first.
    world.clock.advance(MINUTE)
    with pytest.raises(Refused, match="2 can be promised: the plan holds 6 GPUs for 1 h, 4"):
        world.lease(3, Tier.ON_DEMAND)
    world.lease(2, Tier.ON_DEMAND)
    with pytest.raises(Refused, match="0 can be promised"):
        world.book(gpus=1, starts_at=NOON + HOUR, ends_at=NOON + HOUR + SECOND)


def test_a_policy_that_would_strand_a_window_is_asked_about(world: World) -> None:
    sold = world.book()
    for changes in (
        {"lendable": False},
        {"lending_limit": 3},
        {"quiet": parse_quiet("14:00-14:01")},
    ):
        with world.db.transaction() as tx:
            pool = fleet.lock_pool(tx, POOL)
        with (
            pytest.raises(Unconfirmed, match=f"reservation {sold.id}"),
            world.db.transaction() as tx,
        ):
            policy.change(tx, POOL, replace(pool.policy, **changes), confirmed=False, now=NOON)
        with world.db.transaction() as tx:
            assert fleet.lock_pool(tx, POOL) == pool


def test_a_quote_of_a_window_is_booked_at_its_price(world: World) -> None:
    ask = Ask(pool=POOL, gpus=4, tier=Tier.RESERVED, max_duration=2 * HOUR, starts_at=NOON + HOUR)
    with world.db.transaction() as tx:
        quote = quoting.quote(tx, world.acme, ask, jobs=[], lifetime=MINUTE, now=NOON)
    assert quote.most == Money(8 * GPU_HOUR)
    sold = world.book(quote=quote.id)
    assert sold.price_id == quote.price.id
    with pytest.raises(Refused, match="a quote is used once"):
        world.book(quote=quote.id)


def test_booking_twice_under_one_id_books_once(world: World) -> None:
    id_ = new_id()
    spec = Spec(command=["serve"], environment={"A": "1"})
    sold = world.book(id=id_, spec=spec)
    assert world.book(id=id_, spec=spec) == sold
    assert world.wallet(world.acme) == (0, 8 * GPU_HOUR)
    with pytest.raises(Invalid, match="already used"):
        world.book(id=id_, spec=spec, gpus=3)
    with pytest.raises(Invalid, match="already used"):
        world.book(id=id_)


def test_another_tenants_reservation_does_not_exist(world: World) -> None:
    sold = world.book(world.other)
    world.until(sold.starts_at, 10 * MINUTE)
    with pytest.raises(NotFound):
        world.draw(sold)
