"""The price book: rows are added, the newest of a SKU holds."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from sublet.core.db import Tx
from sublet.core.errors import Invalid, NotFound
from sublet.core.money import MAX_NANOS, Money, Rate
from sublet.market import store
from sublet.market.price import (
    Tier,
    cache_read_sku,
    input_sku,
    is_below,
    lease_sku,
    least_rate,
    output_sku,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_what_was_sold_before_keeps_its_price(tx: Tx) -> None:
    sku = lease_sku("h200", Tier.ON_DEMAND)
    assert store.find_price(tx, sku) is None
    first = store.set_price(tx, sku, store.usd_per_hour("2.40"), now=NOON)
    second = store.set_price(tx, sku, store.usd_per_hour("2.60"), now=NOON)
    assert store.find_price(tx, sku) == second
    assert store.get_price(tx, first.id) == first
    assert store.list_prices(tx) == [second]


SKU = lease_sku("h200", Tier.ON_DEMAND)
DAY = timedelta(days=1)
ACME, OTHER = UUID(int=1), UUID(int=2)


def terms(tx: Tx, at: datetime, tenant: UUID = OTHER) -> tuple[int, int]:
    found = store.find_terms(tx, SKU, tenant_id=tenant, at=at)
    assert found is not None
    return found.contracted.rate.nanos, found.listed.rate.nanos


def test_a_price_begins_when_it_was_said_to(tx: Tx) -> None:
    assert store.find_terms(tx, SKU, tenant_id=ACME, at=NOON) is None
    for nanos, start in ((3, 2 * DAY), (1, 0 * DAY), (2, DAY)):
        store.set_price(tx, SKU, Rate(nanos=nanos, per=1), now=NOON, valid_from=NOON + start)
    found = [terms(tx, NOON + days * DAY)[1] for days in (0, 0.9, 1, 1.9, 2, 99)]
    assert found == [1, 1, 2, 2, 3, 3]
    assert store.find_terms(tx, SKU, tenant_id=ACME, at=NOON - DAY) is None
    held = [price.rate.nanos for price in store.list_valid(tx, at=NOON + DAY, tenant_id=None)]
    assert held == [2, 3], "what holds, and what comes"


def test_a_tenants_own_rate_comes_first_while_it_is_valid_and_both_are_kept(tx: Tx) -> None:
    store.set_price(tx, SKU, Rate(nanos=10, per=1), now=NOON)
    store.set_price(
        tx, SKU, Rate(nanos=8, per=1), now=NOON, tenant_id=ACME,
        valid_from=NOON + DAY, valid_until=NOON + 2 * DAY,
    )  # fmt: skip
    assert [terms(tx, NOON + days * DAY, ACME) for days in (0, 1, 1.9, 2)] == [
        (10, 10), (8, 10), (8, 10), (10, 10),
    ]  # fmt: skip
    assert terms(tx, NOON + DAY) == (10, 10)
    assert [price.tenant_id for price in store.list_valid(tx, at=NOON, tenant_id=OTHER)] == [None]
    assert len(store.list_valid(tx, at=NOON, tenant_id=ACME)) == 2
    newest = store.find_price(tx, SKU)
    assert newest is not None and newest.tenant_id is None


@pytest.mark.parametrize(
    "changes",
    [
        {"valid_from": NOON - timedelta(seconds=1)},
        {"valid_until": NOON + DAY},
        {"tenant_id": ACME, "valid_until": NOON},
        {"tenant_id": ACME, "valid_from": NOON + DAY, "valid_until": NOON + DAY},
        {"sku": "model:x:input", "valid_from": NOON + DAY},
        {"sku": "model:x:input", "tenant_id": ACME},
    ],
)
def test_a_validity_that_cannot_be_is_refused(tx: Tx, changes: dict[str, Any]) -> None:
    sku = changes.pop("sku", SKU)
    with pytest.raises(Invalid):
        store.set_price(tx, sku, Rate(nanos=1, per=1), now=NOON, **changes)


@pytest.mark.parametrize(
    ("floor", "bid", "least"),
    [(None, None, None), (2, None, 2), (None, 3, 3), (2, 3, 3), (3, 2, 3)],
)
def test_the_least_rate_is_the_higher_of_floor_and_bid(
    floor: int | None, bid: int | None, least: int | None
) -> None:
    def rate(nanos: int | None) -> Rate | None:
        return None if nanos is None else Rate(nanos=nanos, per=7)

    found = least_rate(floor=rate(floor), bid=rate(bid))
    assert found == rate(least)
    assert is_below(Rate(nanos=2, per=6), found) == (least == 3)


@pytest.mark.parametrize(
    ("rate", "quantity", "nanos"),
    [
        (store.usd_per_hour("2.40"), 3600, 2_400_000_000),
        (store.usd_per_hour("0.03"), 1, 8333),
        (store.usd_per_million("0.15"), 1_000_000, 150_000_000),
        (store.usd_per_million("0.000001"), 1, 0),
    ],
)
def test_prices_are_ratios(rate: Rate, quantity: int, nanos: int) -> None:
    assert rate.charge(quantity) == Money(nanos)


@pytest.mark.parametrize(
    ("sku", "nanos"),
    [
        ("lease:h200:on_demand", 0),
        ("lease:h200:on_demand", -1),
        ("model:x:input", -1),
        ("model:x:input", MAX_NANOS + 1),
    ],
)
def test_a_price_that_cannot_be_is_refused(tx: Tx, sku: str, nanos: int) -> None:
    with pytest.raises(Invalid):
        store.set_price(tx, sku, Rate(nanos=nanos, per=1), now=NOON)


def test_tokens_may_be_free_and_large_prices_come_back_whole(tx: Tx) -> None:
    for nanos in (0, MAX_NANOS):
        made = store.set_price(tx, "model:x:input", Rate(nanos=nanos, per=7), now=NOON)
        assert store.get_price(tx, made.id).rate == Rate(nanos=nanos, per=7)
    with pytest.raises(NotFound):
        store.get_price(tx, made.id + 1)


def test_no_two_things_share_a_sku() -> None:
    leases = [lease_sku(pool, tier) for pool in ("h200", "cpu") for tier in Tier]
    tokens = [sku(name) for sku in (input_sku, cache_read_sku, output_sku) for name in "ab"]
    assert len({*leases, *tokens}) == len(leases) + len(tokens)
