"""What tenants see of their usage: it adds up to what was charged, by whatever tells it apart."""

from collections.abc import Iterator
from datetime import date, timedelta
from uuid import uuid4

import pytest
from tests.core.databases import fresh
from tests.invoices.shop import BEGIN, NOW, OCTOBER, SEPTEMBER, VAT, Shop, at

from sublet.core.errors import Invalid, NotFound
from sublet.core.money import NANOS, Rate
from sublet.invoices import store
from sublet.invoices.explorer import By, Filter, foresee, list_usage, spent
from sublet.market import store as market
from sublet.metering import tags
from sublet.tenants.tenant import Tenant

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def shop(postgres_url: str, template: str) -> Iterator[Shop]:
    with fresh(postgres_url, template) as db:
        with db.transaction() as tx:
            rate = Rate(nanos=1_234_567, per=1_000)
            price = market.set_price(tx, "model:gemma:output", rate, now=BEGIN)
            store.add_tax(tx, VAT, now=BEGIN)
        yield Shop(db=db, price=price)


def by(shop: Shop, tenant: Tenant, *what: By, **more: object) -> dict[tuple[object, ...], int]:
    with shop.db.transaction() as tx:
        rows = list_usage(
            tx, tenant.id, date(2026, 8, 1), date(2026, 12, 1), zone_name="America/New_York",
            by=what, **more,  # type: ignore[arg-type]
        )  # fmt: skip
    names = [*map(str, what), *(["tag"] if "by_tag" in more else [])]
    return {tuple(row[name] for name in names): int(row["amount_nanos"]) for row in rows}


def test_usage_adds_up_to_what_was_charged_however_it_is_told_apart(shop: Shop) -> None:
    tenant = shop.tenant(usd=10_000)
    tokens = shop.use(tenant, 1_000, at(9, 3)) + shop.use(tenant, 77, at(9, 4, 2))
    pool = shop.pool()
    lease = shop.lease(tenant, pool, at(9, 5), 3_600)
    hours = by(shop, tenant)[()] - tokens
    assert abs(hours - 2 * 2 * NANOS) < 60, "each of sixty minutes is rounded by itself"
    assert by(shop, tenant) == {(): tokens + hours}
    assert by(shop, tenant, By.PRODUCT) == {("model",): tokens, ("interruptible",): hours}
    assert by(shop, tenant, By.MODEL, By.POOL) == {("gemma", ""): tokens, ("", pool): hours}
    assert by(shop, tenant, By.LEASE) == {("",): tokens, (str(lease.id),): hours}
    days = by(shop, tenant, By.DAY)
    assert set(days) == {("2026-09-03",), ("2026-09-05",)}, "2 o'clock is the day before, there"
    assert sum(days.values()) == tokens + hours
    assert by(shop, tenant, only=Filter(model="gemma")) == {(): tokens}
    assert by(shop, tenant, only=Filter(lease=lease.id)) == {(): hours}
    assert by(shop, tenant, By.DAY, limit=1, offset=1) == {("2026-09-05",): hours}


def test_a_tag_holds_of_what_is_charged_from_then_on_and_is_a_line_of_its_own(shop: Shop) -> None:
    tenant, pool = shop.tenant(usd=10_000), shop.pool()
    lease = shop.lease(tenant, pool, at(10, 2), 60)
    other = shop.lease(tenant, pool, at(10, 3), 120, gpus=1)
    with shop.db.transaction() as tx:
        tags.put(tx, other.id, {"team": "research"}, tenant_id=tenant.id, now=at(9, 30))
        tags.put(tx, other.id, {"team": "sales"}, tenant_id=tenant.id, now=at(10, 4))
        tags.put(tx, lease.id, {"team": "late"}, tenant_id=tenant.id, now=at(10, 4))
        assert tags.get(tx, other.id, tenant_id=tenant.id) == {"team": "sales"}
    a_minute = 2 * NANOS // 60
    found = by(shop, tenant, by_tag="team")
    assert found.keys() == {("",), ("research",)}
    assert found["research",] == pytest.approx(2 * a_minute, abs=2)
    assert by(shop, tenant, only=Filter(tag=("team", "research"))) == {(): found["research",]}
    invoice = shop.issue(tenant)
    with shop.db.transaction() as tx:
        lines = store.read_lines(store.get_row(tx, id_=invoice.id))
    assert sorted((line.tags, line.amount_nanos) for line in lines) == sorted(
        [("", found["",]), ('{"team": "research"}', found["research",])]
    )
    assert shop.exported(tenant, now=NOW) == {invoice.label: invoice.totals.total}


def test_what_is_no_tag_or_somebody_else_s_is_refused(shop: Shop) -> None:
    tenant, stranger = shop.tenant(), shop.tenant()
    lease = shop.lease(tenant, shop.pool(), at(9, 2), 60)
    with shop.db.transaction() as tx:
        for bad, why in (
            ({"Team": "x"}, "is no name"), ({"team": ""}, "needs a value"),
            ({"team": "x" * 101}, "needs a value"), ({"team": "a\nb"}, "needs a value"),
            ({f"t{n}": "x" for n in range(21)}, "at most 20"),
        ):  # fmt: skip
            with pytest.raises(Invalid, match=why):
                tags.put(tx, lease.id, bad, tenant_id=tenant.id, now=NOW)
        for id_, owner in ((lease.id, stranger.id), (uuid4(), tenant.id)):
            with pytest.raises(NotFound, match="no key, lease or reservation"):
                tags.put(tx, id_, {"a": "b"}, tenant_id=owner, now=NOW)


def test_a_month_is_foreseen_from_the_days_that_were(shop: Shop) -> None:
    tenant = shop.tenant(usd=10_000)
    now = at(10, 11, 0)
    a_day = max(shop.use(tenant, 10_000, now - timedelta(days=n, hours=1)) for n in range(20))
    with shop.db.transaction() as tx:
        seen = foresee(tx, tenant.id, zone_name="UTC", now=now)
        assert seen.spent == spent(tx, tenant.id, *OCTOBER, zone_name="UTC")
        none = foresee(tx, shop.tenant().id, zone_name="UTC", now=now)
    assert (seen.days_seen, seen.a_day.nanos, seen.days_left) == (20, a_day, 21.0)
    assert seen.spent.nanos == 10 * a_day
    assert seen.total.nanos == 31 * a_day
    assert (none.total.nanos, none.days_seen) == (0, 0)
    assert SEPTEMBER[0] < seen.month
