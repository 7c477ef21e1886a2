"""The floor: what a GPU-hour costs, and nothing is sold below it by mistake."""

import pytest

from sublet.core.errors import Invalid, Refused
from sublet.core.money import Rate
from sublet.market.floor import Cost, below, hold_to_floor

COST = Cost.of_usd(watts=1_000, pue=1.2, usd_per_kwh=0.05, wear=0.04, support=0.10, capital=1.3)


def test_marginal_cost_is_power_wear_and_support() -> None:
    assert COST.power_nanos == 60_000_000
    assert COST.marginal_nanos == 200_000_000
    assert COST.full_nanos == 1_500_000_000
    assert COST.floor(0) == Rate(nanos=200_000_000, per=3_600)
    assert COST.floor(1) == Rate(nanos=1_500_000_000, per=3_600)
    assert COST.floor(0.5).nanos == 850_000_000


def test_prices_are_compared_exactly_whatever_their_units() -> None:
    assert below(Rate(nanos=1, per=3), Rate(nanos=1_000_000_001, per=3_000_000_000))
    assert not below(Rate(nanos=1, per=3), Rate(nanos=1_000_000_000, per=3_000_000_000))


def test_nothing_passes_below_the_floor_without_a_named_exception() -> None:
    floor = COST.floor(0)
    low = Rate(nanos=199_999_999, per=3_600)
    with pytest.raises(Refused, match=r"0\.199999999 USD per GPU-hour and its floor is 0\.2"):
        hold_to_floor(low, floor, exception=None)
    with pytest.raises(Refused):
        hold_to_floor(low, floor, exception=" ")
    hold_to_floor(low, floor, exception="launch week")
    hold_to_floor(floor, floor, exception=None)
    hold_to_floor(low, None, exception=None)
    with pytest.raises(Invalid, match="leave out the exception"):
        hold_to_floor(floor, floor, exception="launch week")


@pytest.mark.parametrize("wrong", [{"watts": -1}, {"pue": 0.9}, {"capital": -0.1}])
def test_a_cost_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    good = {
        "watts": 1.0, "pue": 1.0, "usd_per_kwh": 0.0, "wear": 0.0, "support": 0.0, "capital": 0.0,
    }  # fmt: skip
    with pytest.raises(Invalid):
        Cost.of_usd(**(good | wrong))
    with pytest.raises(Invalid):
        COST.floor(1.5)
