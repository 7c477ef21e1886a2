"""The queue read from slurmrestd with a token, instead of by a command."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.harness import notice
from tests.engine.slurm_harness import SlurmHarness, slurm
from tests.slurm.cluster import Cluster, cluster, until

from sublet.core.clock import SystemClock
from sublet.core.errors import Unavailable
from sublet.engine.port import Phase
from sublet.engine.slurm import reading, setup
from sublet.engine.slurm.rest import Rest
from sublet.engine.slurm.settings import SlurmSettings


@pytest.fixture(scope="module")
def with_rest() -> Iterator[Cluster]:
    with cluster("--nodes", "1", "--gpus", "4", "--model", "toy", "--rest") as started:
        yield started


@pytest.fixture
def settings(with_rest: Cluster, folder: Path) -> SlurmSettings:
    return SlurmSettings(
        shared=folder / "shared", conf=with_rest.conf, rest=with_rest.inner.rest,
        rest_token=str(with_rest.inner.rest_token),
    )  # fmt: skip


@pytest.fixture
def world(with_rest: Cluster, settings: SlurmSettings, folder: Path) -> Iterator[SlurmHarness]:
    options = {"rest": settings.rest, "rest_token": settings.rest_token}
    with slurm(with_rest, folder, sandboxed=False, **options) as harness:
        yield harness


def test_it_shows_what_the_command_shows(world: SlurmHarness, settings: SlurmSettings) -> None:
    lease = world.start("sleep", "60", gpus=2)
    world.wait_for(lease, Phase.RUNNING)
    held = world.cluster.sbatch("true", "--hold", "--array=1-3", gpus=1)

    def both() -> bool:  # why a job waits may change from one look to the next
        shown = reading.read_jobs_json(world.cluster.run("squeue", "--json"))
        assert {job.key for job in shown} >= {f"{held}_{task}" for task in (1, 2, 3)}
        return Rest(settings).jobs() == shown

    until(both, what="the same from both")


def test_a_lease_gives_way_to_a_job_that_was_seen_there(world: SlurmHarness) -> None:
    lease = world.start("sleep", "60", gpus=4)
    world.wait_for(lease, Phase.RUNNING)
    job = world.cluster.sbatch("sleep 60", gpus=4)
    world.engine.stop(lease, notice=notice(world.clock.now()))
    until(lambda: world.cluster.state(job) == "RUNNING")
    world.wait_for(lease, Phase.EXITED)


def test_whoever_does_not_answer_or_takes_no_token_is_said(
    with_rest: Cluster, settings: SlurmSettings, folder: Path
) -> None:
    def said() -> str:
        found = setup.check(settings, SystemClock())
        return next(one.said for one in found if one.what == "slurmrestd")

    rest = Rest(settings)
    assert not any(job.holds for job in rest.jobs())
    assert said().startswith("it answers, and shows")
    token = with_rest.inner.rest_token
    kept = token.read_text()
    try:
        token.write_text("e30.e30.e30")
        with pytest.raises(Unavailable, match="slurmrestd at"):
            rest.jobs()
        assert "`scontrol token`" in said()
    finally:
        token.write_text(kept)
    with _without(with_rest, "slurmctld"), pytest.raises(Unavailable, match="slurmrestd at"):
        rest.jobs()
    until(lambda: _answers(rest), what="slurmrestd to have a controller again")
    with_rest.inner.stop("slurmrestd")
    with pytest.raises(Unavailable, match="did not answer"):
        rest.jobs()
    assert "did not answer" in said()
    with_rest.inner.start_rest(int(settings.rest.rpartition(":")[2]))
    assert _answers(rest)


@contextlib.contextmanager
def _without(cluster: Cluster, daemon: str) -> Iterator[None]:
    cluster.inner.stop(daemon)
    try:
        yield
    finally:
        cluster.inner.start(daemon)
        until(lambda: cluster.inner.ask("scontrol", "ping").returncode == 0, what=daemon)


def _answers(rest: Rest) -> bool:
    try:
        rest.jobs()
    except Unavailable:
        return False
    return True
