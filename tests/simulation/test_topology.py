"""Who gives way on a cluster of several racks, with the real loop."""

from collections.abc import Iterator

import pytest
from tests.core.databases import fresh
from tests.simulation.shop import NOON, POOL, SECOND, World

from sublet.engine.port import Node
from sublet.leases.lease import EndReason


@pytest.fixture
def world(postgres_url: str, template: str) -> Iterator[World]:
    nodes = [
        Node(name=f"n{number}", gpu_model=POOL, gpus=8, memory_bytes=1 << 40, block=rack)
        for number, rack in enumerate(("left", "right", "left", "right"))
    ]
    with fresh(postgres_url, template) as db:
        yield World(db, nodes)


def test_a_job_of_two_nodes_gets_those_of_one_rack(world: World) -> None:
    sold = []
    for _ in range(4):
        world.other = world.new_tenant()  # of four tenants, so that nobody's turn decides
        sold.append(world.lease(8))
        world.until(world.clock.now() + SECOND)
    on = {id_: world.engine.observe(id_).nodes for id_ in sold}
    assert sorted(on.values()) == [("n0",), ("n1",), ("n2",), ("n3",)]
    job = world.internal(16)
    world.until(NOON + 30 * SECOND)
    gone = {on[id_][0] for id_ in sold if world.show(id_).end_reason is EndReason.RECLAIMED}
    assert gone in ({"n0", "n2"}, {"n1", "n3"})
    assert set(world.engine.observe(job).nodes) == gone
    world.finish()
