"""The local engine: what survives its death, what never outlives its order."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from tests.engine.harness import DEAF, NODES, LocalHarness, local, notice, sandbox

from sublet.core.clock import SystemClock
from sublet.core.errors import Invalid, Unavailable
from sublet.core.ids import new_id
from sublet.engine.hardware import Gpu, usable_cores
from sublet.engine.launching import Launcher
from sublet.engine.local import KEPT, LocalEngine
from sublet.engine.port import Node, Phase
from sublet.engine.processes import SHIMS, survivors
from sublet.engine.records import Record, Status, read_status
from sublet.engine.shim import try_lock


@pytest.fixture(params=[True, False], ids=["sandboxed", "unsandboxed"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalHarness]:
    with local(tmp_path / "engine", sandboxed=request.param) as harness:
        yield harness


@pytest.fixture
def own(tmp_path: Path) -> Iterator[LocalHarness]:
    """The operator's own workloads, in no sandbox."""
    with local(tmp_path / "engine", sandboxed=False, log_bytes=1000) as harness:
        yield harness


def shim_of(world: LocalHarness, id_: UUID) -> int:
    """Find the shim by its command line, as an administrator would."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(world.root / str(id_)).encode() in words:
            return int(path.parent.name)
    raise AssertionError("there is no shim")


def _die(*_: object) -> None:
    """Stand in for a launch: as if the engine was killed in that instant."""


def test_a_new_engine_finds_what_the_old_one_started(world: LocalHarness) -> None:
    lease = world.start("sleep", "60", gpus=2)
    done = world.start("echo", "done")
    world.wait_for(lease, Phase.RUNNING)
    world.wait_for(done, Phase.EXITED)
    world.engine.tick()
    job = world.submit("sleep", "60", gpus=2)
    world.engine.tick()
    waiting = world.submit("sleep", "60", gpus=2)
    before = (world.engine.workloads(), world.engine.internal_jobs())

    world.engine = world.another()
    assert (world.engine.workloads(), world.engine.internal_jobs()) == before
    assert world.engine.logs(done) == b"done\n"
    world.wait_until(lambda: set(world.engine.alive()) == {lease, job})
    world.engine.stop(lease, notice=notice(world.clock.now()))
    world.wait_for(lease, Phase.EXITED)
    world.wait_until(lambda: all(job.running for job in world.engine.internal_jobs()))
    assert waiting in {job.id for job in world.engine.internal_jobs()}


def test_a_new_engine_starts_nothing_twice(world: LocalHarness) -> None:
    workload = world.workload("sh", "-c", "echo once; sleep 60")
    for _ in range(3):  # each dies right after, its shim perhaps not up yet
        assert world.engine.start(workload, deadline=world.in_(60)) is True
        world.engine.tick()
        world.engine = world.another()
        world.engine.tick()
    world.wait_for_log(workload.id, b"once")
    assert world.engine.logs(workload.id) == b"once\n"
    marks = survivors(workload.id)
    world.engine.tick()
    assert set(survivors(workload.id)) <= set(marks)


def test_an_engine_that_died_before_the_shim_was_up_is_finished_by_the_next(
    world: LocalHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "_launch", _die)
        id_ = world.start("echo", "late")
    assert world.phase(id_) is Phase.STARTING
    world.engine = world.another()
    world.wait_for(id_, Phase.EXITED)
    assert world.engine.logs(id_) == b"late\n"


def test_a_half_made_folder_is_nothing(world: LocalHarness) -> None:
    id_ = new_id()
    (world.root / f".new-{id_}").mkdir()
    world.engine = world.another()
    assert world.phase(id_) is Phase.ABSENT
    assert not (world.root / f".new-{id_}").exists()


def test_with_its_shim_killed_a_workload_is_lost_and_dead(world: LocalHarness) -> None:
    id_ = world.start("sh", "-c", "setsid sleep 61 & echo up; sleep 61")
    world.wait_for_log(id_, b"up")
    os.kill(shim_of(world, id_), signal.SIGKILL)
    world.wait_for(id_, Phase.LOST)
    seen = world.engine.observe(id_)
    assert survivors(id_) == []
    assert seen.exit_code is None and seen.started_at and seen.exited_at and seen.detail
    world.engine.tick()
    assert world.another().observe(id_) == seen
    assert world.engine.start(world.workload("sleep", "60", gpus=4), deadline=world.in_(60))


def test_a_shim_that_cannot_start_is_reported_and_holds_nothing(
    world: LocalHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Launcher.launch

    def spoilt(self: Launcher, folder: Path, record: Record, *, clock_offset: float) -> int:
        (folder / "deadline").write_text("nonsense")
        return real(self, folder, record, clock_offset=clock_offset)

    monkeypatch.setattr(Launcher, "launch", spoilt)
    id_ = world.start("true")
    world.wait_for(id_, Phase.EXITED)
    seen = world.engine.observe(id_)
    assert seen.started_at is None and seen.exit_code is None
    assert seen.detail is not None and seen.detail.startswith("its shim did not start")


def test_the_fence_holds_with_the_control_plane_dead(world: LocalHarness) -> None:
    id_ = world.start(*DEAF, seconds=1)
    # Not one call to the engine from here on: only the shim is left.
    status = world.folder(id_) / "status.json"

    def recorded() -> bool:
        return status.exists() and json.loads(status.read_bytes())["exited_at"] is not None

    engine, world.engine = world.engine, _Asleep()  # type: ignore[assignment]
    try:
        world.wait_until(recorded)
    finally:
        world.engine = engine
    assert survivors(id_) == []
    assert world.engine.observe(id_).exit_code == 137


class _Asleep:
    def tick(self) -> None:
        pass


def test_what_daemons_it_leaves_die_with_it(world: LocalHarness) -> None:
    script = "setsid sh -c 'trap \"\" TERM HUP; sleep 62' >/dev/null 2>&1 & sleep 0.2; exit 4"
    id_ = world.start("sh", "-c", script)
    world.wait_for(id_, Phase.EXITED)
    assert world.engine.observe(id_).exit_code == 4
    assert survivors(id_) == []


def test_a_second_shim_of_the_same_folder_leaves_at_once(world: LocalHarness) -> None:
    id_ = world.start("sh", "-c", "echo once; sleep 60")
    world.wait_for_log(id_, b"once")
    job = world.engine._jobs[id_]
    second = world.engine._launcher.launch(job.folder, job.record, clock_offset=0.0)
    assert os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]) == 0
    assert world.engine.logs(id_) == b"once\n"


def test_a_log_stops_at_its_limit_and_the_workload_goes_on(own: LocalHarness) -> None:
    id_ = own.start("sh", "-c", "head -c 500000 /dev/zero | tr '\\0' x; exit 5")
    own.wait_for(id_, Phase.EXITED)
    log = own.engine.logs(id_)
    assert own.engine.observe(id_).exit_code == 5
    assert log.startswith(b"x" * 1000 + b"\n[sublet] the log was cut here")
    assert log.count(b"\n") == 2 and len(log) < 1100


def test_a_workload_may_close_its_output_and_run_on(own: LocalHarness) -> None:
    id_ = own.start("sh", "-c", "exec >/dev/null 2>&1; sleep 0.3; exit 6")
    own.wait_for(id_, Phase.EXITED)
    assert own.engine.observe(id_).exit_code == 6


def test_stopped_before_it_was_up_it_never_runs(
    world: LocalHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "_launch", _die)
        id_ = world.start("echo", "hello")
    world.engine.stop(id_, notice=notice(world.clock.now()))
    world.wait_for(id_, Phase.EXITED)
    assert world.engine.logs(id_) == b""
    assert world.engine.observe(id_).detail == "it was stopped before it started"


def test_the_notice_file_holds_the_first_notice(own: LocalHarness) -> None:
    id_ = own.start("sh", "-c", "trap '' TERM; echo up; cat; sleep 60")
    own.wait_for_log(id_, b"up")
    now = own.clock.now()
    own.engine.stop(id_, notice=notice(now, reason="reclaimed", grace_seconds=50))
    own.engine.stop(id_, notice=notice(now, reason="expired", grace_seconds=40))
    told = json.loads((own.folder(id_) / "box" / "notice.json").read_bytes())
    assert told["reason"] == "reclaimed"
    assert told["stops_at"] == (now + timedelta(seconds=40)).isoformat()


def test_a_command_that_is_not_there_is_said_at_once(own: LocalHarness) -> None:
    for program in ("no-such-program", "/no/such/program"):
        with pytest.raises(Invalid, match="there is no command"):
            own.engine.start(own.workload(program), deadline=own.in_(60))


def test_a_command_that_cannot_be_run_is_reported(own: LocalHarness) -> None:
    id_ = own.start("./data", files={"data": b"not a program"})
    own.wait_for(id_, Phase.EXITED)
    seen = own.engine.observe(id_)
    assert seen.started_at is None and seen.exit_code == 127
    assert seen.detail is not None and "could not be run" in seen.detail


def test_a_command_that_is_not_in_the_sandbox_ends_with_127(tmp_path: Path) -> None:
    with local(tmp_path / "engine", sandboxed=True) as world:
        id_ = world.start("no-such-program")
        world.wait_for(id_, Phase.EXITED)
        assert world.engine.observe(id_).exit_code == 127
        assert b"no-such-program" in world.engine.logs(id_)


def test_the_operators_own_get_the_environment_that_fits_them(tmp_path: Path) -> None:
    with local(tmp_path / "engine", sandboxed=False) as world:
        secrets = {"DATABASE_URL": "postgres://", "SUBLET_ADMIN_KEY": "key"}
        parent = {"PATH": os.environ["PATH"], "HOME": "/home/op", "CLUSTER": "a"} | secrets
        world.engine._launcher = replace(world.engine._launcher, parent=parent)
        replica = world.output("env", environment={"MODEL": "m"})
        assert "HOME=/home/op" in replica and "MODEL=m" in replica
        assert "CLUSTER" not in replica

        job = world.submit("env")
        world.wait_until(lambda: world.engine.internal_jobs()[0].exited_at is not None)
        printed = world.engine.logs(job).decode()
        assert "CLUSTER=a" in printed
        for text in (replica, printed):
            assert "postgres://" not in text and "ADMIN_KEY" not in text


def test_what_ended_leaves_its_log_and_no_secret(world: LocalHarness) -> None:
    id_ = world.start("echo", "bye", environment={"TOKEN": "s3cr3t"}, files={"f": b"s3cr3t"})
    world.wait_for(id_, Phase.EXITED)
    world.wait_until((world.root / "ended" / str(id_)).exists)
    assert not any(
        b"s3cr3t" in path.read_bytes() for path in world.root.rglob("*") if path.is_file()
    )
    assert world.engine.logs(id_) == b"bye\n"
    for group in Path("/sys/fs/cgroup").glob(f"**/sublet-{id_}"):
        raise AssertionError(group)


def test_what_ended_long_ago_is_no_longer_listed_but_still_known(world: LocalHarness) -> None:
    id_ = world.start("echo", "old")
    world.wait_until((world.root / "ended" / str(id_)).exists)
    seen = world.engine.observe(id_)
    folder = world.root / "ended" / str(id_)
    long_ago = folder.stat().st_mtime - 2 * 86_400
    os.utime(folder, (long_ago, long_ago))

    world.engine = world.another()
    assert world.engine.workloads() == {}
    assert world.engine.observe(id_) == seen
    assert world.engine.logs(id_) == b"old\n"
    assert world.engine.start(replace(world.workload("true"), id=id_), deadline=world.in_(9))
    assert world.engine.observe(id_) == seen


def test_slots_are_recorded_before_anything_is_launched(own: LocalHarness) -> None:
    first = own.start("sleep", "60", gpus=1)
    second = own.start("sleep", "60", gpus=2)
    specs = [json.loads((own.folder(id_) / "spec.json").read_bytes()) for id_ in (first, second)]
    assert [spec["slots"] for spec in specs] == [[0], [1, 2]]


def test_a_cpu_workload_keeps_to_its_cores(tmp_path: Path) -> None:
    cores = usable_cores()
    nodes = [Node(name="here", gpu_model="cpu", gpus=len(cores), memory_bytes=1)]
    with local(tmp_path / "engine", sandboxed=False) as world:
        world.engine = LocalEngine(
            world.root, nodes=nodes, clock=SystemClock(), sandbox=None, unsafe_no_sandbox=False
        )
        assert world.output("nproc", gpu_model="cpu") == "1\n"


def test_cuda_is_told_the_gpus_that_were_assigned(tmp_path: Path) -> None:
    gpus = [
        Gpu(uuid=f"GPU-{i}", model=model, device=f"/dev/nvidia{i}", memory_bytes=1)
        for i, model in enumerate(["toy", "other", "toy", "toy"])
    ]
    with local(tmp_path / "engine", sandboxed=False) as world:
        world.engine = LocalEngine(
            world.root,
            nodes=NODES,
            clock=SystemClock(),
            sandbox=None,
            unsafe_no_sandbox=False,
            gpus=gpus,
        )
        world.start("sleep", "60", gpus=1)
        printed = world.output("sh", "-c", "echo $CUDA_VISIBLE_DEVICES", gpus=2)
        assert printed == "GPU-2,GPU-3\n"


def test_a_disk_that_fails_is_unavailable_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "engine").write_text("a file where the folder should be")
    with pytest.raises(Unavailable):
        LocalEngine(
            tmp_path / "engine",
            nodes=NODES,
            clock=SystemClock(),
            sandbox=sandbox()[0],
            unsafe_no_sandbox=False,
        )


def test_only_its_owner_can_look_into_the_engines_folder(world: LocalHarness) -> None:
    id_ = world.start("sleep", "60", environment={"TOKEN": "x"})
    assert world.root.stat().st_mode & 0o077 == 0
    assert world.folder(id_).stat().st_mode & 0o077 == 0


def test_the_engine_leaves_no_zombie(world: LocalHarness) -> None:
    id_ = world.start("true")
    world.wait_for(id_, Phase.EXITED)
    world.wait_until(lambda: not world.engine.alive())
    assert world.engine._jobs[id_].shim not in SHIMS


def test_a_lock_is_free_once_its_holder_is_dead(tmp_path: Path) -> None:
    first = try_lock(tmp_path / "lock")
    assert first is not None
    assert try_lock(tmp_path / "lock") is None
    os.close(first)
    second = try_lock(tmp_path / "lock")
    assert second is not None
    os.close(second)
    assert read_status(tmp_path) == Status()


def test_what_ended_long_ago_is_removed_and_what_ended_lately_is_not(world: LocalHarness) -> None:
    old, new = world.start("echo", "old"), world.start("echo", "new")
    for id_ in (old, new):
        world.wait_for(id_, Phase.EXITED)
    world.wait_until((world.root / "ended" / str(old)).exists)
    world.wait_until((world.root / "ended" / str(new)).exists)
    month_ago = time.time() - KEPT.total_seconds() - 60
    os.utime(world.root / "ended" / str(old), (month_ago, month_ago))
    engine = world.another()
    engine.tick()
    assert not (world.root / "ended" / str(old)).exists()
    assert engine.observe(old).phase is Phase.ABSENT
    assert engine.logs(old) == b""
    assert engine.logs(new) == b"new\n"
    assert [path.name for path in world.root.iterdir() if path.name.startswith(".new-")] == []
