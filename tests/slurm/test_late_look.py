"""A pass that decides on an old look, while Slurm goes on: what is noted is what Slurm recorded."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from tests.slurm.cluster import Cluster, until

from sublet.app import bootstrap
from sublet.app.audit import audit
from sublet.app.loop import Control
from sublet.core.clock import SystemClock
from sublet.core.db import Database
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.engine.slurm import looking
from sublet.engine.slurm.adapter import SlurmEngine
from sublet.engine.slurm.settings import SlurmSettings
from sublet.leases import admission, service, store
from sublet.leases.lease import EndReason, Lease, LeaseId, State
from sublet.leases.store import Spec
from sublet.market.price import Tier
from sublet.tenants import store as tenants

GPUS = 8
POLITE = ["sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"]


class World:
    """A control plane whose passes come when the test says so."""

    def __init__(self, cluster: Cluster, folder: Path, db: Database) -> None:
        self.db = db
        self.clock = SystemClock()
        settings = SlurmSettings(shared=folder / "shared", conf=cluster.conf)
        self.engine = SlurmEngine(settings, clock=self.clock, sandbox=None, unsafe_no_sandbox=True)
        self.control = Control(
            db=db, engine=self.engine, clock=self.clock, first_notice_seconds=4, replicas=None
        )
        self.control.tick()
        now = self.clock.now()
        with db.transaction() as tx:
            self.tenant = tenants.create_tenant(tx, "acme", now=now)
            bootstrap.open_accounts(tx, self.tenant)
            bootstrap.top_up(tx, self.tenant, Money(10**12), payment=1, now=now)

    def lease(self) -> LeaseId:
        request = service.Request(
            id=LeaseId(new_id()), pool="h200", gpus=GPUS, tier=Tier.INTERRUPTIBLE,
            max_duration=timedelta(hours=1), spec=Spec(command=POLITE),
        )  # fmt: skip
        with self.db.transaction() as tx:
            return admission.admit(tx, self.tenant, request, jobs=[], now=self.clock.now()).id

    def shown(self, lease: UUID) -> Lease:
        with self.db.transaction() as tx:
            return store.get(tx, LeaseId(lease))

    def passes(self, leases: list[LeaseId], state: State) -> bool:
        self.control.tick()
        return all(self.shown(lease).state is state for lease in leases)


@pytest.fixture
def world(four_nodes: Cluster, folder: Path, db: Database) -> Iterator[World]:
    yield World(four_nodes, folder, db)
    four_nodes.clear()


def test_who_had_gone_before_it_was_told_is_noted_and_billed_so(
    four_nodes: Cluster, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = [world.lease() for _ in range(4)]
    until(lambda: world.passes(leases, State.RUNNING), what="the leases")
    until(lambda: all(b"up" in world.engine.logs(lease) for lease in leases), what="their commands")
    # From here on the controller seems slow, so that one look must do for long.
    world.engine.refresh()
    monkeypatch.setattr(looking, "_YOUNG_SECONDS", 60.0)
    monkeypatch.setattr(looking.Looker, "due", lambda _: False)
    job = four_nodes.sbatch("sleep 600", "--nodes=4", gpus=GPUS)
    until(lambda: four_nodes.state(job) == "RUNNING", what="the internal job")
    time.sleep(2.5)  # more than Slurm's whole seconds hide
    with world.db.transaction() as tx:
        store.ask_all(tx, leases, EndReason.RELEASED)
    world.control.tick()
    told = [world.shown(lease) for lease in leases]
    assert {lease.state for lease in told} == {State.DRAINING}, "none is looked at anew"

    monkeypatch.undo()
    world.engine.refresh()
    assert world.passes(leases, State.ENDED)
    (started,) = {one.started_at for one in world.engine.internal_jobs() if one.gpus == 4 * GPUS}
    assert started is not None
    for lease in leases:
        shown = world.shown(lease)
        assert shown.since <= started
        assert shown.noticed_at is not None and shown.noticed_at > started
        assert shown.stopped_at is not None and shown.stopped_at <= shown.since
    assert audit(world.db, clock=world.clock).differences == []
