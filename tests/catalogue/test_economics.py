"""Models and leases want the same GPUs: who pays more gets them, and prices say what tokens cost."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.money import NANOS
from sublet.models.deployment import Scaling
from sublet.models.economics import WINDOW, Rates, Seen, token_floor, weigh, worth
from sublet.models.scaling import Load, Scale, scale

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LONG_AGO = NOON - 2 * WINDOW
# Four replicas of one GPU for six hours: 24 GPU-hours, at 1,000 tokens a second, half loaded.
SEEN = Seen(
    gpus=1, gpu_hours=24, requests=10_000, input_tokens=100_000_000, output_tokens=43_200_000,
    revenue_nanos=60 * NANOS, tokens_per_second=1000,
)  # fmt: skip
RATES = Rates(
    rental_nanos=2 * NANOS, cost_nanos=NANOS, bid_nanos=None, output_nanos=1.2 * NANOS / 1e6
)


def test_what_a_deployment_costs_and_earns() -> None:
    found = weigh(SEEN, RATES)
    assert found.load == pytest.approx(0.5)
    assert found.cost_nanos == 24 * NANOS
    assert found.revenue_nanos_per_gpu_hour == pytest.approx(2.5 * NANOS)
    assert found.full_nanos_per_gpu_hour == pytest.approx(5 * NANOS)
    assert found.margin == pytest.approx(1 - 24 / 60)
    assert found.break_even_load == pytest.approx(0.2)
    assert found.cost_nanos_per_million == pytest.approx(24 / 143.2 * NANOS)
    assert found.floor_nanos_per_million == pytest.approx(NANOS / 3.6)
    assert found.floor_today_nanos_per_million == pytest.approx(NANOS / 1.8)


def test_the_rental_price_stands_in_for_a_cost_that_nobody_said() -> None:
    found = weigh(SEEN, replace(RATES, cost_nanos=None))
    assert found.cost_nanos == 48 * NANOS
    assert found.break_even_load == pytest.approx(0.4)


def test_what_was_not_measured_is_not_guessed() -> None:
    unmeasured = weigh(replace(SEEN, tokens_per_second=None), RATES)
    assert unmeasured.load is None and unmeasured.break_even_load is None
    assert unmeasured.floor_nanos_per_million is None
    idle = weigh(
        replace(SEEN, gpu_hours=0, input_tokens=0, output_tokens=0, revenue_nanos=0, requests=0),
        RATES,
    )
    assert idle.load is None and idle.margin is None and idle.cost_nanos_per_million is None
    # What it would earn when full is known from its price alone.
    assert idle.full_nanos_per_gpu_hour == pytest.approx(1.2 * 3.6 * NANOS)


def test_at_its_break_even_load_a_deployment_earns_what_it_costs() -> None:
    even = weigh(SEEN, RATES).break_even_load
    assert even is not None
    part = even / 0.5
    at_it = replace(
        SEEN,
        output_tokens=round(SEEN.output_tokens * part),
        revenue_nanos=round(SEEN.revenue_nanos * part),
    )
    assert weigh(at_it, RATES).margin == pytest.approx(0, abs=1e-6)


@given(st.integers(1, 10**12), st.integers(1, 8), st.floats(0.1, 1e5), st.floats(0.0, 5.0))
def test_a_price_at_its_floor_pays_for_the_gpus_at_full_load_and_below_it_does_not(
    cost: int, gpus: int, makes: float, below: float
) -> None:
    floor = token_floor(cost_nanos=cost, gpus=gpus, tokens_per_second=makes)
    earned = floor / 1e6 * makes * 3600
    assert earned >= cost * gpus * (1 - 1e-9)
    less = floor * (1 - below) - 1
    assert less / 1e6 * makes * 3600 < cost * gpus


def test_leases_get_the_gpus_when_they_pay_more() -> None:
    lately = replace(SEEN, gpu_hours=4 / 6, output_tokens=1_200_000, revenue_nanos=NANOS)
    # 1 USD in ten minutes: 6 an hour, for four replicas 1.50 each.
    for bid, replicas in ((0.0, None), (1.0, 5), (1.5, 5), (1.6, 4), (2.5, 3), (3.5, 2), (4.0, 0)):
        rates = replace(RATES, bid_nanos=round(bid * NANOS))
        found = worth(lately, rates, replicas=4, newest_ready_at=LONG_AGO, now=NOON)
        assert found == replicas, bid
    # The bid prices of before, and of now: the deployment gives its GPUs back, one after the other.
    scaling = Scaling(min_replicas=0, max_replicas=8, outstanding_tokens=1000)
    busy = Load(requests=8, outstanding_tokens=4000, asked_at=NOON)
    four = Scale(target=4)
    assert scale(four, scaling, busy, ready=4, now=NOON, worth=4).target == 4
    assert scale(four, scaling, busy, ready=4, now=NOON, worth=1).target == 1
    kept = replace(scaling, min_replicas=2)  # what the operator keeps up is kept whatever it earns
    assert scale(four, kept, busy, ready=4, now=NOON, worth=0).target == 2


def test_a_new_replica_has_its_time_and_one_that_could_not_pay_is_not_begun() -> None:
    nothing = replace(SEEN, gpu_hours=0.1, output_tokens=0, input_tokens=0, revenue_nanos=0)
    rates = replace(RATES, bid_nanos=2 * NANOS)  # full, it would earn 4.32
    young = NOON - WINDOW / 2
    assert worth(nothing, rates, replicas=1, newest_ready_at=young, now=NOON) == 1
    assert worth(nothing, rates, replicas=1, newest_ready_at=None, now=NOON) == 1
    assert worth(nothing, rates, replicas=1, newest_ready_at=LONG_AGO, now=NOON) == 0
    assert worth(nothing, rates, replicas=0, newest_ready_at=None, now=NOON) is None
    dear = replace(RATES, bid_nanos=5 * NANOS)
    assert worth(nothing, dear, replicas=0, newest_ready_at=None, now=NOON) == 0
    assert (
        worth(
            nothing, replace(rates, bid_nanos=6 * NANOS), replicas=1, newest_ready_at=None, now=NOON
        )
        == 0
    )


@given(
    st.integers(0, 10 * NANOS), st.integers(0, 10 * NANOS), st.integers(0, 8),
    st.integers(0, 10**12), st.integers(0, 1200),
)  # fmt: skip
def test_a_dearer_market_never_leaves_more_to_a_model(
    one: int, other: int, replicas: int, revenue: int, ago: int
) -> None:
    seen = replace(SEEN, revenue_nanos=revenue)
    at = NOON - timedelta(seconds=ago) if replicas else None
    low, high = sorted((one, other))
    cheap, dear = (
        worth(seen, replace(RATES, bid_nanos=bid), replicas=replicas, newest_ready_at=at, now=NOON)
        for bid in (low, high)
    )
    assert cheap is None or (dear is not None and dear <= cheap)
    assert dear is None or dear <= replicas + 1
