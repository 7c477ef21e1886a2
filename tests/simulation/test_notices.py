"""A longer notice costs more, from the quote to the last charge, and the auditor sees to it."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.core.databases import fresh
from tests.simulation.shop import GPU_HOUR, HOUR, MINUTE, NOON, POOL, SECOND, World

from sublet.app.audit import audit
from sublet.core.errors import Refused
from sublet.core.money import Rate
from sublet.fleet import store as fleet
from sublet.leases import admission, policy, quoting
from sublet.leases.lease import Lease
from sublet.leases.quoting import Ask
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.market import scales
from sublet.market import store as market
from sublet.market.notice import Step
from sublet.market.price import Tier

SPOT = 1_200_000_000  # nanos a GPU-hour


@pytest.fixture
def world(postgres_url: str, template: str) -> Iterator[World]:
    with fresh(postgres_url, template) as db:
        made = World(db)
        change(made, notice_seconds=3600)
        steps = [Step(notice=MINUTE, percent=110), Step(notice=10 * MINUTE, percent=150)]
        with db.transaction() as tx:
            scales.set_scale(tx, POOL, steps, now=made.clock.now())
        made.clock.advance(SECOND)
        yield made


def change(world: World, **changes: object) -> None:
    with world.db.transaction() as tx:
        pool = fleet.lock_pool(tx, POOL)
        wanted = replace(pool.policy, **changes)
        policy.change(tx, POOL, wanted, confirmed=True, now=world.clock.now())


def lease(world: World, notice: timedelta | None, gpus: int = 1) -> Lease:
    request = Request(
        pool=POOL, gpus=gpus, tier=Tier.INTERRUPTIBLE, max_duration=HOUR,
        spec=Spec(command=["serve"]), notice=notice,
    )  # fmt: skip
    with world.db.transaction() as tx:
        return admission.admit(tx, world.other, request, jobs=[], now=world.clock.now())


def hourly(world: World, price_id: int) -> int:
    with world.db.transaction() as tx:
        return market.get_price(tx, price_id).rate.charge(3600).nanos


def test_each_notice_is_charged_its_own_price(world: World) -> None:
    sold = [lease(world, notice) for notice in (30 * SECOND, MINUTE, 10 * MINUTE, None)]
    percents = [100, 110, 150, 150]
    assert [one.notice for one in sold] == [30 * SECOND, MINUTE, 10 * MINUTE, HOUR]
    for one, percent in zip(sold, percents, strict=True):
        assert hourly(world, one.price_id) == SPOT * percent // 100
        assert one.list_price_id == one.price_id
    world.until(NOON + HOUR + 2 * MINUTE, MINUTE)
    charged, _ = world.wallet(world.other)
    assert charged == sum(SPOT * percent // 100 for percent in percents)
    world.finish()


def test_quotes_and_windows_show_it_and_hold_to_it(world: World) -> None:
    ask = Ask(pool=POOL, gpus=2, tier=Tier.INTERRUPTIBLE, max_duration=HOUR, notice=10 * MINUTE)
    with world.db.transaction() as tx:
        quote = quoting.quote(tx, world.other, ask, jobs=[], lifetime=HOUR, now=world.clock.now())
    assert quote.most.nanos == 2 * SPOT * 150 // 100
    world.clock.advance(SECOND)
    with world.db.transaction() as tx:  # a new schedule changes nothing of what was quoted
        scales.set_scale(tx, POOL, [], now=world.clock.now())
        request = Request(
            pool=POOL, gpus=2, tier=Tier.INTERRUPTIBLE, max_duration=HOUR, quote=quote.id,
            spec=Spec(command=["serve"]), notice=10 * MINUTE, id=None,
        )  # fmt: skip
        world.clock.advance(SECOND)
        sold = admission.admit(tx, world.other, request, jobs=[], now=world.clock.now())
        scales.set_scale(tx, POOL, [Step(notice=MINUTE, percent=120)], now=world.clock.now())
    assert hourly(world, sold.price_id) == SPOT * 150 // 100
    world.clock.advance(SECOND)
    window = world.book(notice=2 * MINUTE, gpus=1)
    assert world.wallet(world.acme)[1] == 2 * GPU_HOUR * 120 // 100
    assert hourly(world, window.price_id) == GPU_HOUR * 120 // 100
    assert audit(world.db, clock=world.clock).differences == []


def test_a_floor_is_held_to_by_the_price_of_the_notice(world: World) -> None:
    change(world, floor=Rate(nanos=SPOT + 1, per=3600))
    with pytest.raises(Refused, match=r"is sold for 1\.200000001"):
        lease(world, 30 * SECOND)
    lease(world, MINUTE)


def test_the_auditor_finds_a_notice_that_was_not_paid_for(world: World) -> None:
    sold = lease(world, 30 * SECOND)
    lease(world, MINUTE)
    found = audit(world.db, clock=world.clock)
    assert found.differences == []
    assert found.counts["charged_once"]["sales_by_notice"] == 2
    with world.db.transaction() as tx:  # a lease gets a longer notice than it paid for
        tx.execute("UPDATE lease SET notice_seconds = 900 WHERE id = %s", [sold.id])
    (difference,) = audit(world.db, clock=world.clock).differences
    assert difference.what.startswith(f"lease {sold.id} was sold with a notice of 900 s")
