"""The queue read from slurmrestd with a token, instead of by a command."""

import contextlib
import http.server
import threading
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
from sublet.engine.slurm.reading import SlurmNode
from sublet.engine.slurm.rest import Rest
from sublet.engine.slurm.settings import Format, SlurmSettings


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


def test_nodes_are_those_that_sinfo_shows(with_rest: Cluster, settings: SlurmSettings) -> None:
    rest = Rest(settings)

    def sinfo() -> list[SlurmNode]:
        columns = reading.node_format()
        return reading.read_nodes(with_rest.run("sinfo", "-h", "-N", "-p", "sublet", "-O", columns))

    until(lambda: rest.nodes("sublet") == sinfo(), what="the same from both")
    with_rest.run("scontrol", "update", "node=n1", "state=drain", "reason=test")
    until(lambda: sinfo()[0].state == "drained")
    assert [(node.state, node.reason) for node in rest.nodes("sublet")] == [("drained", "test")]
    with_rest.run("scontrol", "update", "node=n1", "state=resume")
    until(lambda: rest.nodes("sublet") == sinfo(), what="the same from both")
    assert rest.nodes("other") == []


class Later(http.server.BaseHTTPRequestHandler):
    """A slurmrestd of years from now."""

    offers = True

    def do_GET(self) -> None:
        self.send_response(200 if self.offers and "v0.0.42" in self.path else 404)
        self.end_headers()
        if self.offers:
            self.wfile.write(b'{"jobs": [{"id": {"job": 7}}], "nodes": {"n1": {}}, "errors": []}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("offers", [True, False], ids=["another shape", "another version"])
def test_one_of_another_version_is_left_for_commands_or_refused(
    with_rest: Cluster, folder: Path, offers: bool
) -> None:
    handler = type("Handler", (Later,), {"offers": offers})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rest = f"http://127.0.0.1:{server.server_port}"
        with slurm(with_rest, folder / "auto", sandboxed=False, rest=rest) as world:
            id_ = world.start("sleep", "60")
            world.wait_for(id_, Phase.RUNNING)
            assert [node.gpus for node in world.engine.nodes()] == [4]
        options = {"rest": rest, "format": Format.JSON}
        with (
            slurm(with_rest, folder / "json", sandboxed=False, **options) as world,
            pytest.raises(Unavailable, match="slurmrestd"),
        ):
            world.engine.refresh()
        server.shutdown()


def test_a_lease_gives_way_to_a_job_that_was_seen_there(world: SlurmHarness) -> None:
    lease = world.start("sleep", "60", gpus=4)
    world.wait_for(lease, Phase.RUNNING)
    job = world.cluster.sbatch("sleep 600", gpus=4)
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
