"""The cluster's queue is worked out anew where it has changed, and nowhere else."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from sublet.engine.port import InternalJob
from sublet.fleet.pool import Demand
from sublet.fleet.queue import Queue

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def job(number: int, pool: str) -> InternalJob:
    return InternalJob(
        id=UUID(int=number), name="train", gpu_model=pool, gpus=number, submitted_at=NOON
    )


def test_the_same_queue_is_the_same_also_when_it_was_read_anew() -> None:
    queue = Queue([job(1, "h200"), job(2, "b200")])
    assert queue.next([job(1, "h200"), job(2, "b200")]) is queue
    assert queue.demands == {
        "h200": Demand(running=0, pending=1),
        "b200": Demand(running=0, pending=2),
    }


def test_a_change_is_of_its_own_pool_alone() -> None:
    queue = Queue([job(1, "h200"), job(2, "b200")])
    started = replace(job(2, "b200"), started_at=NOON)
    later = queue.next([job(1, "h200"), started, job(3, "b200")])
    assert later is not queue
    assert later.of("h200") is queue.of("h200")
    assert later.of("b200") == [started, job(3, "b200")]
    assert later.demands["b200"] == Demand(running=2, pending=3)
    gone = later.next([job(1, "h200")])
    assert list(gone.of("b200")) == [] and "b200" not in gone.demands
