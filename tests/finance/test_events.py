"""The event study finds a jump that was put in, and none where there is none."""

from datetime import date, timedelta
from math import exp
from random import Random

import numpy as np
import pytest

from sublet.core.errors import Invalid
from sublet.finance.events import Found, Window, study, together

FIRST = date(2026, 1, 1)
Series = list[tuple[date, float]]


def made(
    seed: int, *, jump: float = 0.0, at: int = 200, beta: float = 1.4
) -> tuple[Series, Series]:
    """Return a series and its market; the series jumps by `jump` on day `at`."""
    dice = Random(seed)
    own, market = 0.0, 0.0
    series, others = [], []
    for number in range(300):
        move = dice.gauss(0.0003, 0.01)
        market += move
        own += 0.0002 + beta * move + dice.gauss(0, 0.008) + (jump if number == at else 0.0)
        day = FIRST + timedelta(days=number)
        series.append((day, 50 * exp(own)))
        others.append((day, 1000 * exp(market)))
    return series, others


def one(seed: int, *, jump: float, market: bool = True) -> Found:
    series, others = made(seed, jump=jump)
    (found,) = study(series, [FIRST + timedelta(days=200)], market=others if market else None)
    return found


def test_a_jump_is_found_with_its_size() -> None:
    found = one(1, jump=0.12)
    assert found.low < 0.12 < found.high
    assert found.p_value < 0.001
    assert found.beta == pytest.approx(1.4, abs=0.22)  # three standard errors
    assert len(found.abnormal) == 3
    assert found.abnormal[1] == pytest.approx(0.12, abs=0.03)
    assert one(1, jump=0.12, market=False).beta is None


def test_intervals_hold_as_often_as_they_say() -> None:
    inside = sum(f.low < 0.05 < f.high for f in (one(seed, jump=0.05) for seed in range(200)))
    assert 180 <= inside <= 199, "95 of 100, give or take"
    found = sum(one(seed, jump=0.0).p_value < 0.05 for seed in range(200))
    assert found <= 20, "5 of 100, give or take"


def test_without_noise_the_answer_is_exact() -> None:
    """Returns: 0.001 + 2 x the market's on every day, and 0.03 more on one."""
    market, own = [0.0], [0.0]
    for number in range(1, 80):
        move = 0.01 * (-1) ** number * (1 + number % 3)
        market.append(market[-1] + move)
        own.append(own[-1] + 0.001 + 2 * move + (0.03 if number == 60 else 0.0))
    days = [FIRST + timedelta(days=n) for n in range(80)]
    (found,) = study(
        list(zip(days, np.exp(own), strict=True)), [days[60]],
        market=list(zip(days, np.exp(market), strict=True)), window=Window(estimate_days=40),
    )  # fmt: skip
    assert found.beta == pytest.approx(2)
    assert found.car == pytest.approx(0.03)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_an_event_on_a_day_without_a_price_is_the_next_one_s() -> None:
    series, _ = made(2)
    holes = [row for row in series if row[0] != FIRST + timedelta(days=200)]
    (found,) = study(holes, [FIRST + timedelta(days=200)])
    assert found.day == FIRST + timedelta(days=201)


def test_several_events_are_more_certain_than_one() -> None:
    series, others = made(3)
    days = [FIRST + timedelta(days=n) for n in (150, 200, 250)]
    found = study(series, days, market=others)
    mean = together(found)
    assert mean is not None
    assert mean.car == pytest.approx(sum(f.car for f in found) / 3)
    assert mean.high - mean.low < min(f.high - f.low for f in found)
    assert together([]) is None


def test_what_cannot_be_studied_says_why() -> None:
    series, others = made(4)
    for events, prices, market, why in (
        ([FIRST + timedelta(days=5)], series, None, "are the least to learn from"),
        ([FIRST + timedelta(days=299)], series, None, "ends 1 days too early"),
        ([FIRST + timedelta(days=400)], series, None, "ends before it"),
        ([FIRST], [series[1], series[0]], None, "must rise"),
        ([FIRST], [(FIRST, 0.0)], None, "more than nothing"),
        ([FIRST + timedelta(days=200)], series, others[:1], "no days in common"),
        ([FIRST + timedelta(days=200)], series, [(day, 1.0) for day, _ in others], "did not move"),
    ):  # fmt: skip
        with pytest.raises(Invalid, match=why):
            study(prices, events, market=market)
    with pytest.raises(Invalid, match="ends after it starts"):
        Window(first=2, last=1)
    with pytest.raises(Invalid, match="confidence"):
        study(series, [], confidence=1.0)
