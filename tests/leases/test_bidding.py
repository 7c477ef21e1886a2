"""Bid prices decide about sales where enough demand was seen, and the price book where not."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.core.databases import fresh
from tests.leases.test_admission import NOON, REQUEST, SECOND, Shop, buy, open_shop

from sublet.core.db import Database
from sublet.core.errors import Refused
from sublet.leases import bidding, booking
from sublet.leases.booking import Booking
from sublet.market import bids
from sublet.market.price import Tier
from sublet.planner import store as plans

HOUR = timedelta(hours=1)
USD = 10**9


@pytest.fixture(scope="module")
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        yield database


def ask(
    db: Database, shop: Shop, usd: float, *, firm: float = 0.0, age: timedelta = SECOND
) -> None:
    found = {
        "slot_hours": 1.0, "any": [usd * USD] * 24, "firm": [firm * USD] * 24, "leaving": 0.0
    }  # fmt: skip
    with db.transaction() as tx:
        bids.put(tx, {shop.pool: found}, now=NOON - age)


def test_nothing_is_sold_for_less_than_it_is_worth_to_those_who_come_later(db: Database) -> None:
    shop = open_shop(db, cents=10_000)
    ask(db, shop, 1.20)
    assert buy(db, shop, REQUEST).gpus == 2, "what is paid is exactly enough"
    ask(db, shop, 1.21)
    with pytest.raises(Refused, match=r"sold for 1\.2099\d* .*and this would pay 1\.2"):
        buy(db, shop, REQUEST)
    assert buy(db, shop, replace(REQUEST, tier=Tier.ON_DEMAND)).gpus == 2
    ask(db, shop, 1.20, firm=1.30)
    with pytest.raises(Refused, match="sold for 2"):
        buy(db, shop, replace(REQUEST, tier=Tier.ON_DEMAND))
    window = Booking(pool=shop.pool, gpus=1, starts_at=NOON + HOUR, ends_at=NOON + 2 * HOUR)
    with db.transaction() as tx, pytest.raises(Refused, match="sold for 2"):
        booking.book(tx, shop.tenant, window, now=NOON)


def test_what_was_found_too_long_ago_or_not_at_all_leaves_it_to_the_price_book(
    db: Database,
) -> None:
    shop = open_shop(db, cents=10_000)
    ask(db, shop, 9.0, age=16 * 60 * SECOND)
    assert buy(db, shop, REQUEST).gpus == 2
    with db.transaction() as tx:
        bids.put(tx, {shop.pool: None}, now=NOON)
        assert bids.find(tx, shop.pool, now=NOON) is None
    assert buy(db, shop, REQUEST).gpus == 2


def plan(db: Database, shop: Shop) -> None:
    """Let the planner say that nobody inside will need any of it."""
    document = {
        "firm": {"1h": 8, "4h": 8, "24h": 8}, "reasons": [], "known_hours": 900.0,
        "band": [{"ahead_seconds": ahead, "demand": {"0.5": 0}} for ahead in (300, 86_400)],
    }  # fmt: skip
    with db.transaction() as tx:
        plans.put_plans(tx, {shop.pool: document}, now=NOON)


def test_bid_prices_rise_where_more_is_asked_for_than_there_is(db: Database) -> None:
    shop = open_shop(db, cents=100_000)
    plan(db, shop)
    bidding.renew(db, now=NOON)
    with db.transaction() as tx:
        assert bids.find(tx, shop.pool, now=NOON) is None, "no demand was seen yet"
    long = replace(REQUEST, gpus=8, tier=Tier.ON_DEMAND, max_duration=24 * HOUR)
    for _ in range(40):
        lease = buy(db, shop, long)
        with db.transaction() as tx:  # over at once, so that the next one has room
            tx.execute("UPDATE lease SET state = 'ended' WHERE id = %s", [lease.id])
    bidding.renew(db, now=NOON)
    with db.transaction() as tx:
        asked = bids.find(tx, shop.pool, now=NOON)
    assert asked is not None
    # Each GPU could be sold on demand, for 2.40 an hour.
    least = asked.least(start=NOON, length=HOUR, firm=False)
    assert 0.5 * USD < least.nanos <= 2.4 * USD
    assert asked.least(start=NOON, length=24 * HOUR, firm=True).nanos <= 2.4 * USD
    with pytest.raises(Refused):
        buy(db, shop, REQUEST)
    assert buy(db, shop, replace(long, gpus=1)).gpus == 1
