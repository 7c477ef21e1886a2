"""Bid prices: what a GPU is worth to those who would have it instead."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.market.bid import BidPrices, Expected, bid_prices, expect
from sublet.market.bids import Bids

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def expected(*kinds: tuple[bool, float, float, float], seen: int = 100) -> Expected:
    firm, offer, hours, gpus = zip(*kinds, strict=True)
    return Expected(
        seen=seen, firm=np.array(firm), offer=np.array(offer), hours=np.array(hours),
        gpus_per_hour=np.array(gpus),
    )  # fmt: skip


def found(known: Expected, lendable: float, promisable: float = 1e6) -> BidPrices:
    prices = bid_prices(
        known, lendable=np.full(24, lendable), promisable=np.full(24, promisable), slot_hours=2.0
    )
    assert prices is not None
    return prices


def test_what_is_not_scarce_is_worth_nothing() -> None:
    prices = found(expected((False, 1.0, 4.0, 10.0)), 1_000)
    assert prices.any == pytest.approx(np.zeros(24))
    assert prices.covers(offer=1e-9, start_hours=3, hours=5, firm=True)


def test_a_scarce_gpu_is_worth_the_best_offer_that_is_turned_away() -> None:
    # For two hours each: five GPUs an hour at 3 and fifty at 1 make 10 and 100 a slot; 50 fit.
    prices = found(expected((False, 3.0, 2.0, 5.0), (False, 1.0, 2.0, 50.0)), 50)
    assert prices.any == pytest.approx(np.ones(24))
    for start, hours in ((0, 2), (1, 0.5), (40, 100), (100, 3)):
        assert prices.covers(offer=1.001, start_hours=start, hours=hours, firm=False)
        assert not prices.covers(offer=0.999, start_hours=start, hours=hours, firm=False)


def test_a_request_pays_for_its_window_and_not_for_each_hour_of_it() -> None:
    prices = BidPrices(slot_hours=2.0, any=np.array([0.0, 0.0, 3.0, 3.0]), firm=np.zeros(4))
    assert prices.covers(offer=1.0, start_hours=0, hours=6, firm=False), "6 for 2 hours at 3"
    assert not prices.covers(offer=0.99, start_hours=0, hours=6, firm=False)
    assert not prices.covers(offer=2.9, start_hours=5, hours=90, firm=False)


def test_what_will_hardly_last_pays_for_less_of_its_later_hours() -> None:
    later = np.array([0.0, 0.0, 3.0, 3.0])
    lasting = BidPrices(slot_hours=2.0, any=later, firm=np.zeros(4))
    short = BidPrices(slot_hours=2.0, any=later, firm=np.zeros(4), leaving=0.5)
    request = {"offer": 0.6, "start_hours": 0.0, "hours": 6.0}
    assert not lasting.covers(**request, firm=False)
    assert short.covers(**request, firm=False)
    assert not short.covers(**request, firm=True), "a promise lasts"


def test_a_promise_costs_more_where_promises_are_scarce() -> None:
    prices = found(expected((True, 2.0, 2.0, 30.0), (False, 1.0, 2.0, 5.0)), 1_000, 20)
    assert prices.any == pytest.approx(np.zeros(24))
    assert prices.firm == pytest.approx(np.full(24, 2.0))


def test_demand_that_was_never_seen_has_no_bid_prices() -> None:
    one = np.full(1, 10.0)
    known = expected((False, 1.0, 2.0, 1.0), seen=29)
    assert bid_prices(known, lendable=one, promisable=one, slot_hours=2.0) is None
    nobody = expect(
        offers=np.zeros(0), hours=np.zeros(0), gpus=np.zeros(0), firm=np.zeros(0, dtype=bool),
        over_hours=24,
    )  # fmt: skip
    assert bid_prices(nobody, lendable=one, promisable=one, slot_hours=2.0) is None


@given(st.integers(0, 2**32))
def test_grouping_requests_keeps_their_gpu_hours_and_their_money(seed: int) -> None:
    dice = np.random.default_rng(seed)
    count = int(dice.integers(1, 80))
    offers, hours = dice.lognormal(0, 0.5, count), dice.lognormal(1, 1, count)
    gpus, firm = dice.integers(1, 64, count).astype(np.float64), dice.random(count) < 0.4
    known = expect(offers=offers, hours=hours, gpus=gpus, firm=firm, over_hours=10)
    assert (known.gpus_per_hour * known.hours * 10).sum() == pytest.approx((gpus * hours).sum())
    assert (known.gpus_per_hour * known.hours * known.offer * 10).sum() == pytest.approx(
        (gpus * hours * offers).sum()
    )


@given(st.integers(0, 2**32))
def test_what_is_asked_at_a_sale_is_what_bid_price_control_asks(seed: int) -> None:
    dice = np.random.default_rng(seed)
    slots = int(dice.integers(1, 30))
    prices = BidPrices(
        slot_hours=float(dice.choice([0.5, 1.0, 3.0])),
        any=dice.uniform(0, 3e9, slots), firm=dice.uniform(0, 3e9, slots),
        leaving=float(dice.choice([0.0, 0.1, 2.0])),
    )  # fmt: skip
    start, hours = float(dice.uniform(0, 60)), float(dice.uniform(0.1, 90))
    firm = bool(dice.random() < 0.5)
    asked = Bids(
        made_at=NOON, slot_hours=prices.slot_hours, any=prices.any.tolist(),
        firm=prices.firm.tolist(), leaving=prices.leaving,
    )  # fmt: skip
    least = asked.least(
        start=NOON + timedelta(hours=start), length=timedelta(hours=hours), firm=firm
    )
    window = {"start_hours": start, "hours": hours, "firm": firm}
    assert prices.covers(offer=least.nanos * (1 + 1e-3) + 2, **window)
    assert not prices.covers(offer=least.nanos * (1 - 1e-3) - 2, **window)
