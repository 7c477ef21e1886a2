"""The price book: rows are added, the newest of a SKU holds."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from tests.core.databases import fresh, undone

from sublet.core.db import Database, Tx
from sublet.core.errors import Invalid, NotFound
from sublet.core.money import MAX_NANOS, Money, Rate
from sublet.market import store
from sublet.market.price import Tier, cache_read_sku, input_sku, lease_sku, output_sku

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def shared(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as db:
        yield db


@pytest.fixture
def tx(shared: Database) -> Iterator[Tx]:
    with undone(shared) as tx:
        yield tx


def test_what_was_sold_before_keeps_its_price(tx: Tx) -> None:
    sku = lease_sku("h200", Tier.ON_DEMAND)
    assert store.find_price(tx, sku) is None
    first = store.set_price(tx, sku, store.usd_per_hour("2.40"), now=NOON)
    second = store.set_price(tx, sku, store.usd_per_hour("2.60"), now=NOON)
    assert store.find_price(tx, sku) == second
    assert store.get_price(tx, first.id) == first
    assert store.list_prices(tx) == [second]


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
