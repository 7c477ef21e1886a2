"""What goes wrong with a cluster, and with Sublet: nothing is lost, run twice or changed on a guess."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from tests.engine.harness import notice
from tests.engine.slurm_harness import SlurmHarness, slurm
from tests.slurm.cluster import Cluster, cluster, script, until
from tests.slurm.control import Control, instant

from sublet.core.errors import Unavailable
from sublet.core.ids import new_id
from sublet.engine.port import Phase
from sublet.engine.slurm.adapter import SlurmEngine
from sublet.engine.slurm.settings import Format

Start = Callable[[Cluster], Control]
SECOND = timedelta(seconds=1)
POLITE = ("sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """Forgets a job two seconds after its end, and keeps accounts."""
    with cluster(
        "--nodes", "2", "--gpus", "4", "--model", "toy", "--min-job-age", "2", "--accounting"
    ) as started:
        yield started


@pytest.fixture
def world(two_nodes: Cluster, folder: Path) -> Iterator[SlurmHarness]:
    with slurm(two_nodes, folder, sandboxed=False, format=Format.TEXT) as harness:
        yield harness


@contextlib.contextmanager
def without(cluster: Cluster, daemon: str) -> Iterator[None]:
    """Take one daemon away, and bring it back."""
    cluster.inner.stop(daemon)
    try:
        yield
    finally:
        cluster.inner.start(daemon, *(("-D",) if daemon == "slurmdbd" else ()))
        ready = "sacctmgr -n list cluster" if daemon == "slurmdbd" else "scontrol ping"
        until(lambda: cluster.inner.ask(*ready.split()).returncode == 0, what=daemon)


def test_with_the_controller_away_nothing_is_known_and_nothing_changes(
    world: SlurmHarness,
) -> None:
    id_ = world.start("sleep", "60", gpus=2)
    world.wait_for(id_, Phase.RUNNING)
    with without(world.cluster, "slurmctld"):
        with pytest.raises(Unavailable):
            world.engine.refresh()
        # The fence moves, for that needs the shared folder alone.
        world.engine.extend(id_, deadline=world.in_(90))
    until(lambda: _answers(world))
    assert world.phase(id_) is Phase.RUNNING
    assert [node.gpus for node in world.engine.nodes()] == [4, 4]
    world.engine.stop(id_, notice=notice(world.clock.now()))
    world.wait_for(id_, Phase.EXITED)


def _answers(world: SlurmHarness) -> bool:
    try:
        world.engine.refresh()
    except Unavailable:
        return False
    return True


@pytest.mark.parametrize("accounts", [True, False], ids=["accounting", "no accounting"])
def test_a_job_that_slurm_has_forgotten_is_settled_all_the_same(
    world: SlurmHarness, accounts: bool
) -> None:
    id_ = world.start("sh", "-c", "sleep 1; exit 3")
    world.wait_for(id_, Phase.RUNNING)
    key = world.cluster.run("squeue", "-h", "-n", f"sublet-{id_}", "-o", "%i")
    with contextlib.nullcontext() if accounts else without(world.cluster, "slurmdbd"):
        # Nobody looks until it has ended and is gone from Slurm's memory.
        gone = "slurm_load_jobs error: Invalid job id specified"
        until(
            lambda: gone in world.cluster.inner.ask("squeue", "-h", "-t", "all", "-j", key).stderr,
            what="Slurm to forget it",
        )
        seen = world.another().observe(id_)
    assert (seen.phase, seen.exit_code) == (Phase.EXITED, 3)
    assert seen.started_at is not None and seen.exited_at is not None
    if accounts:
        recorded = world.cluster.run("sacct", "-n", "-P", "-X", "-j", key, "-o", "ElapsedRaw")
        assert (seen.exited_at - seen.started_at).total_seconds() == int(recorded)


def test_a_node_that_is_lost_takes_its_leases_along_and_no_others(world: SlurmHarness) -> None:
    ids = [world.start("sleep", "60", gpus=4) for _ in range(2)]
    for id_ in ids:
        world.wait_for(id_, Phase.RUNNING)
    where = {
        id_: world.cluster.run("squeue", "-h", "-n", f"sublet-{id_}", "-o", "%N") for id_ in ids
    }
    lost, kept = ids
    # Its slurmd is gone, or it would come back by itself.
    world.cluster.inner.stop(f"slurmd-{where[lost]}", sign=signal.SIGKILL)
    world.cluster.run("scontrol", "update", f"node={where[lost]}", "state=down", "reason=test")
    try:
        world.wait_for(lost, Phase.LOST)
        assert world.phase(kept) is Phase.RUNNING
        assert world.engine.observe(lost).detail == "its node failed"
        world.wait_until(lambda: sum(node.gpus for node in world.engine.nodes()) == 4)
    finally:
        world.cluster.inner.start_node(where[lost])
    world.wait_until(lambda: sum(node.gpus for node in world.engine.nodes()) == 8)


def test_a_draining_node_counts_for_as_much_as_runs_there(world: SlurmHarness) -> None:
    id_ = world.start("sleep", "60", gpus=3)
    world.wait_for(id_, Phase.RUNNING)
    node = world.cluster.run("squeue", "-h", "-n", f"sublet-{id_}", "-o", "%N")
    world.cluster.run("scontrol", "update", f"node={node}", "state=drain", "reason=test")
    try:
        world.wait_until(lambda: sum(node.gpus for node in world.engine.nodes()) == 4 + 3)
        assert world.phase(id_) is Phase.RUNNING
    finally:
        world.cluster.run("scontrol", "update", f"node={node}", "state=resume")
        world.wait_until(lambda: sum(node.gpus for node in world.engine.nodes()) == 8)


def test_what_an_administrator_cancels_is_lost_and_says_so(world: SlurmHarness) -> None:
    id_ = world.start("sleep", "60")
    world.wait_for(id_, Phase.RUNNING)
    world.cluster.run("scancel", f"--name=sublet-{id_}")
    world.wait_for(id_, Phase.LOST)
    assert world.engine.observe(id_).detail == "its job was cancelled in Slurm"


def test_what_an_administrator_requeues_or_holds_runs_no_second_time(world: SlurmHarness) -> None:
    marks = world.root / "marks"
    id_ = world.start("sh", "-c", f"echo ran >> {marks}; sleep 60")
    world.wait_until(marks.exists)
    world.wait_for(id_, Phase.RUNNING)
    key = world.cluster.run("squeue", "-h", "-n", f"sublet-{id_}", "-o", "%i")
    world.cluster.run("scontrol", "update", f"job={key}", "requeue=1")
    world.cluster.run("scontrol", "requeuehold", key)
    run = ("sacct", "-n", "-P", "-X", "-D", "-j", key, "-o", "State,ElapsedRaw")
    until(
        lambda: world.cluster.run(*run).startswith("REQUEUED"), what="the run's end in accounting"
    )
    world.wait_for(id_, Phase.LOST)
    seen = world.engine.observe(id_)
    assert seen.detail == "its job was put back into Slurm's queue"
    # It is charged what Slurm recorded of the run that it had.
    recorded = world.cluster.run(*run).splitlines()[0].split("|")[1]
    assert seen.started_at is not None and seen.exited_at is not None
    assert (seen.exited_at - seen.started_at).total_seconds() == int(recorded)
    until(lambda: not world.cluster.run("squeue", "-h", "-n", f"sublet-{id_}", "-t", "PD,R"))
    assert marks.read_text() == "ran\n"


def test_what_started_since_we_looked_is_not_taken_for_requeued(world: SlurmHarness) -> None:
    id_ = world.start("sleep", "60")
    world.engine.refresh()  # it waits, or runs and is not up yet
    until((world.root / "shared" / str(id_) / "launched").exists)
    assert world.phase(id_) in {Phase.STARTING, Phase.RUNNING}
    world.wait_for(id_, Phase.RUNNING)


def test_slurm_takes_its_gpus_back_with_sublet_dead(world: SlurmHarness) -> None:
    ids = [world.start(*POLITE, gpus=4) for _ in range(2)]
    for id_ in ids:
        world.wait_for_log(id_, b"up\n")
    # Nobody ticks any more.
    job = world.cluster.sbatch("sleep 600", gpus=4)
    until(lambda: world.cluster.state(job) == "RUNNING")
    fresh = world.another()
    seen = {id_: fresh.observe(id_) for id_ in ids}
    gone = [id_ for id_ in ids if seen[id_].phase is Phase.EXITED]
    assert len(gone) == 1
    assert seen[gone[0]].reclaimed_at is not None
    assert b"bye" in fresh.logs(gone[0])


def test_a_job_that_waits_for_something_else_is_no_reason_to_reclaim(world: SlurmHarness) -> None:
    blocker = world.cluster.sbatch("sleep 600", gpus=1)
    for options in (
        ("--hold",),
        ("--begin=now+1hour",),
        (f"--dependency=afterok:{blocker}",),
        ("--licenses=none:1",),
    ):
        with contextlib.suppress(AssertionError):  # a licence that nobody has is refused at once
            world.cluster.sbatch("true", *options, gpus=8)
    until(lambda: world.cluster.state(blocker) == "RUNNING")
    for _ in range(3):
        world.engine.refresh()
        (job,) = SlurmEngine.internal_jobs(world.engine)
        assert job.running


def test_killed_at_any_moment_it_loses_no_lease_and_starts_none_twice(
    two_nodes: Cluster, run_on: Start
) -> None:
    control = run_on(two_nodes)
    leases: list[str] = []
    for pause in (0.05, 0.35):  # between the order and the running lease
        leases.append(control.lease("sh", "-c", "echo up; sleep 600", gpus=2))
        time.sleep(pause)
        control.kill()
        control.start()
    for lease in leases:
        control.reach(lease, "running")
    names = two_nodes.run("squeue", "-h", "-t", "R,PD", "-p", "sublet", "-o", "%j").split()
    assert sorted(names) == sorted(f"sublet-{lease}" for lease in leases)
    job = two_nodes.sbatch("sleep 600", gpus=4)
    for pause in (0.1, 0.4):  # while it is reclaimed
        time.sleep(pause)
        control.kill()
        control.start()
    until(lambda: two_nodes.state(job) == "RUNNING")
    assert [control.logs(lease) for lease in leases] == ["up\n"] * 2
    control.verify()


def test_an_sbatch_that_outlives_its_control_plane_is_not_repeated(world: SlurmHarness) -> None:
    """Killed between the submission and the note of it: the job is found by its name."""
    workload = world.workload("sleep", "60")
    assert world.engine.start(workload, deadline=world.in_(60))
    here = world.root / "shared" / str(workload.id)
    (here / "job").unlink()
    fresh = world.another()
    assert fresh.start(workload, deadline=world.in_(60))
    world.engine = fresh
    world.wait_for(workload.id, Phase.RUNNING)
    names = world.cluster.run(
        "squeue", "-h", "-t", "all", "-n", f"sublet-{workload.id}", "-o", "%i"
    )
    assert len(names.split()) == 1


class Skewed:
    """A clock that is wrong by so much; Slurm's is right."""

    def __init__(self, by: timedelta) -> None:
        self.by = by

    def now(self) -> datetime:
        return datetime.now(UTC) + self.by


