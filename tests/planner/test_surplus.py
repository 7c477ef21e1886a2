"""What may be lent, and what must come back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.planner.surplus import Pressure, missing_gpus, sellable_gpus

POOL = Pressure(
    gpus=16, internal_running=4, internal_pending=0, leased=6, lendable=True, lending_limit=None
)


@st.composite
def pressures(draw: st.DrawFn) -> Pressure:
    """Any pool that was never sold twice: what runs and what is leased fits."""
    gpus = draw(st.integers(0, 64))
    running = draw(st.integers(0, gpus))
    return Pressure(
        gpus=gpus,
        internal_running=running,
        internal_pending=draw(st.integers(0, 100)),
        leased=draw(st.integers(0, gpus - running)),
        lendable=draw(st.booleans()),
        lending_limit=draw(st.none() | st.integers(0, 64)),
    )


@pytest.mark.parametrize(
    ("changes", "sellable"),
    [
        ({}, 6),
        ({"internal_pending": 4}, 2),
        ({"internal_pending": 99}, 0),
        ({"lending_limit": 8}, 2),
        ({"lending_limit": 3}, 0),
        ({"lending_limit": 99}, 6),
        ({"lendable": False}, 0),
        ({"gpus": 8}, 0),
    ],
)
def test_what_may_be_lent_now(changes: dict[str, int], sellable: int) -> None:
    assert sellable_gpus(replace(POOL, **changes)) == sellable


@pytest.mark.parametrize(
    ("changes", "leaving", "missing"),
    [
        ({}, 0, 0),
        ({"internal_pending": 6}, 0, 0),
        ({"internal_pending": 8}, 0, 2),
        ({"internal_pending": 8}, 2, 0),
        ({"internal_pending": 12}, 4, 2),
        ({"internal_pending": 8, "lendable": False}, 0, 2),
    ],
)
def test_what_must_come_back_for_the_jobs_that_wait(
    changes: dict[str, int], leaving: int, missing: int
) -> None:
    assert missing_gpus(replace(POOL, **changes), leaving=leaving) == missing


@given(pressures(), st.integers(1, 64))
def test_what_is_sold_fits_and_need_not_be_taken_back_at_once(
    pressure: Pressure, asked: int
) -> None:
    sold = min(asked, sellable_gpus(pressure))
    if sold:
        after = replace(pressure, leased=pressure.leased + sold)
        assert after.internal_running + after.leased + after.internal_pending <= after.gpus
        assert pressure.lending_limit is None or after.leased <= pressure.lending_limit
        assert missing_gpus(after, leaving=0) == 0


@given(pressures(), st.data())
def test_what_comes_back_is_enough_and_no_more(pressure: Pressure, data: st.DataObject) -> None:
    leaving = data.draw(st.integers(0, pressure.leased))
    missing = missing_gpus(pressure, leaving=leaving)
    stays = pressure.leased - leaving - missing
    room = pressure.gpus - pressure.internal_running - max(stays, 0)
    assert room >= min(pressure.internal_pending, pressure.gpus - pressure.internal_running)
    if missing:
        assert room - 1 < pressure.internal_pending, "one more than needed was taken"


@given(pressures())
def test_more_internal_demand_never_sells_more(pressure: Pressure) -> None:
    more = replace(pressure, internal_pending=pressure.internal_pending + 1)
    assert sellable_gpus(more) <= sellable_gpus(pressure)
    assert missing_gpus(more, leaving=0) >= missing_gpus(pressure, leaving=0)
