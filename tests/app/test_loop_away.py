"""The loop while the cluster does not answer."""

from datetime import timedelta
from typing import Any

from tests.simulation.world import World

from sublet.app.loop import Control
from sublet.core.db import Database
from sublet.core.errors import Unavailable
from sublet.engine.port import Phase
from sublet.engine.simulated import SimulatedEngine
from sublet.leases import admission, store
from sublet.leases.lease import State
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.market.price import Tier


class Reticent:
    """An engine whose cluster can be made not to answer; what runs there runs on."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.away = False

    def __getattr__(self, name: str) -> Any:
        if self.away and name != "extend":  # that needs no answer: the fence lies elsewhere
            raise Unavailable("nobody answers")
        return getattr(self.engine, name)


def test_leases_are_paid_and_fenced_while_nobody_answers(db: Database) -> None:
    world = World(1, db, trouble=False)
    engine = Reticent(SimulatedEngine(world.engine.nodes(), world.clock))
    control = Control(
        db=db, engine=engine, clock=world.clock, first_notice_seconds=10, replicas=None
    )
    control.tick()
    tenant = world._new_tenant("patient", 10_000)
    pool = world.engine.nodes()[0].gpu_model
    request = Request(
        pool=pool, gpus=1, tier=Tier.ON_DEMAND, max_duration=timedelta(hours=1),
        spec=Spec(command=["sleep", "3600"]),
    )  # fmt: skip
    with db.transaction() as tx:
        lease = admission.admit(tx, tenant, request, jobs=[], now=world.clock.now())
    for _ in range(5):
        control.tick()
        world.clock.advance(timedelta(seconds=1))
    engine.away = True
    for _ in range(200):
        world.clock.advance(timedelta(seconds=1))
        try:
            control.tick()
        except Unavailable:
            continue
        raise AssertionError("it answered")
    engine.away = False
    control.tick()
    with db.transaction() as tx:
        now = store.get(tx, lease.id)
    assert now.state is State.RUNNING
    assert now.paid_until is not None and now.paid_until > world.clock.now()
    assert engine.observe(lease.id).phase is Phase.RUNNING
