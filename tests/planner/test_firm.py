"""What of a plan may still be promised."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.planner.firm import (
    Promised,
    Room,
    firm_room,
    most_promised,
    read_firm,
    window_room,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def plan(*reasons: tuple[str, list[str]], known_hours: float = 500) -> dict[str, Any]:
    return {
        "known_hours": known_hours,
        "firm": {"1h": 12, "4h": 8, "24h": 3},
        "reasons": [{"reason": name, "windows": windows, "why": ""} for name, windows in reasons],
    }


def room(
    window: timedelta, *, promised: int = 0, after: timedelta = HOUR / 12, **more: Any
) -> Room:
    firm = read_firm(NOON, more.get("document", plan()))
    return firm_room(firm, window=window, gpus=16, promised=promised, now=NOON + after)


@pytest.mark.parametrize(
    ("window", "gpus"),
    [(HOUR / 60, 12), (HOUR, 12), (HOUR * 1.01, 8), (4 * HOUR, 8), (5 * HOUR, 3), (24 * HOUR, 3)],
)
def test_a_promise_is_held_by_the_next_longer_window(window: timedelta, gpus: int) -> None:
    assert room(window).gpus == gpus


def test_what_is_promised_already_is_taken_off_and_never_below_nothing() -> None:
    assert room(HOUR, promised=5) == Room(
        gpus=7, why="the plan holds 12 GPUs for 1 h, 5 promised already"
    )
    assert room(HOUR, promised=13).gpus == 0


def test_nothing_is_promised_for_longer_than_is_planned() -> None:
    found = room(25 * HOUR)
    assert found == Room(gpus=0, why="nothing is promised for longer than 24 hours")


@pytest.mark.parametrize("reason", ["no_history", "not_learnt", "cold_start"])
def test_while_little_is_known_all_but_a_tenth_may_be_promised(reason: str) -> None:
    found = room(HOUR, promised=2, document=plan((reason, [])))
    assert found.gpus == 16 - 1 - 2
    assert "a tenth of it is kept, 2 promised already" in found.why
    assert firm_room(None, window=HOUR, gpus=4, promised=0, now=NOON).gpus == 4


def test_a_length_of_which_enough_is_known_goes_by_the_plan() -> None:
    known = plan(("cold_start", ["24h"]), ("unproven", ["4h"]), ("demand_waits", []))
    assert room(24 * HOUR, document=known).gpus == 15
    assert room(4 * HOUR, document=known) == Room(
        gpus=8, why="the plan holds 8 GPUs for 4 h (unproven) (demand_waits)"
    )
    assert room(HOUR, document=known).why == "the plan holds 12 GPUs for 1 h (demand_waits)"


def test_what_could_not_be_proven_yet_is_not_held_against_a_young_pool() -> None:
    """Else an idle machine would sell nothing firm from its third day to its eighth."""
    for known_hours, gpus in ((60, 15), (191.9, 15), (192, 12)):
        young = plan(("unproven", ["1h"]), known_hours=known_hours)
        assert room(HOUR, document=young).gpus == gpus


def test_nothing_is_promised_by_a_plan_that_is_too_old() -> None:
    assert room(HOUR, after=HOUR / 4).gpus == 12
    old = room(HOUR, after=HOUR / 4 + timedelta(seconds=1))
    assert old == Room(gpus=0, why="the last plan is of 2026-01-01 12:00 UTC; a new one is due")


LATER = {
    "1h": [12, 12, 10, 9] + [6] * 164,
    "4h": [8, 8, 7] + [5] * 165,
    "24h": [3, 3, 4] + [2] * 165,
}


def window(start: float, hours: float, *promises: tuple[int, float, float], **more: Any) -> Room:
    firm = read_firm(NOON, {**plan(), "later": LATER, **more})
    return window_room(
        firm,
        start=NOON + start * HOUR,
        end=NOON + (start + hours) * HOUR,
        gpus=16,
        promises=[
            Promised(gpus=gpus, start=NOON + begin * HOUR, end=NOON + end * HOUR)
            for gpus, begin, end in promises
        ],
        now=NOON + HOUR / 12,
    )


@pytest.mark.parametrize(
    ("start", "hours", "gpus"),
    [
        (0.2, 1, 12),
        (1.5, 1, 10),  # between two hours, what both hold
        (2, 4, 5),
        (2, 5, 2),
        (9, 24, 2),
        (9, 30, 2),  # a day, and six hours of another
        (150, 100, 0),  # further than was planned
    ],
)
def test_a_window_is_held_by_what_is_planned_for_its_start(
    start: float, hours: float, gpus: int
) -> None:
    assert window(start, hours).gpus == gpus


def test_what_is_promised_within_a_window_is_taken_off_where_it_is_most() -> None:
    assert window(3, 1, (2, 0, 3), (4, 4, 9)).gpus == 6, "half-open"
    assert window(3, 1, (2, 0, 3.5), (3, 3.5, 9)).gpus == 3
    assert window(3, 1, (2, 0, 3.6), (3, 3.5, 9)).gpus == 1
    assert window(3, 1, (20, 0, 9)).gpus == 0


def test_of_a_pool_of_which_little_is_known_only_the_next_day_is_promised() -> None:
    cold = {"reasons": [{"reason": "cold_start", "windows": [], "why": ""}]}
    assert window(1, 4, (3, 0, 2), **cold).gpus == 16 - 1 - 3
    assert window(21, 4, **cold).gpus == 0
    assert "beyond the next day" in window(21, 4, **cold).why


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20), st.integers(1, 9)), max_size=8),
    st.integers(0, 20),
    st.integers(1, 9),
)
def test_the_most_that_is_promised_is_that_of_the_fullest_instant(
    given_: list[tuple[int, int, int]], start: int, length: int
) -> None:
    promises = [
        Promised(gpus=gpus, start=NOON + begin * HOUR, end=NOON + (begin + hours) * HOUR)
        for gpus, begin, hours in given_
    ]
    fullest = max(
        sum(gpus for gpus, begin, hours in given_ if begin <= hour < begin + hours)
        for hour in range(start, start + length)
    )
    assert most_promised(promises, NOON + start * HOUR, NOON + (start + length) * HOUR) == fullest