@pytest.mark.parametrize("seconds", [-300, 300], ids=["behind", "ahead"])
def test_with_clocks_apart_instants_are_ours_and_a_notice_lasts_as_long(
    two_nodes: Cluster, folder: Path, seconds: int
) -> None:
    clock = Skewed(timedelta(seconds=seconds))
    with slurm(two_nodes, folder, sandboxed=False, clock=clock) as world:
        before = clock.now()
        id_ = world.start(*POLITE)
        world.wait_for_log(id_, b"up\n")  # its fence has not passed on the node
        world.wait_for(id_, Phase.RUNNING)
        started_at = world.engine.observe(id_).started_at
        assert started_at is not None
        assert before <= started_at <= clock.now() + 3 * SECOND
        job = world.cluster.sbatch("sleep 600", gpus=1)
        until(lambda: world.cluster.state(job) == "RUNNING")
        world.engine.refresh()
        (seen,) = SlurmEngine.internal_jobs(world.engine)
        assert before - SECOND <= seen.submitted_at <= clock.now() + 3 * SECOND
        told = notice(clock.now(), grace_seconds=60)
        world.engine.stop(id_, notice=told)
        world.wait_for(id_, Phase.EXITED)
        assert b"bye" in world.engine.logs(id_)  # SIGTERM, and not at once SIGKILL
        ended = world.engine.observe(id_)
        assert ended.exited_at is not None
        assert started_at <= ended.exited_at <= clock.now() + 3 * SECOND


