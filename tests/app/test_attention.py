"""Of leases that run and are left alone, exactly those are looked after that something is due of."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from tests.leases.make import NOON, SECOND, lease_in

from sublet.app.attention import Attention
from sublet.core.clock import ManualClock
from sublet.core.errors import Unavailable
from sublet.engine.port import Observation, Phase
from sublet.engine.simulated import SimulatedEngine
from sublet.leases.advancing import runs_out
from sublet.leases.lease import EndReason, Lease, LeaseId, State, decide

STARTED = NOON + 2 * SECOND  # as `lease_in` does


class Told(SimulatedEngine):
    """Shows what it is told to."""

    def __init__(self) -> None:
        super().__init__([], ManualClock(NOON))
        self.shows = Observation(phase=Phase.RUNNING, started_at=STARTED)
        self.silent = False

    def observe(self, workload: UUID) -> Observation:
        del workload
        if self.silent:
            raise Unavailable("the cluster does not answer")
        return self.shows


def needing(attention: Attention, lease: Lease, now: datetime) -> tuple[bool, bool]:
    found, odd = attention.look([lease], now=now)
    assert found in ([], [lease])
    return bool(found), odd


@pytest.mark.parametrize("minutes", [1, 2, 60])
@pytest.mark.parametrize("sold", [45, 61, 3600])
def test_a_lease_is_left_alone_only_while_nothing_is_due_of_it(minutes: int, sold: int) -> None:
    engine = Told()
    attention = Attention(engine)
    lease = lease_in(State.RUNNING, max_duration=sold * SECOND)
    assert lease.ends_at is not None
    paid = min(STARTED + minutes * 60 * SECOND, lease.ends_at)
    lease = replace(lease, paid_until=paid)
    assert needing(attention, lease, STARTED) == (True, False), "never looked after"
    attention.rest(lease, seen_until=STARTED)
    due = None
    for second in range(200):
        now = STARTED + second * SECOND
        wants = (
            runs_out(lease, now)
            or decide(lease, engine.shows, now) is not None
            or now >= STARTED + timedelta(minutes=1)  # a minute is to be charged
        )
        needs, odd = needing(attention, lease, now)
        assert needs or not wants, second
        assert not odd
        due = now if needs and due is None else due
        if due is None:
            assert not wants
    assert due is not None and due >= min(STARTED + 40 * SECOND, lease.ends_at)


@pytest.mark.parametrize(
    "change",
    [
        lambda engine: setattr(engine, "silent", True),
        lambda engine: setattr(engine, "shows", Observation(phase=Phase.EXITED)),
        lambda engine: setattr(engine, "shows", Observation(phase=Phase.LOST)),
        lambda engine: setattr(engine, "shows", Observation(phase=Phase.ABSENT)),
        lambda engine: setattr(
            engine, "shows", Observation(phase=Phase.RUNNING, reclaimed_at=STARTED)
        ),
    ],
)
def test_whatever_the_engine_says_is_heard_at_once(change: Callable[[Told], None]) -> None:
    engine = Told()
    attention = Attention(engine)
    lease = lease_in(State.RUNNING)
    attention.rest(lease, seen_until=STARTED)
    assert needing(attention, lease, STARTED) == (False, False)
    change(engine)
    assert needing(attention, lease, STARTED) == (True, True)


def test_what_does_not_run_or_is_to_leave_is_never_left_alone() -> None:
    attention = Attention(Told())
    leases = [lease_in(state) for state in State if state is not State.ENDED]
    leases = [replace(lease, id=LeaseId(UUID(int=place))) for place, lease in enumerate(leases)]
    running = lease_in(State.RUNNING)
    for lease in (*leases, running):
        attention.rest(lease, seen_until=STARTED)
    found, _ = attention.look(leases, now=STARTED)
    assert {lease.state for lease in found} == {
        State.REQUESTED, State.ADMITTED, State.PROVISIONING, State.DRAINING,
    }  # fmt: skip
    asked = replace(running, release_asked=EndReason.RECLAIMED)
    assert needing(attention, asked, STARTED) == (True, True)
    attention.forget()
    assert needing(attention, running, STARTED) == (True, False)
