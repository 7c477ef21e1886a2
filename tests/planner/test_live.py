"""The live planner: from what the loop saw, through the database, to a plan that is kept."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from threading import Event
from uuid import UUID

import pytest
from tests.core.databases import fresh

from sublet.app.loop import Control
from sublet.app.planning import Planning
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.errors import Unavailable
from sublet.engine.port import Node, Workload
from sublet.engine.simulated import Faults, SimulatedEngine
from sublet.fleet import store as fleet
from sublet.fleet.demand import SLOT, Sample
from sublet.planner import store
from sublet.planner.prospect import Because, Prospect, Reason
from sublet.planner.service import Planner, document

START = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as db:
        yield db


def keep(db: Database, *, first: datetime, slots: int, gpus: int = 10, running: int = 4) -> None:
    with db.transaction() as tx:
        fleet.observe_pools(tx, {"h200": gpus}, notice_seconds=10, now=first)
        fleet.keep_samples(
            tx,
            [
                Sample(pool="h200", slot=first + i * SLOT, gpus=gpus, running=running, pending=0)
                for i in range(slots)
            ],
        )


def stored(db: Database) -> dict[str, store.StoredPlan]:
    with db.transaction() as tx:
        return store.list_plans(tx)


def test_a_plan_is_made_of_what_was_seen_and_kept(db: Database) -> None:
    keep(db, first=START, slots=60)
    now = START + 5 * timedelta(hours=1)
    plan = Planner(db, confidence=0.99).plan(now=now)["h200"]
    assert (plan.gpus, plan.demand, plan.firm) == (10, 4, {1: 0, 4: 0, 24: 0})
    assert (plan.interruptible, plan.reserve) == (5, 1)
    assert plan.because == (Because(reason=Reason.COLD_START, hours=(1, 4, 24)),)
    kept = stored(db)["h200"]
    assert kept.made_at == now
    assert dict(kept.plan) == document(plan)


def test_a_planner_that_goes_on_says_what_a_new_one_does(db: Database) -> None:
    planner = Planner(db, confidence=0.99)
    for hour in range(0, 9, 2):
        keep(db, first=START + timedelta(hours=hour), slots=24, running=hour)
        now = START + timedelta(hours=hour + 2)
        again: dict[str, Prospect] = Planner(db, confidence=0.99).plan(now=now)
        assert planner.plan(now=now) == again
        with db.transaction() as tx:  # the newest slot grows worse after it was read
            worse = Sample(pool="h200", slot=now - SLOT, gpus=9, running=hour + 1, pending=1)
            fleet.keep_samples(tx, [worse])
    assert planner.plan(now=now) == Planner(db, confidence=0.99).plan(now=now)


def test_the_plan_of_a_control_plane_that_was_slow_does_not_win(db: Database) -> None:
    keep(db, first=START, slots=60)
    later, earlier = START + timedelta(hours=6), START + timedelta(hours=5)
    Planner(db, confidence=0.99).plan(now=later)
    Planner(db, confidence=0.99).plan(now=earlier)
    assert stored(db)["h200"].made_at == later


def test_samples_older_than_a_hundred_days_are_forgotten(db: Database) -> None:
    keep(db, first=START, slots=3)
    keep(db, first=START + timedelta(days=101), slots=3)
    Planner(db, confidence=0.99).plan(now=START + timedelta(days=101, minutes=15))
    with db.transaction() as tx:
        assert len(fleet.list_samples(tx, since=START)["h200"].slots) == 3


def test_the_loop_samples_what_it_sees_and_plans_each_slot(db: Database) -> None:
    clock = ManualClock(START)
    node = Node(name="a", gpu_model="h200", gpus=8, memory_bytes=1 << 40)
    engine = SimulatedEngine([node], clock, Random(1), faults=Faults())
    planning = Planning(lambda: Planner(db, confidence=0.99), clock=clock)
    control = Control(
        db=db, engine=engine, clock=clock, first_notice_seconds=10, replicas=None, planning=planning
    )
    made = []
    for minute in range(16):
        if minute == 7:
            job = Workload(id=UUID(int=9), gpu_model="h200", gpus=6, command=["sleep", "9999"])
            engine.submit_internal(job, name="training", submitted_at=clock.now())
        control.tick()
        planning.join()
        made.append(stored(db)["h200"].made_at)
        clock.advance(MINUTE)
    assert sorted(set(made)) == [START, START + SLOT, START + 2 * SLOT, START + 3 * SLOT]
    with db.transaction() as tx:
        samples = fleet.list_samples(tx, since=START)["h200"]
    assert (list(samples.gpus), list(samples.running)) == ([8] * 4, [0, 6, 6, 6])
    plan = stored(db)["h200"].plan
    assert (plan["demand"], plan["interruptible"], plan["reserve"]) == (6, 1, 1)
    assert [reason["reason"] for reason in plan["reasons"]] == ["cold_start"]


def test_a_plan_is_never_made_twice_at_once_and_its_failure_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock(START)
    go, calls = Event(), []

    class Slow:
        def plan(self, *, now: datetime) -> None:
            calls.append(now)
            go.wait(60)
            raise Unavailable("the database is away")

    planning = Planning(Slow, clock=clock)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, logger="sublet"):
        for _ in range(3):
            planning.tick()
            clock.advance(SLOT)
        go.set()
        planning.join(10)
        planning.tick()
        planning.join(10)
    assert calls[0] == START and len(calls) == 2
    assert [record.message for record in caplog.records] == ["surplus.not_planned"] * 2
