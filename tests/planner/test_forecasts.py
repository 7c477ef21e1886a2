"""The pieces of a forecast: moving extremes, quantile regression, calibrated depths, the band."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.pools import pool, wandering

from sublet.planner.band import BAND, band_scores
from sublet.planner.calibration import DEPTHS, Ladder
from sublet.planner.opinions import opinions
from sublet.planner.outlook import Outlook, hourly, outlooks
from sublet.planner.regression import fit_quantile
from sublet.planner.signals import average, held, lowest, lowest_ahead

VALUES = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@given(VALUES, st.integers(1, 50))
def test_moving_extremes_are_what_they_say(numbers: list[int], width: int) -> None:
    values = np.array(numbers, dtype=np.float64)
    behind = [min(numbers[max(at + 1 - width, 0) : at + 1]) for at in range(len(numbers))]
    assert lowest(values, width).tolist() == behind
    mean = [np.mean(numbers[max(at + 1 - width, 0) : at + 1]) for at in range(len(numbers))]
    assert average(values, width) == pytest.approx(mean)
    ahead = lowest_ahead(values, width)
    whole = max(len(numbers) - width + 1, 0)
    assert ahead[:whole].tolist() == [min(numbers[at : at + width]) for at in range(whole)]
    assert np.isnan(ahead[whole:]).all() and len(ahead) == len(numbers) + 1


def test_a_window_is_known_when_half_of_it_is() -> None:
    values = np.array([3, np.nan, np.nan, 5, np.nan, np.nan, np.nan])
    assert lowest_ahead(values, 4)[:4] == pytest.approx([3, np.nan, np.nan, np.nan], nan_ok=True)
    assert held(values).tolist() == [3, 3, 3, 5, 5, 5, 5]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.9]))
def test_the_asked_share_lies_below_a_fitted_quantile(seed: int, share: float) -> None:
    dice = np.random.default_rng(seed)
    signal = dice.normal(size=600)
    columns = np.stack([np.ones(600), signal], axis=1)
    values = 2 * signal + dice.normal(size=600) * np.exp(signal / 2)
    weights = fit_quantile(columns, values, share, ridge=1e-6)
    assert np.mean(values <= columns @ weights) == pytest.approx(share, abs=0.02)


def test_hours_start_on_the_hour_and_end_now() -> None:
    curve = wandering(0, days=2, step_seconds=600)
    slots = hourly(curve)
    assert slots[0] == 6 and slots[-1] == len(curve)


def lost(forecast: Outlook) -> float:
    """The mean pinball loss of the middle and the high end, from the third week on."""
    fall = (forecast.idle - forecast.kept) / forecast.total
    ends = np.stack([forecast.middle, forecast.middle + forecast.spread], axis=1)
    missed = (fall[:, None] - ends)[14 * 24 : -forecast.hours]
    shares = np.array([0.5, 0.9])
    return float(np.maximum(shares * missed, (shares - 1) * missed).sum(axis=1).mean())


def test_the_second_opinion_loses_less_where_signals_say_little() -> None:
    dice = np.random.default_rng(5)
    walk = pool(np.round(np.clip(500 + np.cumsum(dice.normal(0, 2, 60 * 24)), 0, 1_000)), 1_000)
    for curve in (walk, wandering(3, days=60)):
        first, second, _ = opinions(curve, (4, 24))
        assert lost(second[4]) < lost(first[4])
        assert lost(second[24]) < 1.02 * lost(first[24])


def test_the_third_opinion_sees_what_depends_on_two_signals() -> None:
    """Jobs that come in the evening where the pool is at least half idle, and only there."""
    hours = np.arange(60 * 24)
    night = np.random.default_rng(7).random(60) < 0.5
    base = np.where(np.repeat(night, 24), 30.0, 70.0)
    evening = (hours % 24 >= 18) & (base < 50)
    running = (base + 50 * evening).astype(np.float64)
    first, _, third = opinions(pool(running, 100), (4,))
    assert lost(third[4]) < 0.8 * lost(first[4])


def test_a_deeper_promise_never_sells_more() -> None:
    forecasts = outlooks(wandering(2, days=30), (1, 4))
    for forecast in forecasts.values():
        assert (np.diff(forecast.sellable(DEPTHS), axis=1) <= 0).all()


def test_nothing_is_sold_where_nothing_has_kept() -> None:
    running = np.tile([0.0, 0, 100, 100], 24 * 30 // 4)  # never idle for four hours
    forecast = outlooks(pool(running, 100), (4,))[4]
    rows = np.arange(len(forecast.slots))
    assert Ladder(forecast).choose(rows, confidence=0.99).gpus.sum() == 0


def test_an_outage_is_not_sold_as_if_it_were_idle() -> None:
    curve = wandering(9)
    running = curve.running.copy()
    running[-30:] = 0  # the jobs are gone, and will be back
    for hours, forecast in outlooks(replace(curve, running=running), (4, 24)).items():
        before = forecast.kept[: -30 - hours]
        at = len(forecast.slots) - 30  # the first hour that sees it
        assert forecast.idle[at] == 200
        assert forecast.sellable(DEPTHS)[at].max() <= np.nanmax(before)


def test_the_band_covers_what_it_says() -> None:
    curve = wandering(8, days=90)
    forecast = outlooks(curve, (4,))[4]
    rows = np.arange(30 * 24, len(forecast.slots) - 5, 2)
    scores = band_scores(forecast, rows)
    for share in BAND:
        assert scores[share].coverage == pytest.approx(share, abs=0.05)
    assert all(score.pinball_gpus > 0 for score in scores.values())
