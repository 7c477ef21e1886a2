"""What only the simulated engine can do: trouble on demand, the same each time."""

from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import pytest

from sublet.core.clock import ManualClock
from sublet.core.errors import Unavailable
from sublet.engine.port import Node, Notice, Observation, Phase, Workload
from sublet.engine.simulated import Fate, Faults, SimulatedEngine

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NODES = [Node(name="a", gpu_model="h200", gpus=8, memory_bytes=1)]
MINUTE = timedelta(minutes=1)


def workload(number: int, *command: str, gpus: int = 1) -> Workload:
    return Workload(id=UUID(int=number), gpu_model="h200", gpus=gpus, command=command)


def history(seed: int) -> list[Observation | None]:
    """Run a busy day with every fault and write down all that was seen."""
    clock = ManualClock(NOON)
    faults = Faults(
        unavailable=0.05,
        slow_start=0.3,
        failed_start=0.1,
        lost=0.2,
        lost_most=60 * MINUTE,
        deaf=0.2,
    )
    engine = SimulatedEngine(NODES, clock, Random(seed), faults=faults)
    seen: list[Observation | None] = []
    for _ in range(200):
        clock.advance(MINUTE)
        for number in range(40):
            asked = workload(number, "sleep", "3000")
            try:
                if engine.observe(asked.id).phase is Phase.ABSENT:
                    engine.start(asked, deadline=clock.now() + 45 * MINUTE)
                engine.tick()
                seen.append(engine.observe(asked.id))
            except Unavailable:
                seen.append(None)
        assert engine.held("h200") <= 8
    return seen


def test_the_same_seed_gives_the_same_history() -> None:
    first = history(1)
    assert first == history(1)
    assert first != history(2)
    phases = {seen.phase for seen in first if seen is not None}
    assert phases == set(Phase)
    assert None in first


def test_nobody_looking_changes_nothing() -> None:
    def end(looks: int) -> Observation:
        clock = ManualClock(NOON)
        engine = SimulatedEngine(NODES, clock)
        engine.start(workload(1, "sleep", "600"), deadline=NOON + 60 * MINUTE)
        for _ in range(looks):
            clock.advance(60 * MINUTE / looks)
            engine.tick()
        return engine.observe(UUID(int=1))

    assert end(1) == end(60)
    assert end(1).exited_at == NOON + 10 * MINUTE


def test_a_slow_start_is_starting_and_may_be_stopped_meanwhile() -> None:
    clock = ManualClock(NOON)
    engine = SimulatedEngine(NODES, clock, fate=lambda _: Fate(starts_after=MINUTE))
    engine.start(workload(1, "x"), deadline=NOON + 60 * MINUTE)
    engine.start(workload(2, "x"), deadline=NOON + 60 * MINUTE)
    assert engine.observe(UUID(int=1)).phase is Phase.STARTING
    told = Notice(reason="r", message="m", noticed_at=NOON, stops_at=NOON + MINUTE)
    engine.stop(UUID(int=1), notice=told)
    assert engine.notice(UUID(int=1)) == told
    clock.advance(MINUTE)
    assert engine.observe(UUID(int=1)).started_at is None
    assert engine.observe(UUID(int=1)).phase is Phase.EXITED
    assert engine.observe(UUID(int=2)).started_at == NOON + MINUTE


def test_a_lost_workload_gives_its_slots_back() -> None:
    clock = ManualClock(NOON)
    engine = SimulatedEngine(NODES, clock, fate=lambda _: Fate(lost_after=MINUTE))
    assert engine.start(workload(1, "x", gpus=8), deadline=NOON + 60 * MINUTE)
    assert not engine.start(workload(2, "x"), deadline=NOON + 60 * MINUTE)
    clock.advance(2 * MINUTE)
    assert engine.observe(UUID(int=1)).phase is Phase.LOST
    assert engine.start(workload(2, "x"), deadline=NOON + 60 * MINUTE)


def test_a_failed_start_never_ran() -> None:
    clock = ManualClock(NOON)
    engine = SimulatedEngine(NODES, clock, fate=lambda _: Fate(fails="no"))
    engine.start(workload(1, "x"), deadline=NOON + 60 * MINUTE)
    seen = engine.observe(UUID(int=1))
    assert seen == Observation(phase=Phase.EXITED, exited_at=NOON, detail="no")


def test_an_answer_lost_on_the_way_is_safe_to_ask_for_again() -> None:
    clock = ManualClock(NOON)
    engine = SimulatedEngine(NODES, clock, Random(3), faults=Faults(unavailable=0.5))
    took_effect = 0
    for number in range(200):
        before = engine.held("h200")
        try:
            engine.start(workload(number, "sleep", "30"), deadline=clock.now() + 60 * MINUTE)
        except Unavailable:
            took_effect += engine.held("h200") > before
        clock.advance(MINUTE)
    assert 20 < took_effect < 80


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_without_dice_nothing_goes_wrong(probability: float) -> None:
    engine = SimulatedEngine(
        NODES, ManualClock(NOON), faults=Faults(unavailable=probability, lost=probability)
    )
    assert engine.start(workload(1, "x"), deadline=NOON + MINUTE)


def test_what_runs_is_put_on_as_few_nodes_as_can_be() -> None:
    clock = ManualClock(NOON)
    nodes = [Node(name=name, gpu_model="h200", gpus=8, memory_bytes=1) for name in "abc"]
    engine = SimulatedEngine(nodes, clock)
    for number, gpus in enumerate((6, 8, 2, 7, 1)):
        asked = workload(number, "serve", gpus=gpus)
        assert engine.start(asked, deadline=NOON + MINUTE)
        placed = engine.observe(asked.id).nodes
        assert len(placed) == 1, "each fits onto one"
        assert placed == (("a",), ("b",), ("a",), ("c",), ("c",))[number]
