"""The disk under the engine is full: what runs runs on, and ends as it must."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.harness import DEAF, LocalHarness, local, notice
from tests.faults.disk import Disk, small_disk

from sublet.core.errors import Unavailable
from sublet.core.process import wait_for
from sublet.engine.port import Phase


@pytest.fixture
def disk(folder: Path) -> Iterator[Disk]:
    with small_disk(folder / "disk", megabytes=4) as made:
        yield made


@pytest.fixture
def world(disk: Disk) -> Iterator[LocalHarness]:
    with local(disk.root / "engine", sandboxed=False) as harness:
        try:
            yield harness
        finally:
            disk.empty()


def test_what_is_paid_for_on_a_full_disk_runs_on(disk: Disk, world: LocalHarness) -> None:
    id_ = world.start("sleep", "60", seconds=2)
    world.wait_for(id_, Phase.RUNNING)
    first_fence = time.monotonic() + 2
    disk.fill()
    world.engine.extend(id_, deadline=world.in_(60))
    assert wait_for(lambda: time.monotonic() > first_fence + 0.5, wait_seconds=5)
    assert world.engine.observe(id_).phase is Phase.RUNNING
    # And what is not paid any more ends.
    world.engine.extend(id_, deadline=world.in_(0.2))
    assert wait_for(lambda: world.engine.observe(id_).phase is Phase.EXITED, wait_seconds=10)
    seen = world.engine.observe(id_)
    assert seen.exit_code == 137 and seen.started_at is not None
    assert seen.detail == "it reached its deadline and was killed"


def test_how_it_ended_is_not_lost_on_a_full_disk(disk: Disk, world: LocalHarness) -> None:
    id_ = world.start("sh", "-c", "until test -e ../../go; do sleep 0.05; done; exit 5")
    world.wait_for(id_, Phase.RUNNING)
    (world.root / "go").touch()
    disk.fill()
    assert wait_for(lambda: world.engine.observe(id_).phase is Phase.EXITED, wait_seconds=10)
    assert world.engine.observe(id_).exit_code == 5
    status = json.loads((world.folder(id_) / "status.json").read_bytes())
    assert status["started_at"] < status["exited_at"]


def test_what_must_go_is_gone_in_time_though_it_cannot_be_told(
    disk: Disk, world: LocalHarness
) -> None:
    id_ = world.start(*DEAF)
    world.wait_for(id_, Phase.RUNNING)
    disk.fill()
    with pytest.raises(Unavailable, match="No space left on device"):
        world.engine.stop(id_, notice=notice(world.in_(0), grace_seconds=1))
    assert wait_for(lambda: world.engine.observe(id_).phase is Phase.EXITED, wait_seconds=10)


def test_nothing_starts_on_a_full_disk_and_all_of_it_does_afterwards(
    disk: Disk, world: LocalHarness
) -> None:
    disk.fill()
    workload = world.workload("sh", "-c", "exit 3")
    for _ in range(2):
        with pytest.raises(Unavailable, match="No space left on device"):
            world.engine.start(workload, deadline=world.in_(60))
    assert world.engine.observe(workload.id).phase is Phase.ABSENT
    disk.empty()
    assert world.engine.start(workload, deadline=world.in_(60))
    world.wait_for(workload.id, Phase.EXITED)
    assert world.engine.observe(workload.id).exit_code == 3
