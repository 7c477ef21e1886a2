"""How long internal jobs wait for leases, as a figure."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sublet.engine.port import InternalJob
from sublet.leases.waits import InternalWaits, Waits

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def job(number: int, gpus: int, submitted: float = 0, started: float | None = None) -> InternalJob:
    return InternalJob(
        id=UUID(int=number), name="training", gpu_model="h200", gpus=gpus,
        submitted_at=at(submitted), started_at=None if started is None else at(started),
    )  # fmt: skip


def look(waits: InternalWaits, seconds: float, leased: int, *jobs: InternalJob) -> None:
    waits.look("h200", jobs, gpus=8, leased=leased, now=at(seconds))


def test_a_job_waits_until_its_gpus_are_free_and_counts_once() -> None:
    waits = InternalWaits()
    look(waits, 1, 8, job(1, 4))
    look(waits, 5, 8, job(1, 4))
    assert waits.by_pool() == {}
    look(waits, 7, 4, job(1, 4))
    look(waits, 9, 4, job(1, 4, started=8))
    assert waits.by_pool() == {"h200": Waits(jobs=1, p50=7, p99=7, most=7)}


def test_a_job_that_the_cluster_started_between_two_looks_waited_until_then() -> None:
    waits = InternalWaits()
    look(waits, 1, 8, job(1, 4))
    look(waits, 9, 4, job(1, 4, started=6))
    assert waits.by_pool()["h200"].most == 6


def test_what_a_job_waits_for_other_internal_jobs_is_none_of_our_business() -> None:
    waits = InternalWaits()
    look(waits, 1, 2, job(1, 6, started=0), job(2, 4, submitted=1))
    look(waits, 100, 8, job(2, 4, submitted=1))  # from here on it is in our way
    look(waits, 110, 4, job(2, 4, submitted=1))
    assert waits.by_pool()["h200"].most == 10


def test_those_behind_wait_for_those_before_them_too() -> None:
    waits = InternalWaits()
    both = (job(1, 4), job(2, 4, submitted=1))
    look(waits, 2, 6, *both)
    look(waits, 4, 4, *both)
    look(waits, 9, 0, replace(both[0], started_at=at(5)), both[1])
    assert waits.by_pool()["h200"] == Waits(jobs=2, p50=4, p99=8, most=8)
