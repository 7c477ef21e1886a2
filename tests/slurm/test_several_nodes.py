"""Leases of more GPUs than one node has, and of whole nodes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.engine.harness import notice
from tests.engine.slurm_harness import SlurmHarness, slurm
from tests.slurm.cluster import Cluster, until
from tests.slurm.control import Control

from sublet.engine.port import Phase, Workload

SCRIPT = """
trap 'echo bye; exit 7' TERM
echo "node $SUBLET_NODE of $SUBLET_NODES has $CUDA_VISIBLE_DEVICES"
while :; do sleep 0.05; done
"""


@pytest.fixture
def world(four_nodes: Cluster, folder: Path) -> Iterator[SlurmHarness]:
    with slurm(four_nodes, folder, sandboxed=True) as harness:
        yield harness


def lease(world: SlurmHarness, script: str, gpus: int) -> Workload:
    return world.workload("sh", "-c", script, gpus=gpus, gpu_model="h200")


def start(world: SlurmHarness, script: str, gpus: int) -> Any:
    workload = lease(world, script, gpus)
    assert world.engine.start(workload, deadline=world.in_(60))
    return workload.id


def nodes_of(world: SlurmHarness, id_: Any) -> list[str]:
    name = f"--name=sublet-{id_}"
    found = world.cluster.run("squeue", "-h", "-t", "R", name, "-o", "%N %D")
    return found.split()


def lines(world: SlurmHarness, id_: Any) -> list[str]:
    return sorted(world.engine.logs(id_).decode().splitlines())


def test_each_node_runs_the_command_is_told_to_go_and_keeps_to_one_log(
    world: SlurmHarness,
) -> None:
    id_ = start(world, SCRIPT, gpus=20)  # on three nodes or more: four have five each
    gpus = "0,1,2,3,4"
    up = [f"{node}: node {node} of 4 has {gpus}" for node in range(4)]
    world.wait_until(lambda: lines(world, id_) == up)
    world.wait_for(id_, Phase.RUNNING)
    assert nodes_of(world, id_) == ["n[1-4]", "4"]
    world.engine.stop(id_, notice=notice(world.clock.now()))
    world.wait_for(id_, Phase.EXITED)
    assert {*up, *(f"{node}: bye" for node in range(4))} <= set(lines(world, id_))
    assert world.engine.observe(id_).exit_code == 7


def test_one_node_that_fails_ends_the_others_and_its_exit_code_counts(
    world: SlurmHarness,
) -> None:
    script = "test $SUBLET_NODE = 0 || exit 3; sleep 60"
    id_ = start(world, script, gpus=16)
    world.wait_for(id_, Phase.EXITED)
    seen = world.engine.observe(id_)
    assert (seen.exit_code, seen.reclaimed_at) == (3, None)
    assert seen.detail == "its command failed on node 1 with exit code 3"


def test_whoever_ignores_the_notice_is_gone_from_every_node(world: SlurmHarness) -> None:
    id_ = start(world, "trap '' TERM; echo up; while :; do sleep 0.05; done", gpus=16)
    world.wait_until(lambda: lines(world, id_) == ["0: up", "1: up"])
    told = notice(world.clock.now(), grace_seconds=1)
    world.engine.stop(id_, notice=told)
    world.wait_for(id_, Phase.EXITED)
    seen = world.engine.observe(id_)
    assert seen.exited_at is not None and seen.exited_at >= told.stops_at
    until(lambda: not world.cluster.run("squeue", "-h", "-s", "-o", "%i"), what="no step left")


def test_a_gang_of_whole_nodes_gives_way_to_an_internal_gang(world: SlurmHarness) -> None:
    id_ = start(world, SCRIPT, gpus=32)
    world.wait_until(lambda: len(lines(world, id_)) == 4)
    assert not world.engine.start(lease(world, "sleep 60", 1), deadline=world.in_(60))
    job = world.cluster.sbatch("sleep 600", "--nodes=2", gpus=8)
    world.engine.refresh()
    world.engine.stop(id_, notice=notice(world.clock.now()))
    until(lambda: world.cluster.state(job) == "RUNNING")
    world.wait_for(id_, Phase.EXITED)
    (held,) = [node for node in _nodes(world) if node[1]]
    assert held == ("running", 16)


def _nodes(world: SlurmHarness) -> list[tuple[str, int]]:
    world.engine.refresh()
    return [
        ("running" if job.running else "waiting", job.gpus if job.exited_at is None else 0)
        for job in super(type(world.engine), world.engine).internal_jobs()
    ]


def test_leases_share_a_node_unless_they_are_to_have_it_alone(world: SlurmHarness) -> None:
    shared = [start(world, "sleep 60", gpus=2) for _ in range(2)]
    alone = replace(lease(world, "sleep 60", gpus=16), exclusive=True)
    assert world.engine.start(alone, deadline=world.in_(60))
    for id_ in (*shared, alone.id):
        world.wait_for(id_, Phase.RUNNING)
    assert len({nodes_of(world, id_)[0] for id_ in shared}) == 1
    asked = world.cluster.run("squeue", "-h", f"--name=sublet-{alone.id}", "-o", "%D %h")
    assert asked.split() == ["2", "NO"], "two nodes, shared with nobody"
    another = replace(lease(world, "sleep 60", 16), exclusive=True)
    assert not world.engine.start(another, deadline=world.in_(60)), "one of the two has others"


def test_a_pool_that_lends_whole_nodes_says_so_and_the_next_lease_has_its_own(
    four_nodes: Cluster, run_on: Callable[..., Control]
) -> None:
    control = run_on(four_nodes)
    before = control.lease("sleep", "60", gpus=2)
    asked = control.api("PATCH", "/v1/pools/h200", {"exclusive": True})
    assert "has 2 GPUs, which are no whole nodes" in asked["error"]["message"]
    changed = control.api("PATCH", "/v1/pools/h200", {"exclusive": True, "confirm": True})
    assert changed["exclusive"] is True
    offers = control.api("GET", "/v1/offers", tenant=True)["items"]
    assert {(one["exclusive"], one["multiple_of"]) for one in offers} == {(True, 8)}
    body = {"command": ["sleep", "60"], "gpus": 2, "max_seconds": 60}
    refused = control.api("POST", "/v1/leases", body, tenant=True)
    assert "whole nodes are sold: a multiple of 8, not 2" in refused["error"]["message"]
    alone = control.lease("sleep", "60", gpus=8)
    for one in (before, alone):
        control.reach(one, "running")
    shown = {
        one: four_nodes.run("squeue", "-h", f"--name=sublet-{one}", "-o", "%h").strip()
        for one in (before, alone)
    }
    assert shown == {before: "OK", alone: "NO"}
    assert [control.show(one)["exclusive"] for one in (before, alone)] == [False, True]
    control.verify()


def test_which_node_a_lease_is_on_and_under_which_switch_is_told(world: SlurmHarness) -> None:
    blocks = {node.name: node.block for node in world.engine.nodes()}
    assert blocks == {"n1": "leaf0", "n2": "leaf1", "n3": "leaf0", "n4": "leaf1"}
    id_ = start(world, SCRIPT, gpus=8)
    world.wait_for(id_, Phase.RUNNING)
    (name,) = world.engine.observe(id_).nodes
    assert nodes_of(world, id_) == [name, "1"]
