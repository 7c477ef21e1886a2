"""A notice has its own end, whoever is there to see it."""

from collections.abc import Iterator

import pytest
from tests.core.databases import fresh
from tests.simulation.shop import NOON, SECOND, World

from sublet.app.loop import Control
from sublet.engine.simulated import Fate
from sublet.leases.lease import EndReason, State


@pytest.fixture
def world(postgres_url: str, template: str) -> Iterator[World]:
    with fresh(postgres_url, template) as db:
        made = World(db)
        made.engine._fate = lambda _workload: Fate(obeys_after=None)  # deaf to every SIGTERM
        yield made


def test_the_end_of_a_notice_survives_a_restart_of_the_control_plane(world: World) -> None:
    sold = world.lease(8)
    world.until(NOON + 5 * SECOND)
    job = world.internal(8)
    world.until(NOON + 8 * SECOND)
    told = world.show(sold)
    assert (told.state, told.end_reason) == (State.DRAINING, EndReason.RECLAIMED)
    assert told.noticed_at is not None and told.stops_at == told.noticed_at + 10 * SECOND
    world.control = Control(  # another process, that knows only what is stored
        db=world.db, engine=world.engine, clock=world.clock, first_notice_seconds=10, replicas=None
    )
    world.until(told.stops_at - SECOND)
    assert world.show(sold).stops_at == told.stops_at, "it does not begin anew"
    assert world.engine.held("h200") == 8
    world.until(told.stops_at + SECOND)
    ended = world.show(sold)
    assert (ended.state, ended.since) == (State.ENDED, told.stops_at)
    assert world.engine.observe(job).started_at is not None
    world.engine.cancel_internal(job)
    world.until(world.clock.now() + 10 * SECOND)
    world.finish()
