"""What every engine of ours promises, real or simulated."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.engine.harness import DEAF, NODES, POLITE, Harness, SimulatedHarness, local, notice
from tests.engine.slurm_harness import NODE_OPTIONS, slurm
from tests.slurm import cluster as slurm_cluster
from tests.slurm.cluster import Cluster

from sublet.core.errors import Invalid
from sublet.core.ids import new_id
from sublet.engine.port import Phase


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster.cluster(*NODE_OPTIONS) as started:
        yield started


@pytest.fixture(params=["simulated", "sandboxed", "unsandboxed", "slurm"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    if request.param == "simulated":
        yield SimulatedHarness()
    elif request.param == "slurm":
        with slurm(request.getfixturevalue("cluster"), tmp_path, sandboxed=True) as harness:
            yield harness
    else:
        with local(tmp_path / "engine", sandboxed=request.param == "sandboxed") as harness:
            yield harness


def needs_own_queue(world: Harness) -> None:
    """What is promised of `InternalQueue` alone: Slurm's queue is Slurm's own."""
    if not world.feeds_queue:
        pytest.skip("the queue of internal jobs is the cluster's own")


def test_it_has_the_nodes_it_was_given(world: Harness) -> None:
    assert list(world.engine.nodes()) == list(NODES)


def test_nothing_is_known_of_what_was_never_started(world: Harness) -> None:
    stranger = new_id()
    assert world.phase(stranger) is Phase.ABSENT
    assert world.engine.logs(stranger) == b""
    world.engine.stop(stranger, notice=notice(world.clock.now()))
    world.engine.extend(stranger, deadline=world.in_(1))
    world.engine.cancel_internal(stranger)
    assert stranger not in world.engine.workloads()


def test_a_workload_runs_to_its_end_and_tells_how(world: Harness) -> None:
    before = world.clock.now()
    id_ = world.start("sh", "-c", "exit 3")
    world.wait_for(id_, Phase.EXITED)
    seen = world.engine.observe(id_)
    assert seen.exit_code == 3
    assert seen.started_at is not None and seen.exited_at is not None
    assert before <= seen.started_at <= seen.exited_at <= world.clock.now() + world.grain
    assert world.engine.observe(id_) == seen
    assert world.engine.workloads()[id_] == seen


def test_its_output_can_be_read_in_pieces(world: Harness) -> None:
    id_ = world.start("echo", "seventeen")
    world.wait_for(id_, Phase.EXITED)
    world.engine.tick()
    assert world.engine.logs(id_) == b"seventeen\n"
    assert world.engine.logs(id_, offset=5, limit=4) == b"teen"
    assert world.engine.logs(id_, offset=10) == b""
    with pytest.raises(Invalid):
        world.engine.logs(id_, offset=-1)


def test_starting_twice_starts_once(world: Harness) -> None:
    workload = world.workload("sleep", "60")
    assert world.engine.start(workload, deadline=world.in_(60)) is True
    world.wait_for(workload.id, Phase.RUNNING)
    seen = world.engine.observe(workload.id)
    assert world.engine.start(workload, deadline=world.in_(90)) is True
    assert world.engine.observe(workload.id) == seen
    assert list(world.engine.workloads()) == [workload.id]


def test_what_has_ended_is_not_started_again(world: Harness) -> None:
    workload = world.workload("true")
    assert world.engine.start(workload, deadline=world.in_(60)) is True
    world.wait_for(workload.id, Phase.EXITED)
    seen = world.engine.observe(workload.id)
    assert world.engine.start(workload, deadline=world.in_(60)) is True
    world.engine.tick()
    assert world.engine.observe(workload.id) == seen


def test_no_slot_is_given_twice_and_all_come_back(world: Harness) -> None:
    first = world.start("sleep", "60", gpus=3)
    second = world.workload("sleep", "60", gpus=2)
    assert world.engine.start(second, deadline=world.in_(60)) is False
    assert world.phase(second.id) is Phase.ABSENT
    assert world.engine.start(replace(second, gpus=1), deadline=world.in_(60)) is True
    world.wait_for(first, Phase.RUNNING)
    world.engine.stop(first, notice=notice(world.clock.now()))
    world.wait_for(first, Phase.EXITED)
    third = world.workload("sleep", "60", gpus=3)
    assert world.engine.start(third, deadline=world.in_(60)) is True


def test_what_has_its_nodes_to_itself_shares_them_with_nobody(world: Harness) -> None:
    shared = world.start("sleep", "60", gpus=1)
    alone = world.workload("sleep", "60", gpus=2, exclusive=True)
    assert world.engine.start(alone, deadline=world.in_(60)) is False
    world.wait_for(shared, Phase.RUNNING)
    world.engine.stop(shared, notice=notice(world.clock.now()))
    world.wait_for(shared, Phase.EXITED)
    assert world.engine.start(alone, deadline=world.in_(60)) is True
    world.wait_for(alone.id, Phase.RUNNING)
    other = world.workload("sleep", "60", gpus=1)
    assert world.engine.start(other, deadline=world.in_(60)) is False
    world.engine.stop(alone.id, notice=notice(world.clock.now()))
    world.wait_for(alone.id, Phase.EXITED)
    assert world.engine.start(other, deadline=world.in_(60)) is True


def test_the_deadline_ends_it_whatever_it_does(world: Harness) -> None:
    deadline = world.in_(1 + world.start_seconds)
    workload = world.workload(*DEAF)
    assert world.engine.start(workload, deadline=deadline) is True
    world.wait_for(workload.id, Phase.EXITED)
    seen = world.engine.observe(workload.id)
    assert seen.exit_code == 137
    assert seen.exited_at is not None
    assert deadline <= seen.exited_at <= deadline + timedelta(seconds=10)
    assert seen.detail is not None and "deadline" in seen.detail


def test_a_deadline_can_be_moved_both_ways(world: Harness) -> None:
    id_ = world.start(*DEAF, seconds=1.5)
    later = world.in_(60)
    world.engine.extend(id_, deadline=later)
    passed = world.in_(2)
    world.wait_until(lambda: world.clock.now() >= passed)
    assert world.phase(id_) is Phase.RUNNING
    world.engine.extend(id_, deadline=world.clock.now())
    world.wait_for(id_, Phase.EXITED)
    world.engine.extend(id_, deadline=later)
    assert world.phase(id_) is Phase.EXITED


def test_what_was_paid_for_before_it_began_never_runs(world: Harness) -> None:
    id_ = world.start("echo", "hello", seconds=-1)
    world.wait_for(id_, Phase.EXITED)
    assert world.engine.observe(id_).started_at is None
    assert world.engine.logs(id_) == b""


def test_told_to_go_it_may_say_goodbye(world: Harness) -> None:
    id_ = world.start(*POLITE)
    world.wait_for_log(id_, b"up\n")
    world.engine.stop(id_, notice=notice(world.clock.now()))
    world.wait_for(id_, Phase.EXITED)
    assert world.engine.observe(id_).exit_code == 7


def test_a_plain_command_goes_by_its_signal(world: Harness) -> None:
    id_ = world.start("sleep", "60")
    world.wait_for(id_, Phase.RUNNING)
    world.engine.stop(id_, notice=notice(world.clock.now()))
    world.wait_for(id_, Phase.EXITED)
    assert world.engine.observe(id_).exit_code == 143


def test_whoever_does_not_go_is_killed_when_the_notice_is_over(world: Harness) -> None:
    id_ = world.start(*DEAF)
    world.wait_for_log(id_, b"up\n")
    told = notice(world.clock.now(), grace_seconds=1)
    world.engine.stop(id_, notice=told)
    world.wait_for(id_, Phase.EXITED)
    seen = world.engine.observe(id_)
    assert seen.exit_code == 137
    assert seen.exited_at is not None and seen.exited_at >= told.stops_at


def test_only_an_earlier_end_changes_a_notice(world: Harness) -> None:
    id_ = world.start(*DEAF)
    world.wait_for_log(id_, b"up\n")
    now = world.clock.now()
    world.engine.stop(id_, notice=notice(now, grace_seconds=1))
    world.engine.stop(id_, notice=notice(now, grace_seconds=50))
    world.wait_for(id_, Phase.EXITED)

    id_ = world.start(*DEAF)
    world.wait_for_log(id_, b"up\n")
    now = world.clock.now()
    world.engine.stop(id_, notice=notice(now, grace_seconds=50))
    world.engine.stop(id_, notice=notice(now, grace_seconds=1))
    world.wait_for(id_, Phase.EXITED)
    exited_at = world.engine.observe(id_).exited_at
    assert exited_at is not None and exited_at < now + timedelta(seconds=40)


def test_internal_jobs_run_in_order_and_none_overtakes(world: Harness) -> None:
    needs_own_queue(world)  # Slurm's may start a small one beside the first, which is its right
    first = world.submit("sleep", "1.5", gpus=3)
    world.wait_until(lambda: world.engine.internal_jobs()[0].running)
    big = world.submit("sleep", "0.1", gpus=4)
    small = world.submit("sleep", "0.1", gpus=1)
    world.engine.tick()
    jobs = {job.id: job for job in world.engine.internal_jobs()}
    assert [job.id for job in world.engine.internal_jobs()] == [first, big, small]
    assert jobs[first].running
    assert jobs[big].pending and jobs[small].pending

    def all_ended() -> bool:
        return all(job.exited_at is not None for job in world.engine.internal_jobs())

    world.wait_until(all_ended)
    jobs = {job.id: job for job in world.engine.internal_jobs()}
    assert [jobs[id_].exit_code for id_ in (first, big, small)] == [0, 0, 0]
    first_end, big_start, big_end, small_start = (
        jobs[first].exited_at,
        jobs[big].started_at,
        jobs[big].exited_at,
        jobs[small].started_at,
    )
    assert first_end and big_start and big_end and small_start
    assert first_end <= big_start
    assert big_end <= small_start


def test_no_lease_starts_while_an_internal_job_waits_for_its_kind(world: Harness) -> None:
    # It stays for all of its notice: a cluster may tell it to go before we look.
    lease = world.start(*DEAF, gpus=2)
    world.wait_for_log(lease, b"up\n")
    job = world.submit("sleep", "60", gpus=3)
    world.engine.tick()
    assert world.engine.start(world.workload("sleep", "60"), deadline=world.in_(60)) is False
    other = world.workload("sleep", "60", gpu_model="cpu")
    assert world.engine.start(other, deadline=world.in_(60)) is True

    world.engine.stop(lease, notice=notice(world.clock.now(), grace_seconds=1))
    world.wait_until(lambda: world.engine.internal_jobs()[0].running)
    assert world.engine.observe(lease).phase is Phase.EXITED
    assert world.engine.start(world.workload("sleep", "60"), deadline=world.in_(60)) is True
    assert job not in world.engine.workloads()


def test_a_waiting_job_can_be_cancelled(world: Harness) -> None:
    world.wait_for_log(world.start(*DEAF, gpus=4), b"up\n")
    job = world.submit("sleep", "60")
    world.engine.cancel_internal(job)
    world.engine.cancel_internal(job)
    world.wait_until(lambda: not world.engine.internal_jobs()[0].pending)
    (seen,) = world.engine.internal_jobs()
    assert seen.cancelled and seen.started_at is None and seen.exited_at is not None
    assert not seen.pending and not seen.running


def test_a_running_job_can_be_cancelled(world: Harness) -> None:
    needs_own_queue(world)
    job = world.submit(*POLITE)
    world.wait_for_log(job, b"up\n")
    world.engine.cancel_internal(job)
    world.wait_until(lambda: world.engine.internal_jobs()[0].exited_at is not None)
    (seen,) = world.engine.internal_jobs()
    assert seen.cancelled and seen.exit_code == 7


def test_submitting_twice_queues_once(world: Harness) -> None:
    needs_own_queue(world)
    job = world.workload("sleep", "60")
    now = world.clock.now()
    world.engine.submit_internal(job, name="train", submitted_at=now)
    world.engine.submit_internal(job, name="train", submitted_at=now)
    (seen,) = world.engine.internal_jobs()
    assert (seen.id, seen.name, seen.gpus, seen.submitted_at) == (job.id, "train", 1, now)


def test_one_id_cannot_be_a_lease_and_an_internal_job(world: Harness) -> None:
    needs_own_queue(world)
    lease = world.workload("sleep", "60")
    assert world.engine.start(lease, deadline=world.in_(60))
    with pytest.raises(Invalid):
        world.engine.submit_internal(lease, name="x", submitted_at=world.clock.now())
    job = world.submit("sleep", "60")
    with pytest.raises(Invalid):
        world.engine.start(replace(lease, id=job), deadline=world.in_(60))


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpus": 0},
        {"gpus": 5},
        {"gpu_model": "none such"},
        {"command": []},
        {"command": [""]},
        {"command": ["echo", "a\0b"]},
        {"environment": {"": "x"}},
        {"environment": {"A=B": "x"}},
        {"environment": {"A B": "x"}},
        {"environment": {"PPID": "x"}},
        {"environment": {"A": "x\0"}},
        {"files": {"/etc/passwd": b""}},
        {"files": {"../x": b""}},
        {"files": {"a/../../x": b""}},
        {"files": {"a//b": b""}},
        {"files": {"": b""}},
        {"files": {".": b""}},
        {"files": {"a": b"", "a/b": b""}},
        {"files": {"a\0": b""}},
        {"files": {"x" * 256: b""}},
        {"memory_bytes": 0},
        {"processes": -1},
    ],
    ids=str,
)
def test_what_can_never_run_is_said_at_once(world: Harness, wrong: dict[str, Any]) -> None:
    workload = replace(world.workload("true"), **wrong)
    with pytest.raises(Invalid):
        world.engine.start(workload, deadline=world.in_(60))
    if world.feeds_queue:
        with pytest.raises(Invalid):
            world.engine.submit_internal(workload, name="x", submitted_at=world.clock.now())
    assert not world.engine.workloads() and not world.engine.internal_jobs()
