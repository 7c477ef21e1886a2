"""A quote: asked, shown, and accepted once at its price, or expired."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.core.databases import fresh
from tests.leases.test_admission import JOB, NOON, REQUEST, SECOND, Shop, held, open_shop
from tests.leases.test_terms import set_policy

from sublet.core.db import Database
from sublet.core.errors import Invalid, NotFound, Refused, SubletError
from sublet.core.ids import new_id
from sublet.core.money import Money, Rate
from sublet.leases import admission, quoting, store
from sublet.leases.lease import Lease, LeaseId
from sublet.leases.quoting import Ask
from sublet.market import quotes
from sublet.market import store as market
from sublet.market.price import Tier, lease_sku
from sublet.market.quote import LIFETIME, Quote

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        yield database


@pytest.fixture
def shop(db: Database) -> Shop:
    return open_shop(db, cents=10**6)


def ask(db: Database, shop: Shop, **changes: Any) -> Quote:
    lifetime = changes.pop("lifetime", LIFETIME)
    jobs = changes.pop("jobs", [])
    wanted = Ask(pool=shop.pool, gpus=2, tier=Tier.INTERRUPTIBLE, max_duration=HOUR)
    with db.transaction() as tx:
        return quoting.quote(
            tx, shop.tenant, replace(wanted, **changes), jobs=jobs, lifetime=lifetime, now=NOON
        )


def accept(
    db: Database, shop: Shop, quote: Quote, *, id_: LeaseId | None = None, at: datetime = NOON
) -> Lease:
    request = replace(
        REQUEST, id=id_, pool=quote.pool, gpus=quote.gpus, tier=quote.tier, quote=quote.id,
        max_duration=quote.max_duration, notice=quote.notice,
    )  # fmt: skip
    with db.transaction() as tx:
        return admission.admit(tx, shop.tenant, request, jobs=[], now=at)


def set_price(db: Database, shop: Shop, usd: str, **more: Any) -> None:
    with db.transaction() as tx:
        sku = lease_sku(shop.pool, Tier.INTERRUPTIBLE)
        market.set_price(tx, sku, market.usd_per_hour(usd), now=NOON, **more)


def test_a_quote_is_accepted_at_its_price_whatever_became_of_the_list(
    db: Database, shop: Shop
) -> None:
    quote = ask(db, shop)
    assert quote.most == Money(2 * 1_200_000_000)
    assert quote.state(NOON) == "open"
    set_price(db, shop, "9")
    set_policy(db, shop, floor=Rate(nanos=5_000_000_000, per=3600))
    lease = accept(db, shop, quote, at=quote.expires_at - SECOND)
    assert lease.price_id == quote.price.id
    with db.transaction() as tx:
        (kept,) = quotes.list_of(tx, shop.tenant.id, limit=9)
    assert (kept.state(NOON), kept.sold) == ("accepted", lease.id)


def test_a_tenants_own_rate_and_the_list_price_are_both_kept(db: Database, shop: Shop) -> None:
    set_price(db, shop, "1", tenant_id=shop.tenant.id)
    lease = accept(db, shop, ask(db, shop))
    with db.transaction() as tx:
        assert store.get(tx, lease.id) == lease
        assert lease.list_price_id is not None
        paid = market.get_price(tx, lease.price_id)
        listed = market.get_price(tx, lease.list_price_id)
    assert (paid.rate.charge(3600), listed.rate.charge(3600)) == (
        Money(1_000_000_000), Money(1_200_000_000),
    )  # fmt: skip


def test_a_quote_is_used_once(db: Database, shop: Shop) -> None:
    quote = ask(db, shop)
    id_ = LeaseId(new_id())
    first = accept(db, shop, quote, id_=id_)
    # The same call again is the same lease, however late.
    assert accept(db, shop, quote, id_=id_, at=NOON + HOUR) == first
    with pytest.raises(Refused, match=f"became {id_}: a quote is used once"):
        accept(db, shop, quote)
    with db.transaction() as tx:
        assert held(tx, shop)[0] == 2


def test_a_quote_expires(db: Database, shop: Shop) -> None:
    quote = ask(db, shop, lifetime=30 * SECOND)
    with pytest.raises(Refused, match="expired at 2026-01-01 12:00:30 UTC; ask for another"):
        accept(db, shop, quote, at=NOON + 30 * SECOND)
    assert quote.state(NOON + 30 * SECOND) == "expired"
    with db.transaction() as tx:
        assert held(tx, shop) == (0, Money(0))


def test_a_quote_that_found_no_room_stays_open(db: Database, shop: Shop) -> None:
    quote = ask(db, shop, gpus=6)
    other = accept(db, shop, ask(db, shop, gpus=4))
    with pytest.raises(Refused, match="no surplus"):
        accept(db, shop, quote)
    with db.transaction() as tx:
        assert quotes.lock(tx, quote.id, tenant_id=shop.tenant.id).state(NOON) == "open"
        assert store.get(tx, other.id).gpus == 4


def test_another_tenants_quote_does_not_exist(db: Database, shop: Shop) -> None:
    quote = ask(db, shop)
    with pytest.raises(NotFound):
        accept(db, replace(shop, tenant=open_shop(db, cents=100).tenant), quote)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"gpus": 0}, Invalid),
        ({"gpus": 9}, Invalid),
        ({"pool": "b200"}, NotFound),
        ({"max_duration": timedelta(0)}, Invalid),
        ({"max_duration": timedelta(days=31)}, Invalid),
        ({"notice": 9 * SECOND}, Invalid),
        ({"lifetime": timedelta(0)}, Invalid),
        ({"lifetime": timedelta(hours=2)}, Invalid),
        ({"gpus": 5, "jobs": [JOB]}, Refused),
    ],
)
def test_what_could_not_be_sold_is_not_quoted(
    db: Database, shop: Shop, changes: dict[str, Any], error: type[SubletError]
) -> None:
    if "jobs" in changes:
        changes = changes | {"jobs": [replace(JOB, gpu_model=shop.pool)]}
    with pytest.raises(error):
        ask(db, shop, **changes)
    with db.transaction() as tx:
        assert quotes.list_of(tx, shop.tenant.id, limit=9) == []
