"""Boosted trees: quantiles that hold, of what no straight line can say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublet.planner.curve import Floats
from sublet.planner.regression import fit_quantile
from sublet.planner.trees import fit_forest

SHARES = (0.5, 0.9)


def crossed(seed: int, rows: int = 900) -> tuple[Floats, Floats]:
    """Columns, and values that spread widely where exactly one of two columns is high."""
    dice = np.random.default_rng(seed)
    columns = dice.normal(size=(rows, 6))
    wide = (columns[:, 0] > 0) != (columns[:, 1] > 0)
    return columns, np.abs(dice.normal(size=rows)) * np.where(wide, 5.0, 0.5)


def lost(values: Floats, forecast: Floats) -> float:
    missed = values - forecast
    return float(np.maximum(0.9 * missed, -0.1 * missed).mean())


@settings(max_examples=2, deadline=None)
@given(st.integers(0, 10**6))
def test_the_asked_shares_of_what_comes_lie_below(seed: int) -> None:
    columns, values = crossed(seed)
    forest = fit_forest(columns[:600], values[:600], SHARES)
    below = np.mean(values[600:, None] <= forest.predict(columns[600:]), axis=0)
    assert below == pytest.approx(SHARES, abs=0.09)


def test_trees_say_what_no_straight_line_can() -> None:
    columns, values = crossed(1)
    lines = np.concatenate([np.ones((len(columns), 1)), columns], axis=1)
    line = lines @ fit_quantile(lines[:600], values[:600], 0.9, ridge=1e-3)
    high = fit_forest(columns[:600], values[:600], SHARES).predict(columns)[:, 1]
    assert lost(values[600:], high[600:]) < 0.7 * lost(values[600:], line[600:])


@pytest.mark.parametrize("rows", [1, 2, 24])
def test_a_few_rows_and_columns_that_say_nothing_do_no_harm(rows: int) -> None:
    forecast = fit_forest(np.zeros((rows, 3)), np.arange(float(rows)), SHARES).predict(
        np.ones((5, 3))
    )
    assert (forecast >= 0).all() and (forecast <= rows).all()
    assert (forecast[:, 0] <= forecast[:, 1]).all()


def test_the_same_past_gives_the_same_forecast() -> None:
    columns, values = crossed(2, rows=100)
    first, second = (fit_forest(columns, values, SHARES).predict(columns) for _ in range(2))
    assert first.tolist() == second.tolist()
