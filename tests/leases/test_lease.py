"""The lease by table and by property: nothing here needs a database or an engine."""

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.leases.make import NOON, SECOND, lease_in

from sublet.core.errors import Conflict
from sublet.engine.port import Observation, Phase
from sublet.leases.lease import (
    HOLDING,
    LEAVING,
    MOVES,
    PROVISIONING_LIMIT,
    EndReason,
    Lease,
    Move,
    Start,
    State,
    Stop,
    decide,
)

HELD = {Phase.STARTING, Phase.RUNNING}  # the phases in which the engine's slots are in use
GONE = set(Phase) - HELD

# Instants on both sides of everything that a lease of `make.py` waits for, in milliseconds.
INSTANTS = st.integers(-5_000, 4_000_000).map(lambda ms: NOON + timedelta(milliseconds=ms))
LEASES = st.builds(
    lambda state, asked, notice, most: lease_in(
        state,
        release_asked=asked if state is not State.REQUESTED else None,
        notice=notice * SECOND,
        max_duration=most * SECOND,
    ),
    st.sampled_from(State),
    st.none() | st.sampled_from(EndReason),
    st.integers(0, 3600),
    st.integers(1, 7200),
)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """What an engine may say, on a clock that need not agree with ours."""
    phase = draw(st.sampled_from(Phase))
    started, exited = sorted([draw(INSTANTS), draw(INSTANTS)])
    ran = phase is Phase.RUNNING or (phase in {Phase.EXITED, Phase.LOST} and draw(st.booleans()))
    over = phase in {Phase.EXITED, Phase.LOST} and draw(st.booleans())
    return Observation(
        phase=phase,
        started_at=started if ran else None,
        exited_at=exited if over else None,
        exit_code=draw(st.none() | st.integers(0, 255)),
        seen_at=draw(st.none() | INSTANTS) if phase is Phase.RUNNING else None,
    )


@pytest.mark.parametrize(("start", "to"), list(product(State, State)))
def test_only_the_listed_moves_are_possible(start: State, to: State) -> None:
    move = Move(to=to, at=NOON, reason=EndReason.RELEASED if to in LEAVING else None)
    if to in MOVES[start]:
        assert lease_in(start).move(move).state is to
    else:
        with pytest.raises(Conflict):
            lease_in(start).move(move)


def test_every_state_can_be_reached_and_only_the_last_is_for_good() -> None:
    assert {to for moves in MOVES.values() for to in moves} == set(State) - {State.REQUESTED}
    assert [state for state in State if not MOVES[state]] == [State.ENDED]
    assert set(State) - {State.REQUESTED, State.ENDED} == HOLDING


@given(LEASES, observations(), INSTANTS)
def test_every_decision_is_a_possible_move(lease: Lease, seen: Observation, now: datetime) -> None:
    decision = decide(lease, seen, now)
    if isinstance(decision, Move):
        moved = lease.move(decision)
        assert moved.version == lease.version + 1
        assert (moved.end_reason is not None) == (moved.state in LEAVING)
        ran = moved.state is State.ENDED and moved.running_at is not None
        earliest = moved.running_at if ran else lease.since
        assert earliest is not None and moved.since >= earliest, "its history would go backwards"
    if isinstance(decision, Start):
        assert (lease.state, seen.phase) == (State.PROVISIONING, Phase.ABSENT)
    if isinstance(decision, Stop):
        assert lease.state is State.DRAINING and seen.phase in HELD


@given(LEASES, observations(), INSTANTS)
def test_nobody_pays_for_what_was_not_held_or_not_used(
    lease: Lease, seen: Observation, now: datetime
) -> None:
    decision = decide(lease, seen, now)
    if not isinstance(decision, Move) or decision.to not in LEAVING:
        return
    moved = lease.move(decision)
    if moved.running_at is None:
        assert moved.stopped_at is None
        return
    assert moved.stopped_at is not None and moved.paid_until is not None
    assert moved.running_at <= moved.stopped_at <= moved.paid_until