def test_json_of_another_shape_is_left_for_columns_or_refused(
    two_nodes: Cluster, folder: Path
) -> None:
    tools = folder / "bin"
    tools.mkdir()
    for name in ("sbatch", "scancel", "scontrol", "sinfo", "sacct"):
        (tools / name).symlink_to(str(script.tool(name)))
    squeue = tools / "squeue"
    squeue.write_text(
        f"""#!/bin/sh
test "$1" = --json || exec {script.tool("squeue")} "$@"
echo '{{"meta": {{"plugin": {{"type": "openapi/v9"}}}}, "jobs": [{{"id": {{"job": 7}}}}]}}'
""",
        encoding="utf-8",
    )
    squeue.chmod(0o755)
    with slurm(two_nodes, folder / "auto", sandboxed=False, bin=str(tools)) as world:
        id_ = world.start("sleep", "60")
        world.wait_for(id_, Phase.RUNNING)
    with (
        slurm(
            two_nodes, folder / "json", sandboxed=False, bin=str(tools), format=Format.JSON
        ) as world,
        pytest.raises(Unavailable, match="squeue --json"),
    ):
        world.engine.refresh()


def test_with_the_controller_away_leases_go_on_and_are_charged_what_slurm_recorded(
    two_nodes: Cluster, run_on: Start
) -> None:
    control = run_on(two_nodes)
    lease = control.lease("sh", "-c", "echo up; sleep 60", gpus=2)
    running = control.reach(lease, "running")
    with without(two_nodes, "slurmctld"):
        until(lambda: "control.unavailable" in control.log(), what="word of it")
        body = {"command": ["true"], "gpus": 1, "max_seconds": 60}
        refused = control.api("POST", "/v1/leases", body, tenant=True)
        assert refused["error"]["code"] == "unavailable", refused
        assert control.show(lease)["state"] == "running"
    assert control.show(lease)["running_at"] == running["running_at"]
    key = two_nodes.run("squeue", "-h", "-n", f"sublet-{lease}", "-o", "%i")
    control.api("DELETE", f"/v1/leases/{lease}", tenant=True)
    ended = control.reach(lease, "ended")
    recorded = two_nodes.run("sacct", "-n", "-P", "-X", "-j", key, "-o", "ElapsedRaw")
    billed = instant(ended["stopped_at"]) - instant(ended["running_at"])
    assert billed <= timedelta(seconds=int(recorded))
    control.verify()


