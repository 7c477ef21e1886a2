"""Firm windows as reservations in Slurm: pure rules, then a real cluster."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from tests.engine.slurm_harness import SlurmHarness, slurm
from tests.slurm.cluster import Cluster, until
from tests.slurm.control import Control

from sublet.core.ids import new_id
from sublet.engine.port import Phase, Window
from sublet.engine.slurm.adapter import SlurmEngine
from sublet.engine.slurm.reading import SlurmJob, SlurmNode
from sublet.engine.slurm.settings import Windows
from sublet.engine.slurm.view import Demand
from sublet.engine.slurm.windows import AHEAD, FENCE, KEPT_OUT, Kept, beside, overridden, plan, read

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
NODES = [
    SlurmNode(
        name=f"n{number}", state="idle", gpu_model="h200", gpus=8, cpus=64, memory_bytes=1 << 30,
        address=f"n{number}", reason="",
    )
    for number in range(1, 5)
]  # fmt: skip


def window(gpus: int = 16, *, start: datetime = NOON, number: int = 1) -> Window:
    return Window(
        id=UUID(int=number), gpu_model="h200", gpus=gpus, starts_at=start, ends_at=start + HOUR
    )


def planned(
    sold: Sequence[Window],
    *,
    kept: Sequence[Kept] = (),
    nodes: Sequence[SlurmNode] = NODES,
    draws: dict[UUID, frozenset[str]] | None = None,
    internal: Sequence[str] = (),
    yielding: Sequence[str] = (),
    mode: Windows = Windows.HOLD,
    now: datetime = NOON,
) -> list[Kept]:
    return plan(
        sold, kept, nodes, draws=draws or {}, internal=frozenset(internal),
        yielding=frozenset(yielding), mode=mode, grace_seconds=10, now=now,
    )  # fmt: skip


def test_a_window_that_is_held_stands_from_its_sale_to_its_end_on_whole_nodes() -> None:
    (made,) = planned([window(gpus=20)], now=NOON - 24 * HOUR, internal=["n1"])
    assert (made.starts_at, made.ends_at) == (NOON, NOON + HOUR + 310 * SECOND)
    assert made.nodes == {"n2", "n3"}  # four GPUs are no node
    assert planned([window(gpus=4)]) == []
    assert planned([window()], now=NOON + HOUR) == []


def test_windows_at_one_time_share_no_node_and_those_apart_may() -> None:
    later = window(number=3, start=NOON + 2 * HOUR)
    both = planned([window(), window(number=2), later])
    assert len(both) == 3
    assert not both[0].nodes & both[1].nodes
    assert both[2].nodes == both[0].nodes


def test_a_window_that_yields_stands_no_longer_than_somebody_looks_after_it() -> None:
    def made(now: datetime, *kept: Kept, yielding: Sequence[str] = ()) -> list[Kept]:
        return planned([window()], kept=kept, mode=Windows.YIELD, now=now, yielding=yielding)

    assert made(NOON - AHEAD - SECOND) == []
    (first,) = made(NOON - AHEAD)
    assert first.ends_at == NOON + FENCE
    assert made(NOON + 19 * SECOND, first) == [first]
    (renewed,) = made(NOON + 30 * SECOND, first)
    assert renewed.ends_at == NOON + 30 * SECOND + FENCE
    assert made(NOON + 30 * SECOND, renewed, yielding=["h200"]) == []
    (last,) = made(NOON + HOUR - SECOND, renewed)
    assert last.ends_at == NOON + HOUR


def test_a_reservation_follows_its_leases_and_leaves_a_node_that_is_down() -> None:
    (before,) = planned([window()])
    assert before.nodes == {"n1", "n2"}
    moved = planned([window()], kept=[before], draws={UUID(int=1): frozenset({"n4"})})
    assert moved[0].nodes == {"n1", "n4"}
    down = [replace(NODES[0], state="down"), *NODES[1:]]
    assert planned([window()], kept=[before], nodes=down)[0].nodes == {"n2", "n3"}


def demand(gpus: int, *, waits: bool, reason: str = "Resources", since: datetime = NOON) -> Demand:
    job = SlurmJob(
        key=str(gpus), name="job", partitions=("internal",),
        state="PENDING" if waits else "RUNNING", reason=reason, submitted_at=since,
        eligible_at=since, started_at=None if waits else since, ended_at=None, preempted=False,
        gpus=gpus, gpu_model="h200", cpus=1, nodes=() if waits else ("n4",), exit_code=None,
        restarts=0,
    )  # fmt: skip
    return Demand(job=job, gpu_model="h200", gpus=gpus, waits=waits)


@pytest.mark.parametrize(
    ("jobs", "now", "urgent"),
    [
        ([demand(8, waits=True)], NOON, False),  # beside sixteen GPUs that are kept
        ([demand(24, waits=True)], NOON, True),
        ([demand(16, waits=False), demand(8, waits=True)], NOON, True),
        ([demand(24, waits=False)], NOON, False),  # nobody waits
        ([demand(8, waits=True, reason=KEPT_OUT)], NOON, True),
        ([demand(8, waits=True)], NOON + 16 * SECOND, True),  # whatever it is that keeps it
    ],
)
def test_internal_jobs_override_windows_when_nothing_else_serves_them(
    jobs: list[Demand], now: datetime, urgent: bool
) -> None:
    found = overridden([window()], jobs, NODES, grace_seconds=10, now=now)
    assert found == ({"h200"} if urgent else frozenset())


def test_who_waits_for_nodes_that_are_held_waits_for_nothing_of_ours() -> None:
    kept = planned([window()])
    small, large = demand(8, waits=True), demand(24, waits=True)
    assert beside([small, large], kept, NODES) == [small]
    running = demand(8, waits=False)
    assert beside([running, small, large], kept, NODES) == [running, small]
    assert beside([small, large], [], NODES) == [small, large]


def test_reservations_of_others_are_none_of_ours() -> None:
    ours = (
        "ReservationName=sublet-00000000-0000-0000-0000-000000000001 StartTime=2026-01-01T12:00:05"
        " EndTime=2026-01-01T13:00:05 Nodes=n[1-2] PartitionName=sublet Flags=FLEX State=ACTIVE"
    )
    text = "\n".join(
        (ours, ours.replace("=sublet ", "=other "), ours.replace("sublet-0", "root_0"))
    )
    found = read(text, partition="sublet", ahead=5 * SECOND)
    assert found == [
        Kept(window=UUID(int=1), starts_at=NOON, ends_at=NOON + HOUR,
             nodes=frozenset({"n1", "n2"}), active=True)
    ]  # fmt: skip
    assert read("No reservations in the system\n", partition="sublet", ahead=SECOND) == []


# ---- a real cluster


Make = Callable[[Windows], SlurmHarness]


@pytest.fixture
def world(
    four_nodes: Cluster, folder: Path, request: pytest.FixtureRequest
) -> Iterator[SlurmHarness]:
    with slurm(four_nodes, folder, sandboxed=False, windows=request.param) as harness:
        try:
            yield harness
        finally:
            keep(harness, [], lambda: not reservations(four_nodes))


def reservations(on: Cluster) -> list[str]:
    shown = on.run("scontrol", "-o", "show", "reservation").splitlines()
    # Slurm goes on to list for half a minute what is over.
    now = datetime.now(UTC)
    found = read("\n".join(shown), partition="sublet", ahead=timedelta(0))
    return [one.name for one in found if one.ends_at > now]


def keep(world: SlurmHarness, sold: Sequence[Window], what: Callable[[], object]) -> None:
    """Do as the loop does until something is so."""

    def kept() -> bool:
        world.engine.tick()
        world.engine.reserve(sold)
        return bool(what())

    until(kept)


def sold_now(world: SlurmHarness, gpus: int) -> Window:
    now = world.clock.now().replace(microsecond=0)
    return Window(id=new_id(), gpu_model="h200", gpus=gpus, starts_at=now, ends_at=now + HOUR)


def running(on: Cluster, jobs: Sequence[str]) -> int:
    return [on.state(job) for job in jobs].count("RUNNING")


@pytest.mark.parametrize("world", [Windows.HOLD], indirect=True)
def test_a_window_that_is_held_keeps_internal_jobs_out_and_ends_when_it_is_given_up(
    world: SlurmHarness,
) -> None:
    on = world.cluster
    sold = sold_now(world, 16)
    keep(world, [sold], lambda: reservations(on))
    jobs = [on.sbatch("sleep 600", gpus=8) for _ in range(3)]
    keep(world, [sold], lambda: running(on, jobs) == 2)
    # The third waits for what is held: that is no reason to reclaim anything.
    assert sorted(on.state(job) for job in jobs) == ["PENDING", "RUNNING", "RUNNING"]
    world.engine.refresh()
    assert all(job.running for job in SlurmEngine.internal_jobs(world.engine))
    outside = world.workload("sleep", "60", gpus=8, gpu_model="h200")
    assert not world.engine.start(outside, deadline=world.in_(60))
    drawn = world.workload("sleep", "60", gpus=16, gpu_model="h200", window=sold.id)
    assert world.engine.start(drawn, deadline=world.in_(60))
    world.wait_for(drawn.id, Phase.RUNNING)
    # A control plane that knows of no window finds what another one left, and takes it away.
    world.engine = world.another()
    keep(world, [], lambda: not reservations(on))
    until(lambda: running(on, jobs) == 3)  # by Slurm's own preemption, which has its nodes again
    world.wait_for(drawn.id, Phase.EXITED)
    assert world.engine.observe(drawn.id).reclaimed_at is not None


@pytest.mark.parametrize("world", [Windows.YIELD], indirect=True)
def test_a_window_that_yields_steers_slurm_and_gives_way_when_nothing_else_does(
    world: SlurmHarness,
) -> None:
    on = world.cluster
    sold = sold_now(world, 16)
    keep(world, [sold], lambda: reservations(on))
    drawn = world.workload("sleep", "60", gpus=16, gpu_model="h200", window=sold.id)
    assert world.engine.start(drawn, deadline=world.in_(60))
    world.wait_for(drawn.id, Phase.RUNNING)
    others = [world.start("sleep", "60", gpus=8, gpu_model="h200") for _ in range(2)]
    for id_ in others:
        world.wait_for(id_, Phase.RUNNING)
    # The youngest lease is Slurm's own choice; the firm one is the oldest and is not even asked.
    first = on.sbatch("sleep 600", "--nodes=2", gpus=8)
    keep(world, [sold], lambda: on.state(first) == "RUNNING")
    assert world.phase(drawn.id) is Phase.RUNNING
    assert reservations(on)
    second = on.sbatch("sleep 600", gpus=8)
    keep(world, [sold], lambda: not reservations(on))
    keep(world, [sold], lambda: on.state(second) == "RUNNING")
    world.wait_for(drawn.id, Phase.EXITED)
    assert world.engine.observe(drawn.id).reclaimed_at is not None


@pytest.mark.parametrize("world", [Windows.HOLD], indirect=True)
def test_leases_may_use_the_nodes_of_a_window_that_has_not_begun(world: SlurmHarness) -> None:
    on = world.cluster
    soon = sold_now(world, 32)
    later = replace(soon, starts_at=soon.starts_at + HOUR, ends_at=soon.ends_at + HOUR)
    keep(world, [later], lambda: reservations(on))
    ids = [world.start("sleep", "60", gpus=8, gpu_model="h200") for _ in range(4)]
    for id_ in ids:
        world.wait_for(id_, Phase.RUNNING)
    # Given back before it begins: Slurm deletes no reservation that is in use, and ends one.
    keep(world, [], lambda: not reservations(on))
    assert {world.phase(id_) for id_ in ids} == {Phase.RUNNING}


def test_a_window_that_is_sold_is_reserved_found_again_after_a_crash_and_removed_at_its_end(
    four_nodes: Cluster, run_on: Callable[..., Control]
) -> None:
    control = run_on(four_nodes, windows="hold")
    starts_at = datetime.now(UTC).replace(microsecond=0) + 5 * SECOND
    # Long enough to be still there when a busy machine has started Sublet again.
    ends_at = starts_at + 20 * SECOND
    body = {
        "pool": "h200", "gpus": 16,
        "starts_at": starts_at.isoformat(), "ends_at": ends_at.isoformat(),
        "command": ["sleep", "60"],
    }  # fmt: skip
    sold = control.api("POST", "/v1/reservations", body, tenant=True)
    assert "id" in sold, sold
    (name,) = until(lambda: reservations(four_nodes), what="the reservation")
    assert name == f"sublet-{sold['id']}"
    control.kill()
    control.start()
    (lease,) = until(lambda: control.api("GET", "/v1/leases")["items"], what="its lease")
    control.reach(lease["id"], "running")
    assert reservations(four_nodes) == [name]
    assert control.reach(lease["id"], "ended")["end_reason"] == "expired"
    until(lambda: not reservations(four_nodes), what="its reservation to end")
    control.verify()
