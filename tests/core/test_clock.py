"""Our clock goes on while somebody sets the machine's."""

import logging
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.clock import SystemClock, boot_id, steady_seconds

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Machine:
    def __init__(self) -> None:
        self.wall = NOON
        self.steady = 1000.0

    def run(self, seconds: float, *, drift: float = 0.0) -> None:
        self.wall += timedelta(seconds=seconds + drift)
        self.steady += seconds

    def clock(self) -> SystemClock:
        return SystemClock(wall=lambda: self.wall, steady=lambda: self.steady)


@pytest.mark.parametrize("hours", [3, -3, 24 * 365])
def test_a_clock_that_is_set_by_hours_moves_ours_by_nothing(
    hours: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "sublet")
    machine = Machine()
    clock = machine.clock()
    machine.run(5)
    machine.wall += timedelta(hours=hours)
    for _ in range(3):
        machine.run(60)
        clock.now()
    assert clock.now() == NOON + 185 * SECOND
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert (said.message, said.seconds) == ("clock.stepped", hours * 3600)  # type: ignore[attr-defined]
    # A process that starts now believes the machine; and once it is set right, so do we.
    assert machine.clock().now() == machine.wall
    machine.wall -= timedelta(hours=hours)
    assert clock.now() == machine.wall


def test_small_corrections_are_followed_however_many() -> None:
    machine = Machine()
    clock = machine.clock()
    for _ in range(1000):
        machine.run(10, drift=0.5)
        assert clock.now() == machine.wall


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e7, 1e7)), max_size=50))
def test_it_never_goes_back_and_never_hurries(steps: list[tuple[float, float]]) -> None:
    machine = Machine()
    clock = machine.clock()
    seen = [(clock.now(), machine.steady)]
    for seconds, set_by in steps:
        machine.run(seconds, drift=set_by)
        seen.append((clock.now(), machine.steady))
    for (before, at), (after, later) in pairwise(seen):
        assert before <= after
        assert (after - before).total_seconds() <= later - at + 1.001


def test_what_nobody_can_set_goes_on_and_has_a_name() -> None:
    assert 0 < steady_seconds() <= steady_seconds()
    assert boot_id() == boot_id()
