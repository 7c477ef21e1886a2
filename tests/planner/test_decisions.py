"""Decisions see only the past, promise what they keep, and are careful where they know little."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.pools import pool, wandering

from sublet.planner.curve import Curve, Floats
from sublet.planner.policies import POLICIES, Decisions, Task
from sublet.planner.portfolio import DEFAULT_PRICES
from sublet.planner.windows import LENGTHS, span, windows

# Weeks of history, decided hour by hour: not for every look away from the screen.
pytestmark = pytest.mark.real

DAY = 24
LEARNING = 8 * DAY
QUICK = sorted(name for name in POLICIES if not name.startswith("lightgbm"))


def decide(name: str, curve: Curve, *, train_until: int = LEARNING) -> tuple[Task, Decisions]:
    scored = span(curve, curve.start + LEARNING * 3_600, curve.end)
    task = Task(
        curve=curve,
        grids={hours: windows(curve, hours, scored) for hours in LENGTHS},
        confidence=0.99,
        prices=DEFAULT_PRICES,
        train_until=train_until,
    )
    return task, POLICIES[name](task)


def until(task: Task, sold: Mapping[int, Floats], slot: int) -> dict[int, list[float]]:
    return {hours: sold[hours][grid.slots <= slot].tolist() for hours, grid in task.grids.items()}


def check_that_the_future_changes_nothing(name: str, seed: int, at: int) -> None:
    curve = wandering(seed, days=14)
    dice = np.random.default_rng(seed + 1)
    running, total = curve.running.copy(), curve.total.copy()
    running[at:] = dice.integers(0, 400, len(curve) - at)
    total[at:] = dice.integers(100, 500, len(curve) - at)
    other = replace(curve, running=running, total=total)
    task, told = decide(name, curve)
    _, retold = decide(name, other)
    assert until(task, told.promises, at) == until(task, retold.promises, at)
    assert until(task, told.portfolio, at) == until(task, retold.portfolio, at)


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 10**6), st.integers(LEARNING, 14 * DAY - 1))
@pytest.mark.parametrize("name", QUICK)
def test_the_future_changes_no_decision(name: str, seed: int, at: int) -> None:
    check_that_the_future_changes_nothing(name, seed, at)


def test_the_future_changes_no_decision_of_the_boosted_trees() -> None:
    check_that_the_future_changes_nothing("lightgbm", 3, 11 * DAY + 7)


def test_decisions_do_follow_the_past() -> None:
    """Or else the tests above could not fail."""
    curve = wandering(1, days=14)
    running = curve.running.copy()
    running[: 11 * DAY] = np.minimum(running[: 11 * DAY] + 40, 200)
    for name in sorted(set(QUICK) - {"none", "interruptible"}):
        task, told = decide(name, curve)
        _, retold = decide(name, replace(curve, running=running))
        at = 11 * DAY - 1
        assert until(task, told.promises, at) != until(task, retold.promises, at), name


@pytest.mark.parametrize("seed", range(2))
def test_a_steady_pool_is_sold_and_its_promises_are_kept(seed: int) -> None:
    task, told = decide("default", wandering(seed, days=40))
    for hours, most_broken in ((1, 0.015), (4, 0.02)):
        sold, kept = told.promises[hours], task.grids[hours].kept
        assert np.maximum(sold - kept, 0).sum() <= most_broken * sold.sum()
    assert np.minimum(told.promises[1], task.grids[1].kept).sum() > 0.6 * task.grids[1].kept.sum()


def test_no_more_is_sold_than_is_idle_and_only_whole_gpus() -> None:
    curve = wandering(4, days=30)
    task, told = decide("default", curve)
    for hours, grid in task.grids.items():
        for sold in (told.promises[hours], told.portfolio[hours]):
            assert (sold <= curve.idle[grid.slots - 1]).all()
            assert (sold >= 0).all() and (sold == np.floor(sold)).all()


def test_a_pool_that_is_taken_every_day_promises_no_day() -> None:
    running = np.full(40 * DAY, 20.0)
    running[15::DAY] = 100  # at three in the afternoon, all of it
    task, told = decide("default", pool(running, 100))
    assert told.promises[24].sum() == 0
    assert told.promises[1].sum() > 0.5 * task.grids[1].kept.sum()


def test_a_new_pool_promises_nothing_in_its_first_day() -> None:
    curve = wandering(5, days=12)
    scored = span(curve, curve.start, curve.end)
    grids = {hours: windows(curve, hours, scored) for hours in LENGTHS}
    task = Task(curve=curve, grids=grids, confidence=0.99, prices=DEFAULT_PRICES, train_until=0)
    told = POLICIES["default"](task)
    for hours, grid in grids.items():
        assert told.promises[hours][grid.slots <= DAY].sum() == 0
        assert told.portfolio[hours][grid.slots <= DAY].sum() == 0


@pytest.mark.parametrize("gpus", [1, 8, 100_000])
def test_pools_of_any_size_with_gaps_and_changing_capacity(gpus: int) -> None:
    curve = wandering(6, days=30, gpus=gpus, step_seconds=600)
    running, total = curve.running.copy(), curve.total.copy()
    total[2_000:] *= 2
    for values in (running, total):
        values[500:560] = np.nan
        values[3_000] = np.nan
        values[:5] = np.nan
    odd = replace(curve, running=running, total=total)
    scored = span(odd, odd.start + 7 * 86_400, odd.end)
    grids = {hours: windows(odd, hours, scored) for hours in LENGTHS}
    task = Task(curve=odd, grids=grids, confidence=0.99, prices=DEFAULT_PRICES, train_until=1_008)
    for name in QUICK:
        told = POLICIES[name](task)
        for hours, grid in grids.items():
            assert np.isfinite(told.promises[hours]).all() and len(told.promises[hours]) == len(
                grid.slots
            )
            assert (told.promises[hours] >= 0).all(), name


def test_a_bolder_operator_sells_no_less() -> None:
    curve = wandering(7, days=30)
    scored = span(curve, curve.start + LEARNING * 3_600, curve.end)
    grids = {hours: windows(curve, hours, scored) for hours in LENGTHS}
    task = Task(
        curve=curve, grids=grids, confidence=0.99, prices=DEFAULT_PRICES, train_until=LEARNING
    )
    careful, bold = (
        POLICIES["default"](replace(task, confidence=confidence)).promises
        for confidence in (0.99, 0.90)
    )
    assert all((bold[hours] >= careful[hours]).all() for hours in LENGTHS)
    assert bold[1].sum() > careful[1].sum()
