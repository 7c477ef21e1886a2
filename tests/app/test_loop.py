"""A pass of the loop: whose trouble stops whom."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from tests.core.databases import fresh

from sublet.app import bootstrap
from sublet.app.loop import Control
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.errors import Unavailable
from sublet.core.money import Money
from sublet.engine.port import Node, Observation
from sublet.engine.simulated import SimulatedEngine
from sublet.leases import admission, service, store
from sublet.leases.lease import LeaseId, State
from sublet.leases.store import Spec
from sublet.market.price import Tier
from sublet.tenants import store as tenants

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
POOL = "h200"


class PatchyEngine(SimulatedEngine):
    """Does not answer for some workloads, as when the disk of their folders is full."""

    silent: frozenset[UUID] = frozenset()

    def observe(self, workload: UUID) -> Observation:
        if workload in self.silent:
            raise Unavailable("no space left on device")
        return super().observe(workload)


@pytest.fixture
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        yield database


class World:
    def __init__(self, db: Database) -> None:
        self.db = db
        self.clock = ManualClock(NOON)
        node = Node(name="a", gpu_model=POOL, gpus=8, memory_bytes=1 << 40)
        self.engine = PatchyEngine([node], self.clock)
        self.control = Control(
            db=db, engine=self.engine, clock=self.clock, first_notice_seconds=10, replicas=None
        )
        self.control.tick()
        with db.transaction() as tx:
            self.tenant = tenants.create_tenant(tx, "acme", now=NOON)
            bootstrap.open_accounts(tx, self.tenant)
            bootstrap.top_up(tx, self.tenant, Money(10**9), payment=1, now=NOON)

    def lease(self, number: int) -> LeaseId:
        request = service.Request(
            id=LeaseId(UUID(int=number)), pool=POOL, gpus=1, tier=Tier.INTERRUPTIBLE,
            max_duration=timedelta(hours=1), spec=Spec(command=["x"]),
        )  # fmt: skip
        with self.db.transaction() as tx:
            return admission.admit(tx, self.tenant, request, jobs=[], now=self.clock.now()).id

    def states(self) -> list[State]:
        with self.db.transaction() as tx:
            return [lease.state for lease in store.list_live(tx)]


def test_a_lease_that_cannot_be_reached_holds_up_no_other(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "sublet")
    world = World(db)
    ids = [world.lease(number) for number in range(5)]
    world.engine.silent = frozenset({ids[0], ids[3]})
    world.control.tick()
    stay, go = State.ADMITTED, State.RUNNING
    assert world.states() == [stay, go, go, stay, go]
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["lease.unavailable"] * 2
    world.engine.silent = frozenset()
    world.control.tick()
    assert State.ADMITTED not in world.states()


def test_when_none_can_be_reached_the_pass_is_given_up(db: Database) -> None:
    world = World(db)
    world.engine.silent = frozenset(world.lease(number) for number in range(5))
    with pytest.raises(Unavailable):
        world.control.tick()
