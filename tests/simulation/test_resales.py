"""Unused GPUs of a window go back on sale, and whoever uses them pays its tenant a share."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.databases import fresh
from tests.simulation.shop import HOUR, MINUTE, NOON, SECOND, World

from sublet.core.errors import Invalid, NotFound, Refused, SubletError
from sublet.core.ids import new_id
from sublet.core.money import Rate
from sublet.leases import booking, resales, store
from sublet.leases.lease import EndReason, State
from sublet.leases.resale import Free, Resale, share, take
from sublet.leases.reservation import Reservation
from sublet.ledger import store as ledger
from sublet.market.price import Tier
from sublet.tenants.tenant import Tenant

CENT_HOUR = 10_000_000  # nanos: a cent, of a price per GPU-hour


@pytest.fixture
def world(postgres_url: str, template: str) -> Iterator[World]:
    with fresh(postgres_url, template) as database:
        yield World(database)


def offer(
    world: World,
    sold: Reservation,
    gpus: int,
    cents: int | None,
    *,
    seller: Tenant | None = None,
    **changes: Any,
) -> Resale:
    limit = None if cents is None else Rate(nanos=cents * CENT_HOUR, per=3600)
    wanted: dict[str, Any] = {
        "id": new_id(), "reservation_id": sold.id, "gpus": gpus, "limit": limit,
        "share_percent": 50 if cents is None else 80, "listed_at": world.clock.now(),
    }  # fmt: skip
    with world.db.transaction() as tx:
        return resales.put_on_sale(
            tx,
            Resale(**(wanted | changes)),
            tenant_id=(seller or world.acme).id,
            now=world.clock.now(),
        )


def earned(world: World) -> int:
    with world.db.transaction() as tx:
        rows = ledger.list_movements(tx, world.acme.wallet, limit=100)
    return sum(int(row["amount_nanos"]) for row in rows if row["reason"] == "resale")


@pytest.mark.parametrize(("cents", "percent"), [(None, 50), (120, 80)])
def test_what_an_interruptible_lease_pays_for_unused_gpus_is_shared(
    world: World, cents: int | None, percent: int
) -> None:
    sold = world.book(gpus=8, starts_at=NOON + MINUTE, ends_at=NOON + HOUR)
    world.until(NOON + 2 * MINUTE)
    with pytest.raises(Refused, match="no surplus"):
        world.lease(2)
    offer(world, sold, 6, cents)
    with pytest.raises(Refused):  # what may be wanted back is promised to nobody
        world.lease(2, Tier.ON_DEMAND)
    used = world.lease(2)
    world.until(NOON + 10 * MINUTE)
    with world.db.transaction() as tx:
        store.ask_release(tx, used, EndReason.RELEASED)
    world.until(NOON + 11 * MINUTE)
    ended = world.show(used)
    assert ended.running_at is not None and ended.stopped_at is not None
    seconds = (ended.stopped_at - ended.running_at) // SECOND
    # 1.20 USD a GPU-hour is the list's interruptible price.
    price = Rate(nanos=120 * CENT_HOUR, per=3600)
    assert earned(world) == share(price, gpus=2, seconds=seconds, percent=percent).nanos > 0
    world.finish()


def test_a_seller_takes_its_gpus_back_and_draws_them_after_the_notice(world: World) -> None:
    sold = world.book(gpus=8, starts_at=NOON + MINUTE, ends_at=NOON + HOUR)
    world.until(NOON + 2 * MINUTE)
    resale = offer(world, sold, 8, None)
    used = world.lease(8)
    world.until(NOON + 3 * MINUTE)
    with pytest.raises(Refused, match="back on sale: take them back"):
        world.draw(sold, 1)
    with world.db.transaction() as tx:
        resales.take_back(tx, resale.id, tenant_id=world.acme.id, now=world.clock.now())
    with pytest.raises(booking.NotFree):
        world.draw(sold, 8)
    world.until(NOON + 3 * MINUTE + 15 * SECOND)
    assert world.show(used).end_reason is EndReason.RECLAIMED
    world.draw(sold, 8)
    assert earned(world) > 0
    world.finish()


def test_a_lease_that_stays_after_the_window_owes_its_tenant_nothing_more(world: World) -> None:
    sold = world.book(gpus=8, starts_at=NOON + MINUTE, ends_at=NOON + 5 * MINUTE)
    world.until(NOON + 2 * MINUTE)
    offer(world, sold, 8, None)
    used = world.lease(8)
    world.until(NOON + 9 * MINUTE)
    running = world.show(used)
    assert running.state is State.RUNNING and running.running_at is not None
    seconds = (sold.ends_at - running.running_at) // SECOND
    price = Rate(nanos=120 * CENT_HOUR, per=3600)
    assert earned(world) == share(price, gpus=8, seconds=seconds, percent=50).nanos
    world.finish()


@pytest.mark.parametrize(
    ("gpus", "cents", "error", "match"),
    [
        (0, None, Invalid, "at least 1"),
        (2, 0, Invalid, "more than zero"),
        (9, None, Refused, "has 8 that"),
    ],
)
def test_what_cannot_be_sold_back_is_refused(
    world: World, gpus: int, cents: int | None, error: type[SubletError], match: str
) -> None:
    sold = world.book(gpus=8, starts_at=NOON + MINUTE, ends_at=NOON + HOUR)
    with pytest.raises(Refused, match="has not begun"):
        offer(world, sold, 1, None)
    world.until(NOON + 2 * MINUTE)
    with pytest.raises(error, match=match):
        offer(world, sold, gpus, cents)
    with pytest.raises(NotFound):
        offer(world, sold, 1, None, seller=world.other)
    first = offer(world, sold, 5, None)
    assert offer(world, sold, 5, None, id=first.id).id == first.id
    with pytest.raises(Invalid, match="something else"):
        offer(world, sold, 4, None, id=first.id)
    with pytest.raises(Refused, match=r"on sale already \(5\)"):
        offer(world, sold, 4, None)
    offer(world, sold, 3, 500)
    with pytest.raises(Refused, match="sell them for more than"):
        world.lease(6)


_FREE = st.builds(
    lambda number, gpus, nanos: Free(
        resale=Resale(
            id=UUID(int=number), reservation_id=UUID(int=1), gpus=9, share_percent=80,
            limit=None if nanos is None else Rate(nanos=nanos, per=3600), listed_at=NOON,
        ),
        gpus=gpus,
    ),
    st.integers(1, 10**6), st.integers(0, 9), st.none() | st.integers(1, 9),
)  # fmt: skip


@given(st.lists(_FREE, max_size=6), st.integers(0, 30), st.integers(1, 9))
def test_a_lease_takes_exactly_what_it_needs_of_those_who_ask_least(
    free: list[Free], gpus: int, nanos: int
) -> None:
    rate = Rate(nanos=nanos, per=3600)
    able = [one for one in free if one.resale.takes(rate)]
    taken = take(free, gpus=gpus, rate=rate)
    assert (taken is None) == (gpus > sum(one.gpus for one in able))
    if taken is not None:
        assert sum(one.gpus for one in taken) == gpus
        asked = [0 if one.resale.limit is None else one.resale.limit.nanos for one in taken]
        assert asked == sorted(asked) and max(asked, default=0) <= nanos


@settings(max_examples=50)
@given(st.integers(1, 10**12), st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 100))
def test_a_share_is_never_more_than_what_was_paid(
    nanos: int, gpus: int, seconds: int, percent: int
) -> None:
    rate = Rate(nanos=nanos, per=3600)
    part = share(rate, gpus=gpus, seconds=seconds, percent=percent).nanos
    whole = rate.charge(gpus * seconds).nanos
    assert abs(part - whole * percent / 100) <= 1 + whole * 1e-9
    assert 0 <= part <= whole
