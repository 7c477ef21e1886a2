"""Rates of return and payback, beside two independent libraries and published figures."""

from datetime import date, timedelta
from math import isclose

import numpy_financial
import pytest
import pyxirr
from hypothesis import assume, given
from hypothesis import strategies as st

from sublet.core.errors import Invalid
from sublet.finance.worth import irr, npv, payback, xirr

FLOWS = st.lists(st.floats(-1e6, 1e6).map(lambda v: round(v, 2)), min_size=2, max_size=24)


def h100(price: float, sold: float) -> list[float]:
    """Return the yearly flows of a GPU of 50,000 USD, as docs/operate/returns.md has them."""
    revenue = price * sold * 8_760
    power = 1.4 * 1.3 * 0.08 * 8_760
    year = revenue - power - 0.1 * revenue - 1_500
    return [-50_000, year, year, year, year, year + 7_500]


@pytest.mark.parametrize(
    ("price", "sold", "expected"),
    [
        (1.70, 0.80, -0.017), (2.35, 0.80, 0.102), (2.99, 0.80, 0.210),
        (1.70, 0.95, 0.043), (2.35, 0.95, 0.177), (2.99, 0.95, 0.298),
        (1.70, 0.50, -0.151), (2.35, 0.50, -0.063), (2.99, 0.50, 0.015),
    ],
)  # fmt: skip
def test_the_golden_cases_of_a_gpu(price: float, sold: float, expected: float) -> None:
    found = irr(h100(price, sold))
    assert found is not None
    assert round(found, 3) == expected
    assert isclose(found, numpy_financial.irr(h100(price, sold)), abs_tol=1e-9)


def test_the_golden_payback_of_a_gpu() -> None:
    paid, year, *_ = h100(2.35, 0.80)
    years = payback([paid, *[year] * 5])  # by what it earns: what is left of it is not sold yet
    assert years is not None
    assert round(years, 1) == 4.2


@given(FLOWS, st.floats(-0.5, 2))
def test_present_value_is_that_of_two_libraries(flows: list[float], rate: float) -> None:
    ours = npv(rate, flows)
    scale = max(1.0, sum(abs(f) for f in flows) / min(1.0, (1 + rate) ** len(flows)))
    assert isclose(ours, numpy_financial.npv(rate, flows), abs_tol=1e-9 * scale)
    assert isclose(ours, pyxirr.npv(rate, flows), abs_tol=1e-9 * scale)


@given(st.floats(1, 1e9), st.lists(st.floats(0.01, 1e9), min_size=1, max_size=40))
def test_the_rate_of_an_investment_is_that_of_two_libraries(paid: float, back: list[float]) -> None:
    ours = irr([-paid, *back])
    theirs = pyxirr.irr([-paid, *back])
    assume(theirs is not None and -0.99 < theirs < 1e3)
    assert ours is not None
    assert isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-6)


@given(
    st.floats(1, 1e7),
    st.lists(st.tuples(st.integers(1, 4_000), st.floats(1, 1e7)), min_size=1, max_size=20),
)
def test_the_rate_of_dated_flows_is_that_of_a_library(
    paid: float, back: list[tuple[int, float]]
) -> None:
    first = date(2026, 1, 1)
    flows = [(first, -paid), *((first + timedelta(days=d), usd) for d, usd in back)]
    theirs = pyxirr.xirr(flows)
    assume(theirs is not None and -0.9 < theirs < 100)
    ours = xirr(flows)
    assert ours is not None
    assert isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-6)


@given(FLOWS)
def test_at_the_rate_found_the_flows_are_worth_nothing(flows: list[float]) -> None:
    rate = irr(flows)
    if rate is not None:
        scale = sum(abs(f) * (1 + rate) ** -n for n, f in enumerate(flows))
        assert abs(npv(rate, flows)) <= 1e-6 * max(scale, 1)


def test_what_never_comes_back_has_no_rate_and_no_payback() -> None:
    assert irr([-1.0, -1.0]) is None
    assert irr([1.0, 2.0]) is None
    assert irr([]) is None
    assert xirr([]) is None
    assert payback([-10.0, 3.0, 3.0]) is None
    assert payback([-10.0, 20.0, -15.0]) is None, "it was repaid, and then not any more"
    assert payback([5.0, 1.0]) == 0
    with pytest.raises(Invalid, match="above -1"):
        npv(-1.0, [1.0])