@pytest.mark.parametrize("phase", Phase)
@given(notice=st.integers(0, 3600), now=INSTANTS)
def test_capacity_is_given_back_only_once_the_engine_shows_it_empty(
    phase: Phase, notice: int, now: datetime
) -> None:
    lease = lease_in(State.DRAINING, notice=notice * SECOND)
    decision = decide(lease, Observation(phase=phase), now)
    if phase in GONE:
        assert isinstance(decision, Move) and decision.to is State.ENDED
    else:
        assert decision == Stop()


@given(LEASES, observations(), INSTANTS)
def test_what_reached_the_engine_leaves_only_through_draining(
    lease: Lease, seen: Observation, now: datetime
) -> None:
    decision = decide(lease, seen, now)
    if lease.state in {State.PROVISIONING, State.RUNNING} and isinstance(decision, Move):
        assert decision.to is not State.ENDED


@given(LEASES, observations(), INSTANTS)
def test_a_decision_comes_from_the_present_alone(
    lease: Lease, seen: Observation, now: datetime
) -> None:
    """Acted on or not, asking again gives the same answer: a crash costs a repeat."""
    assert decide(lease, seen, now) == decide(replace(lease), replace(seen), now)


def running(at: timedelta) -> Observation:
    return Observation(phase=Phase.RUNNING, started_at=NOON + at)


PAID = lease_in(State.RUNNING).paid_until
assert PAID is not None


@pytest.mark.parametrize(
    ("lease", "seen", "now", "reason", "stopped_at"),
    [
        (
            lease_in(State.RUNNING, max_duration=30 * SECOND), running(SECOND), NOON + 40 * SECOND,
            EndReason.EXPIRED, NOON + 32 * SECOND,
        ),
        (
            # Sold for exactly what it paid for: it expires, its money is not short.
            lease_in(State.RUNNING, max_duration=60 * SECOND), running(SECOND), PAID,
            EndReason.EXPIRED, PAID,
        ),
        (lease_in(State.RUNNING), running(SECOND), PAID, EndReason.CREDIT_EXHAUSTED, PAID),
        (
            lease_in(State.RUNNING, release_asked=EndReason.RECLAIMED), running(SECOND),
            NOON + 20 * SECOND, EndReason.RECLAIMED, NOON + 20 * SECOND,
        ),
        (
            lease_in(State.RUNNING),
            Observation(phase=Phase.EXITED, started_at=NOON, exited_at=NOON + 9 * SECOND),
            NOON + 20 * SECOND, EndReason.COMPLETED, NOON + 9 * SECOND,
        ),
        (
            # The engine's own fence killed it while we were away.
            lease_in(State.RUNNING),
            Observation(phase=Phase.EXITED, started_at=NOON, exited_at=PAID + 10 * SECOND),
            PAID + 99 * SECOND, EndReason.CREDIT_EXHAUSTED, PAID,
        ),
        (
            # It ended before its fence: by itself, in seconds that nobody was there to sell.
            lease_in(State.RUNNING),
            Observation(phase=Phase.EXITED, started_at=NOON, exited_at=PAID + 9 * SECOND),
            PAID + 99 * SECOND, EndReason.COMPLETED, PAID,
        ),
        (
            lease_in(State.RUNNING),
            Observation(phase=Phase.LOST, started_at=NOON, exited_at=NOON + 9 * SECOND),
            NOON + 20 * SECOND, EndReason.NODE_LOST, NOON + 9 * SECOND,
        ),
        (
            lease_in(State.RUNNING), Observation(phase=Phase.ABSENT), NOON + 20 * SECOND,
            EndReason.NODE_LOST, NOON + 20 * SECOND,
        ),
        (
            lease_in(State.PROVISIONING), Observation(phase=Phase.STARTING),
            NOON + SECOND + PROVISIONING_LIMIT, EndReason.START_FAILED, None,
        ),
        (
            lease_in(State.PROVISIONING), Observation(phase=Phase.EXITED, exited_at=NOON + SECOND),
            NOON + 5 * SECOND, EndReason.START_FAILED, None,
        ),
        (
            lease_in(State.PROVISIONING, release_asked=EndReason.RELEASED),
            Observation(phase=Phase.STARTING), NOON + 5 * SECOND, EndReason.RELEASED, None,
        ),
    ],
)  # fmt: skip
def test_why_a_lease_leaves_and_until_when_it_is_billed(
    lease: Lease,
    seen: Observation,
    now: datetime,
    reason: EndReason,
    stopped_at: datetime | None,
) -> None:
    decision = decide(lease, seen, now)
    assert isinstance(decision, Move)
    moved = lease.move(decision)
    assert (moved.state, moved.end_reason) == (State.DRAINING, reason)
    assert moved.stopped_at == stopped_at


