"""No price stands below its floor without a named exception, whichever of the two is set last."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from sublet.core.db import Tx
from sublet.core.errors import Invalid, Refused
from sublet.market import service, store
from sublet.market.floor import Cost
from sublet.market.price import Tier, lease_sku
from sublet.tenants import store as tenants

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SKU = lease_sku("h200", Tier.INTERRUPTIBLE)
COST = Cost.of_usd(
    watts=1_000, pue=1.2, usd_per_kwh="0.05", wear="0.04", support="0.1", capital="1.3"
)


def price(tx: Tx, usd: str, *, exception: str | None = None, sku: str = SKU) -> int:
    rate = store.usd_per_hour(usd)
    return service.set_price(tx, sku, rate, exception=exception, now=NOON).rate.nanos


def floor(tx: Tx, share: float, *, exception: str | None = None) -> service.Floor:
    return service.set_floor(tx, "h200", COST, capital_share=share, exception=exception, now=NOON)


def test_a_price_below_its_floor_is_refused_and_nothing_changes(tx: Tx) -> None:
    floor(tx, 0)
    price(tx, "0.20")
    with pytest.raises(Refused, match=r"its floor is 0\.2: raise it"):
        price(tx, "0.19")
    found = store.find_price(tx, SKU)
    assert found is not None and found.rate.nanos == 200_000_000


def test_with_a_named_exception_it_is_sold_and_the_name_is_kept(tx: Tx) -> None:
    floor(tx, 1)
    assert price(tx, "0.50", exception=" launch week ") == 500_000_000
    known = service.find_floor(tx, "h200")
    assert known is not None and known.rate.nanos == 1_500_000_000
    assert service.list_exceptions(tx, known) == [(SKU, "launch week")]
    with pytest.raises(Invalid, match="leave out the exception"):
        price(tx, "1.60", exception="launch week")


def test_a_floor_above_present_prices_is_refused_unless_they_are_let_pass(tx: Tx) -> None:
    price(tx, "1.00")
    with pytest.raises(Refused, match=f"{SKU} would be below the floor"):
        floor(tx, 1)
    assert service.find_floor(tx, "h200") is None
    made = floor(tx, 1, exception="sold out at this price in March")
    assert service.list_exceptions(tx, made) == [(SKU, "sold out at this price in March")]


def test_other_pools_and_tokens_have_no_floor_of_it(tx: Tx) -> None:
    floor(tx, 1)
    assert price(tx, "0.01", sku=lease_sku("a100", Tier.INTERRUPTIBLE)) == 10_000_000
    rate = store.usd_per_million("0.01")
    service.set_price(tx, "model:m:input", rate, exception=None, now=NOON)


def test_costs_and_exceptions_are_records(tx: Tx) -> None:
    floor(tx, 0)
    for change in ("UPDATE pool_cost SET wear_nanos = 0", "DELETE FROM floor_exception"):
        if change.startswith("DELETE"):
            price(tx, "0.10", exception="test")
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation), tx.transaction():
            tx.execute(change)


@pytest.mark.parametrize("wrong", ["x", "-1", "NaN", "1e9"])
def test_a_cost_that_is_no_number_is_refused(wrong: str) -> None:
    with pytest.raises(Invalid, match="wear is a number such as"):
        Cost.of_usd(watts=1, pue=1, usd_per_kwh=0, wear=wrong, support=0, capital=0)


def test_a_tenants_own_rate_and_a_price_to_come_are_held_to_a_new_floor(tx: Tx) -> None:
    price(tx, "2.00")
    tenant = tenants.create_tenant(tx, "acme", now=NOON)
    rate = store.usd_per_hour("0.10")
    own = service.set_price(tx, SKU, rate, exception=None, now=NOON, tenant_id=tenant.id)
    with pytest.raises(Refused, match=f"{SKU} of tenant {tenant.id} would be below"):
        floor(tx, 1)
    later = NOON + timedelta(days=9)
    service.set_price(tx, SKU, rate, exception=None, now=NOON, valid_from=later)
    made = floor(tx, 1, exception="agreed in January")
    assert [name for _, name in service.list_exceptions(tx, made)] == ["agreed in January"] * 2
    assert own.tenant_id == tenant.id
