from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.errors import Invalid
from sublet.core.money import MAX_NANOS, NANOS, Money, Rate, parse_amount

RATES = st.builds(
    lambda nanos, per: Rate(nanos=nanos, per=per), st.integers(0, 10**15), st.integers(1, 10**9)
)
QUANTITIES = st.integers(0, 10**12)


def test_a_gpu_hour_costs_what_the_price_says() -> None:
    assert Rate(nanos=2_500_000_000, per=3_600).charge(3_600) == Money(2_500_000_000)
    assert Rate(nanos=150, per=1_000).charge(10**6) == Money(150_000)


@pytest.mark.parametrize(("quantity", "nanos"), [(1, 0), (3, 2), (5, 2), (7, 4), (2, 1), (0, 0)])
def test_half_a_nano_goes_to_the_even_side(quantity: int, nanos: int) -> None:
    assert Rate(nanos=1, per=2).charge(quantity) == Money(nanos)


@given(RATES, st.lists(QUANTITIES, max_size=20))
def test_rating_lines_apart_differs_by_at_most_half_a_nano_each(
    rate: Rate, quantities: list[int]
) -> None:
    apart = sum(rate.charge(quantity).nanos for quantity in quantities)
    exact = Fraction(rate.nanos * sum(quantities), rate.per)
    assert 2 * abs(apart - exact) <= len(quantities)


@given(RATES, QUANTITIES, QUANTITIES)
def test_what_is_held_covers_what_is_charged_and_little_more(
    rate: Rate, most: int, used: int
) -> None:
    held = rate.charge_most(most).nanos
    assert rate.charge(min(used, most)).nanos <= held
    assert held - rate.charge(most).nanos <= 1


@given(RATES, QUANTITIES, QUANTITIES)
def test_using_more_never_costs_less(rate: Rate, one: int, other: int) -> None:
    less, more = sorted((one, other))
    assert rate.charge(less).nanos <= rate.charge(more).nanos


@given(st.integers(1, MAX_NANOS - 1))
def test_an_amount_is_read_as_it_is_written(nanos: int) -> None:
    text, currency = str(Money(nanos)).split()
    assert parse_amount(text, currency=currency) == Money(nanos)


@given(st.integers(-(10**30), 10**30))
def test_a_debt_is_written_as_its_amount_with_a_sign(nanos: int) -> None:
    assert str(-Money(abs(nanos) + 1)) == f"-{Money(abs(nanos) + 1)}"
    assert "e" not in str(Money(nanos)).lower()


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("10", 10 * NANOS),
        ("2.50", 2_500_000_000),
        ("0.000000001", 1),
        ("1.0000000000000", NANOS),
    ],
)
def test_amounts_people_write(text: str, nanos: int) -> None:
    assert parse_amount(text) == Money(nanos)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", " 10", "10\n", "1e3", "+1", "ten", "0", "-0", "-1", "0.0", "nan", "NaN", "-nan", "sNaN", "inf", "-Infinity",
        "1e400", "1e19", "9" * 5000, "1e999999999999999999999", "0.0000000001", "1e-10",
        "1e-400", "1e-999999999", "1e-99999999999999999999", "0." + "1" * 5000, "1,50", "1_000",
        "\uff11\uff10", "٣", "0x10", "1/2", "1\x00", "\ud800", "10 USD", "$10", "--1", "1e", ".",
    ],
)  # fmt: skip
def test_what_is_no_amount_is_refused_at_once(text: str) -> None:
    with pytest.raises(Invalid, match="amount"):
        parse_amount(text)


@given(st.text(max_size=30) | st.decimals().map(str) | st.floats().map(str))
def test_whatever_is_written_is_an_amount_or_refused(text: str) -> None:
    try:
        amount = parse_amount(text)
    except Invalid:
        return
    assert 0 < amount.nanos <= 10 * MAX_NANOS


def test_two_currencies_are_not_added() -> None:
    with pytest.raises(AssertionError):
        Money(1) + Money(1, "EUR")


def test_amounts_of_one_currency_are_added_and_turned_round_in_it() -> None:
    assert Money(5, "EUR") + Money(7, "EUR") == Money(12, "EUR")
    assert -Money(5, "EUR") == Money(-5, "EUR")


def test_a_price_charges_in_its_own_currency() -> None:
    rate = Rate(nanos=3, per=2, currency="EUR")
    assert (rate.charge(1), rate.charge_most(1)) == (Money(2, "EUR"), Money(2, "EUR"))
    assert parse_amount("1", currency="EUR") == Money(NANOS, "EUR")


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 10**4))
def test_every_charge_is_the_exact_price_rounded_half_to_even(
    nanos: int, per: int, quantity: int
) -> None:
    """With few units to a price, so that exactly half a nano comes often."""
    charged = Rate(nanos=nanos, per=per).charge(quantity)
    assert charged == Money(round(Fraction(nanos * quantity, per)))
    half = Rate(nanos=nanos, per=2 * per).charge(per * (2 * quantity + 1))
    assert half == Money(round(Fraction(nanos * (2 * quantity + 1), 2)))


def test_nothing_has_no_sign() -> None:
    assert str(Money(0)) == str(-Money(0)) == "0.00 USD"