def test_a_reason_once_given_is_kept() -> None:
    draining = lease_in(State.DRAINING)
    ended = draining.move(Move(to=State.ENDED, at=NOON, reason=EndReason.NODE_LOST))
    assert ended.end_reason is EndReason.RELEASED


def test_what_was_never_started_ends_at_once_when_it_is_given_back() -> None:
    lease = lease_in(State.ADMITTED, release_asked=EndReason.RECLAIMED)
    decision = decide(lease, Observation(phase=Phase.ABSENT), NOON)
    assert decision == Move(to=State.ENDED, at=NOON, reason=EndReason.RECLAIMED)


def test_what_ran_and_ended_between_two_looks_did_run() -> None:
    seen = Observation(
        phase=Phase.EXITED, started_at=NOON + 2 * SECOND, exited_at=NOON + 3 * SECOND, exit_code=0
    )
    lease = lease_in(State.PROVISIONING)
    first = decide(lease, seen, NOON + 9 * SECOND)
    assert first == Move(to=State.RUNNING, at=NOON + 2 * SECOND)
    lease = replace(lease.move(first), paid_until=NOON + 62 * SECOND)
    second = decide(lease, seen, NOON + 9 * SECOND)
    assert isinstance(second, Move)
    assert (second.reason, second.exit_code) == (EndReason.COMPLETED, 0)
    assert lease.move(second).stopped_at == NOON + 3 * SECOND


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.EXITED, Phase.LOST])
def test_what_the_cluster_itself_told_to_go_is_reclaimed_and_billed_until_then(
    phase: Phase,
) -> None:
    running = lease_in(State.RUNNING)
    told_at, gone_at = NOON + 20 * SECOND, NOON + 25 * SECOND
    seen = Observation(
        phase=phase, started_at=running.running_at, reclaimed_at=told_at,
        exited_at=None if phase is Phase.RUNNING else gone_at,
    )  # fmt: skip
    move = decide(running, seen, NOON + 30 * SECOND)
    assert isinstance(move, Move)
    assert move.reason is EndReason.RECLAIMED
    assert running.move(move).stopped_at == told_at


def test_what_was_last_seen_a_while_ago_is_billed_until_then_and_told_now() -> None:
    running = lease_in(State.RUNNING, release_asked=EndReason.RECLAIMED)
    seen_at, now = NOON + 20 * SECOND, NOON + 24 * SECOND
    seen = Observation(phase=Phase.RUNNING, started_at=running.running_at, seen_at=seen_at)
    move = decide(running, seen, now)
    assert isinstance(move, Move)
    told = running.move(move)
    assert told.stopped_at == seen_at
    assert (told.noticed_at, told.stops_at) == (now, now + running.notice)


def test_what_had_gone_before_it_was_told_ended_then() -> None:
    """Its GPUs were somebody else's from then on, whenever we came to tell it."""
    draining = lease_in(State.DRAINING)
    assert draining.running_at is not None
    gone_at = draining.since - SECOND
    seen = Observation(phase=Phase.EXITED, started_at=draining.running_at, exited_at=gone_at)
    move = decide(draining, seen, draining.since + 5 * SECOND)
    assert isinstance(move, Move)
    assert draining.move(move).since == max(gone_at, draining.running_at)


def test_only_a_reclaimed_resumable_lease_is_paused() -> None:
    for reason in EndReason:
        ended = lease_in(State.ENDED, resumable=True)
        assert replace(ended, end_reason=reason).paused == (reason is EndReason.RECLAIMED)
    assert not lease_in(State.RUNNING, resumable=True).paused
