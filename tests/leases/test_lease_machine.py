"""One lease under any weather: an engine, a wallet and a tenant that do as they please."""

from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.leases.make import NOON, REQUESTED, SECOND

from sublet.engine.port import Observation, Phase
from sublet.leases import blocks
from sublet.leases.lease import (
    HOLDING,
    LEAVING,
    EndReason,
    Lease,
    Move,
    Start,
    State,
    Stop,
    decide,
)

UP = {Phase.STARTING, Phase.RUNNING}


class OneLease(RuleBasedStateMachine):
    """What `advancing.advance` and `pay_ahead` do, with the engine and the wallet thrown by dice."""

    def __init__(self) -> None:
        super().__init__()
        self.now: datetime = NOON
        self.seen = Observation(phase=Phase.ABSENT)
        self.history: list[Lease] = []
        self.blocks = 1
        self.reached_engine = False
        self.told_at: datetime | None = None

    @property
    def lease(self) -> Lease:
        return self.history[-1]

    @initialize(most=st.integers(1, 400), notice=st.integers(0, 60))
    def sold(self, most: int, notice: int) -> None:
        lease = replace(REQUESTED, max_duration=most * SECOND, notice=notice * SECOND)
        self.history = [lease, lease.move(Move(to=State.ADMITTED, at=NOON))]

    # ---- the world

    @rule(milliseconds=st.integers(1, 90_000))
    def time_passes(self, milliseconds: int) -> None:
        self.now += timedelta(milliseconds=milliseconds)

    @precondition(lambda self: self.seen.phase is Phase.STARTING)
    @rule(fails=st.booleans())
    def engine_brings_it_up(self, fails: bool) -> None:
        if fails:
            self.seen = Observation(phase=Phase.EXITED, exited_at=self.now, detail="no")
        else:
            self.seen = Observation(phase=Phase.RUNNING, started_at=self.now)

    @precondition(lambda self: self.seen.phase is Phase.RUNNING)
    @rule(phase=st.sampled_from([Phase.EXITED, Phase.LOST]))
    def it_ends_by_itself(self, phase: Phase) -> None:
        self.seen = replace(self.seen, phase=phase, exited_at=self.now)

    @precondition(lambda self: self.seen.phase in {Phase.EXITED, Phase.LOST})
    @rule()
    def the_engine_forgets_it(self) -> None:
        self.seen = Observation(phase=Phase.ABSENT)

    @precondition(lambda self: self.told_at is not None and self.seen.phase in UP)
    @rule()
    def it_obeys(self) -> None:
        self.seen = replace(self.seen, phase=Phase.EXITED, exited_at=self.now, exit_code=143)

    @precondition(lambda self: self.lease.state in HOLDING - LEAVING)
    @rule(reason=st.sampled_from([EndReason.RELEASED, EndReason.RECLAIMED, EndReason.SHUTDOWN]))
    def somebody_wants_it_back(self, reason: EndReason) -> None:
        asked = self.lease.release_asked or reason
        self.history[-1] = replace(self.lease, release_asked=asked)

    # ---- the control plane

    @precondition(lambda self: self.lease.state is State.RUNNING)
    @rule()
    def the_next_minute_is_paid(self) -> None:
        assert self.lease.running_at is not None and self.lease.paid_until is not None
        if self.now < self.lease.paid_until - blocks.AHEAD or self.now >= self.lease.paid_until:
            return
        until = blocks.paid_until(
            self.lease, blocks=self.blocks + 1, running_at=self.lease.running_at
        )
        if until > self.lease.paid_until:
            self.blocks += 1
            self.history[-1] = replace(self.lease, paid_until=until)

    @rule()
    def one_pass(self) -> None:
        for _ in range(9):
            match decide(self.lease, self.seen, self.now):
                case Move() as move:
                    before = self.lease
                    moved = before.move(move)
                    if moved.state is State.RUNNING:
                        assert moved.running_at is not None
                        until = blocks.paid_until(moved, blocks=1, running_at=moved.running_at)
                        moved = replace(moved, paid_until=until)
                    self.history.append(moved)
                case Start():
                    assert not self.reached_engine or self.seen.phase is Phase.ABSENT
                    self.reached_engine = True
                    self.seen = Observation(phase=Phase.STARTING)
                case Stop():
                    self.told_at = self.told_at or self.now
                    return
                case None:
                    return
        raise AssertionError("a pass does not come to an end")

    # ---- what must hold

    @invariant()
    def its_history_is_one_step_after_another(self) -> None:
        for before, after in zip(self.history, self.history[1:], strict=False):
            assert after.version == before.version + 1
            assert after.since >= before.since

    @invariant()
    def slots_in_use_are_set_aside(self) -> None:
        if self.history and self.seen.phase in UP:
            assert self.lease.state in HOLDING

    @invariant()
    def it_leaves_through_draining(self) -> None:
        if self.history and self.lease.state is State.ENDED:
            assert self.reached_engine <= (self.history[-2].state is State.DRAINING)

    @invariant()
    def no_second_is_billed_unpaid_or_beyond_what_was_sold(self) -> None:
        if not self.history or self.lease.running_at is None:
            return
        assert self.lease.ends_at is not None and self.lease.paid_until is not None
        assert self.lease.running_at <= self.lease.paid_until <= self.lease.ends_at
        billed = sum(
            blocks.used_seconds(self.lease, block, until=self.now) for block in range(self.blocks)
        )
        if self.lease.stopped_at is not None:
            assert self.lease.running_at <= self.lease.stopped_at <= self.lease.paid_until
            assert billed == (self.lease.stopped_at - self.lease.running_at) // SECOND

    def teardown(self) -> None:
        """Whatever happened: given time and an engine that kills, it comes to an end."""
        if not self.history:
            return
        for _ in range(9):
            self.now += 1000 * SECOND
            if self.seen.phase in UP:
                # A fence and a notice have passed by now.
                self.seen = replace(self.seen, phase=Phase.EXITED, exited_at=self.now)
            self.one_pass()
        assert self.lease.state is State.ENDED


OneLease.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestOneLease = OneLease.TestCase
