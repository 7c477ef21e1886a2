"""Internal jobs as Slurm shows them, told to Sublet as jobs that wait, run and end once."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sublet.engine.port import InternalJob
from sublet.engine.slurm.reading import SlurmJob, SlurmNode
from sublet.engine.slurm.view import internal_demand, nodes_of, wants
from sublet.engine.slurm.watch import Watch, load

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
NODE = SlurmNode(
    name="n1", state="mixed", gpu_model="h200", gpus=8, cpus=64,
    memory_bytes=1 << 40, address="n1", reason="",
)  # fmt: skip
WAITS = SlurmJob(
    key="17", name="train", partitions=("internal",), state="PENDING", reason="Resources",
    submitted_at=NOON, eligible_at=NOON, started_at=None, ended_at=None, preempted=False, gpus=4,
    gpu_model=None, cpus=8, nodes=(), exit_code=None, restarts=0,
)  # fmt: skip
RUNS = replace(WAITS, state="RUNNING", reason="None", started_at=NOON + 5 * SECOND, nodes=("n1",))
ENDED = replace(RUNS, state="COMPLETED", ended_at=NOON + 9 * SECOND, exit_code=0)


def look(watch: Watch, *jobs: SlurmJob, at: int) -> list[InternalJob]:
    demand = internal_demand(jobs, [NODE], partition="sublet")
    return watch.look(demand, jobs, now=NOON + at * SECOND)


def test_a_job_waits_runs_and_ends_under_one_id() -> None:
    watch = Watch(cluster="try")
    (waits,) = look(watch, WAITS, at=1)
    (runs,) = look(watch, RUNS, at=6)
    (ended,) = look(watch, ENDED, at=10)
    assert waits.id == runs.id == ended.id
    assert waits.pending and runs.running
    assert (ended.started_at, ended.exited_at) == (RUNS.started_at, ENDED.ended_at)
    assert (ended.exit_code, ended.cancelled) == (0, False)


def test_a_job_that_slurm_forgets_ends_when_we_see_it_gone() -> None:
    watch = Watch(cluster="try")
    look(watch, RUNS, at=6)
    (ended,) = look(watch, at=20)
    assert ended.exited_at == NOON + 20 * SECOND
    assert look(watch, at=21) == [ended]
    assert look(watch, at=2000) == []


def test_a_requeued_job_is_another_one() -> None:
    watch = Watch(cluster="try")
    (first,) = look(watch, RUNS, at=6)
    again = replace(WAITS, restarts=1)
    one, other = look(watch, again, at=8)
    ended, waits = (one, other) if one.exited_at else (other, one)
    assert ended.id == first.id and ended.exited_at is not None
    assert waits.id != first.id and waits.pending
    assert waits.submitted_at == NOON + 8 * SECOND  # it has waited since then, not since noon


def test_the_time_that_it_waited_for_something_else_does_not_count() -> None:
    watch = Watch(cluster="try")
    held = replace(WAITS, reason="JobHeldUser")
    assert look(watch, held, at=1) == []
    (job,) = look(watch, WAITS, at=60)
    assert job.submitted_at == NOON + 60 * SECOND
    (ended,) = look(watch, held, at=70)
    assert ended.cancelled and ended.exited_at is not None


@pytest.mark.parametrize(
    "change",
    [
        {"reason": "Dependency"},
        {"reason": "BeginTime"},
        {"reason": "JobHeldAdmin"},
        {"reason": "QOSMaxGRESPerUser"},
        {"reason": "AssocGrpGRES"},
        {"reason": "Licenses"},
        {"reason": "ReqNodeNotAvail"},
        {"reason": "PartitionTimeLimit"},
        {"reason": "None", "eligible_at": None},
        {"partitions": ("sublet",)},
        {"state": "RUNNING"},
    ],
    ids=str,
)
def test_what_waits_for_anything_but_gpus_is_no_reason_to_reclaim(change: dict) -> None:
    assert wants(WAITS, partition="sublet")
    assert not wants(replace(WAITS, **change), partition="sublet")


@pytest.mark.parametrize(
    ("change", "cpus", "gpus"),
    [
        ({}, 8, 8),
        ({"state": "draining"}, 8, 4),
        ({"state": "drained"}, 0, 0),
        ({"state": "down"}, 8, 0),
        ({}, 64, 4),  # the job has every core, so the other four GPUs are of no use to anybody
    ],
    ids=str,
)
def test_only_what_can_run_a_job_is_healthy(change: dict, cpus: int, gpus: int) -> None:
    jobs = [replace(RUNS, cpus=cpus)] if cpus else []
    (node,) = nodes_of([replace(NODE, **change)], jobs)
    assert node.gpus == gpus


def test_whoever_comes_after_a_crash_knows_what_was_under_way(tmp_path: Path) -> None:
    watch = Watch(cluster="try")
    (before,) = look(watch, RUNS, at=6)
    watch.save(tmp_path / "internal.json")
    (ended,) = look(load(tmp_path / "internal.json", "try"), at=600)
    assert (ended.id, ended.exited_at) == (before.id, NOON + 600 * SECOND)
    assert look(load(tmp_path / "internal.json", "another"), at=600) == []


def test_a_job_on_nodes_that_are_not_all_lent_counts_by_its_share() -> None:
    (demand,) = internal_demand([replace(RUNS, nodes=("n1", "x9"))], [NODE], partition="sublet")
    assert demand.gpus == 2