SLOW = "trap 'sleep 2; exit 0' TERM; echo up; while :; do sleep 0.05; done"
STEPS = ("lease.start.*", "lease.stop.*")  # all that is done to the engine on the way


def test_killed_before_and_after_each_order_to_slurm_it_loses_no_lease(
    two_nodes: Cluster, run_on: Start, folder: Path
) -> None:
    control = run_on(two_nodes)
    control.stop()
    control.failpoints = folder / "failpoints"
    for name in ("reached", "fired"):
        (control.failpoints / name).mkdir(parents=True)
    (control.failpoints / "plan").write_text("".join(f"{step} kill\n" for step in STEPS))
    fired = control.failpoints / "fired"

    def reached(what: Callable[[], bool]) -> None:
        """Start it again whenever it dies, until something is so."""

        def look() -> bool:
            if control.dead():
                control.start_again()
            with contextlib.suppress(httpx.HTTPError, KeyError):
                return what()
            return False

        until(look, seconds=300)

    control.start_again()
    lease = str(new_id())
    body = {"id": lease, "command": ["sh", "-c", SLOW], "gpus": 4,
            "max_seconds": 3600}  # fmt: skip
    reached(lambda: control.api("POST", "/v1/leases", body, tenant=True).get("id") == lease)
    reached(lambda: "up\n" in control.logs(lease) and control.show(lease)["state"] == "running")
    job = two_nodes.sbatch("sleep 600", "--nodes=2", gpus=4)
    reached(lambda: two_nodes.state(job) == "RUNNING")
    reached(lambda: bool(control.show(lease)["state"] == "ended"))
    # Of the notice, what is reached before the lease has gone: Slurm may have told it, too.
    died_at = {path.name for path in fired.iterdir()}
    assert died_at >= {"lease.start.before_engine kill", "lease.start.after_engine kill"}
    shown = control.show(lease)
    assert (shown["end_reason"], control.logs(lease).count("up\n")) == ("reclaimed", 1)
    reached(lambda: bool(control.verify()))
