"""Signals: from samples of demand and from what was charged, pool by pool."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from tests.core.databases import fresh
from tests.metering.test_lease_meter import NOON, Shop

from sublet.app.signals_of_pools import signals_of_pools
from sublet.core.db import Database
from sublet.fleet import store as fleet
from sublet.fleet.demand import SLOT, Sample
from sublet.leases.lease import EndReason
from sublet.market import service as pricing
from sublet.market.floor import Cost


@pytest.fixture(scope="module")
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        yield database


def test_what_was_offered_sold_and_paid_is_told_by_pool(db: Database) -> None:
    shop = Shop(db, minutes=4)
    shop.stop(240, EndReason.RELEASED)
    shop.settle(240)
    pool = shop.lease.pool
    cost = Cost.of_usd(watts=0, pue=1, usd_per_kwh=0, wear="0.00018", support=0, capital=0)
    with db.transaction() as tx:
        pricing.set_floor(tx, pool, cost, capital_share=0, exception=None, now=NOON)
        fleet.keep_samples(
            tx,
            [
                Sample(pool=pool, slot=NOON + n * SLOT, gpus=8, running=2, pending=0)
                for n in range(-288, 2)
            ],
        )
        items = signals_of_pools(tx, days=2, now=NOON + timedelta(minutes=10))
        (found,) = (item for item in items if item["pool"] == pool)
    assert found["offered_gpu_hours"] == pytest.approx(290 * 6 / 12, abs=0.01)
    assert found["sold_share"] == pytest.approx(480 / (290 * 6 * 300), abs=1e-4)
    assert found["usd_gpu_hour"] == "0.00036"
    assert found["over_floor"] == 2.0
    assert found["signal"] == "oversupply", "a day on offer, and hardly anybody came"
    assert found["advice"].startswith("hold")
