"""What a notice costs: a longer one no less, and none less than the price book says."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.db import Tx
from sublet.core.errors import Invalid
from sublet.core.money import Rate
from sublet.market import scales, store
from sublet.market.notice import Scale, Step, check
from sublet.market.price import Tier, is_below, lease_sku
from sublet.tenants import store as tenants

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SKU = lease_sku("h200", Tier.ON_DEMAND)


def step(seconds: int, percent: int) -> Step:
    return Step(notice=timedelta(seconds=seconds), percent=percent)


@st.composite
def scale_of_any_kind(draw: st.DrawFn) -> Scale:
    notices = sorted(draw(st.sets(st.integers(1, 86_400), max_size=5)))
    percents = sorted(draw(st.lists(st.integers(100, 1_000), min_size=5, max_size=5)))
    return Scale(id=1, steps=tuple(map(step, notices, percents)))


@given(
    scale_of_any_kind(),
    st.integers(1, 86_400),
    st.integers(1, 86_400),
    st.integers(1, 10**12),
)
def test_a_longer_notice_costs_no_less_and_none_less_than_the_book(
    scale: Scale, one: int, other: int, nanos: int
) -> None:
    check(scale.steps)
    book = Rate(nanos=nanos, per=3600)
    rates = [book]
    for seconds in sorted((one, other)):
        found = scale.step(timedelta(seconds=seconds))
        rates.append(book if found is None else found.of(book))
    assert not is_below(rates[1], rates[0])
    assert not is_below(rates[2], rates[1])


@pytest.mark.parametrize(
    ("steps", "match"),
    [
        ((step(60, 99),), "step 1: 99 per cent of the price must lie in 100…1000"),
        ((step(60, 1_001),), "step 1"),
        ((step(0, 100),), "a second or longer"),
        ((step(60, 110), step(60, 120)), "step 2: its notice, 60 s, is not longer"),
        ((step(60, 110), step(30, 120)), "step 2: its notice, 30 s"),
        ((step(60, 120), step(90, 110)), "step 2: a longer notice costs no less: 110"),
        (tuple(step(n, 100) for n in range(1, 30)), "at most 20"),
    ],
)
def test_what_is_no_schedule_is_refused(steps: tuple[Step, ...], match: str) -> None:
    with pytest.raises(Invalid, match=match):
        check(steps)


def test_schedules_have_versions_and_prices_follow_from_them_once(tx: Tx) -> None:
    acme = tenants.create_tenant(tx, "acme", now=NOON)
    store.set_price(tx, SKU, store.usd_per_hour("2"), now=NOON)
    own = store.usd_per_hour("1.80")
    store.set_price(tx, SKU, own, now=NOON, tenant_id=acme.id)
    scales.set_scale(tx, "h200", [step(600, 105)], now=NOON)
    scales.set_scale(tx, "h200", [step(300, 150)], now=NOON, valid_from=NOON + HOUR)
    book = store.find_terms(tx, SKU, tenant_id=acme.id, at=NOON)
    assert book is not None

    def paid(seconds: int, at: datetime) -> store.Terms:
        scale = scales.find_scale(tx, "h200", at=at)
        return scales.by_notice(tx, book, scale, timedelta(seconds=seconds), now=at)

    assert paid(599, NOON) == book
    dear = paid(600, NOON)
    assert (dear.contracted.rate.charge(3600).nanos, dear.listed.rate.charge(3600).nanos) == (
        1_890_000_000, 2_100_000_000,
    )  # fmt: skip
    assert dear.listed.sku == f"{SKU}:600s"
    assert paid(3600, NOON) == dear, "of one step, so written down once"
    later = paid(600, NOON + HOUR)
    assert later.listed.rate.charge(3600).nanos == 3_000_000_000
    # They are not on the list themselves.
    assert {price.sku for price in store.list_valid(tx, at=NOON, tenant_id=None)} == {SKU}
    assert {price.sku for price in store.list_prices(tx)} == {SKU}
    assert store.find_price(tx, dear.listed.sku) is None
    with pytest.raises(Invalid, match="from now on or later"):
        scales.set_scale(tx, "h200", [], now=NOON, valid_from=NOON - HOUR)
