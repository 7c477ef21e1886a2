"""Resumable leases, from the reclaim to their return."""

from datetime import timedelta

import pytest
from tests.simulation.shop import POOL
from tests.simulation.shop import World as Shop
from tests.simulation.world import World

from sublet.app.loop import Control
from sublet.core.db import Database
from sublet.core.ids import new_id
from sublet.engine.port import Workload
from sublet.engine.simulated import SimulatedEngine
from sublet.leases import admission, store, webhooks
from sublet.leases.lease import Lease, LeaseId, State
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market.price import Tier
from sublet.tenants.tenant import Tenant

SECOND = timedelta(seconds=1)


class Scene:
    """A quiet cluster, all of which one resumable lease has."""

    def __init__(self, db: Database) -> None:
        self.db = db
        world = World(1, db, trouble=False)
        self.clock = world.clock
        node = world.engine.nodes()[0]
        self.engine = SimulatedEngine([node], self.clock)
        self.control = Control(
            db=db, engine=self.engine, clock=self.clock, first_notice_seconds=10, replicas=None
        )
        self.control.tick()
        request = Request(
            pool=node.gpu_model, gpus=node.gpus, tier=Tier.INTERRUPTIBLE,
            max_duration=3600 * SECOND, spec=Spec(command=["work"]), resumable=True,
        )  # fmt: skip
        tenant = world._new_tenant("patient", 10_000_000)
        with db.transaction() as tx:
            self.lease = admission.admit(tx, tenant, request, jobs=[], now=self.clock.now())
        self.node = node

    def pass_(self, seconds: int) -> None:
        for _ in range(seconds):
            self.control.tick()
            self.clock.advance(SECOND)

    def reclaim(self, *, seconds: int) -> None:
        """Let an internal job take everything for so long."""
        job = Workload(
            id=new_id(), gpu_model=self.node.gpu_model, gpus=self.node.gpus,
            command=["sleep", str(seconds)],
        )  # fmt: skip
        self.engine.submit_internal(job, name="first", submitted_at=self.clock.now())
        self.pass_(5)

    def shown(self, lease: Lease) -> Lease:
        with self.db.transaction() as tx:
            return store.get(tx, lease.id)

    def live(self) -> list[Lease]:
        with self.db.transaction() as tx:
            return store.list_live(tx)


def test_it_comes_back_once_with_the_time_that_was_left(db: Database) -> None:
    scene = Scene(db)
    scene.pass_(100)
    scene.reclaim(seconds=60)
    before = scene.shown(scene.lease)
    assert before.paused and scene.live() == []
    scene.pass_(60)
    (back,) = scene.live()
    assert (back.state, back.resumes) == (State.RUNNING, before.id)
    assert before.stopped_at is not None and before.running_at is not None
    assert back.max_duration == before.max_duration - (before.stopped_at - before.running_at)
    assert not scene.shown(scene.lease).paused


def test_it_comes_back_as_often_as_it_is_reclaimed(db: Database) -> None:
    scene = Scene(db)
    for _ in range(3):
        scene.pass_(30)
        scene.reclaim(seconds=20)
        assert scene.live() == []
        scene.pass_(25)
        assert [lease.state for lease in scene.live()] == [State.RUNNING]


def test_what_was_given_back_while_paused_stays_away(db: Database) -> None:
    scene = Scene(db)
    scene.pass_(10)
    scene.reclaim(seconds=20)
    with db.transaction() as tx:
        assert store.end_pause(tx, scene.lease.id)
    scene.pass_(60)
    assert scene.live() == []


def wait(world: Shop, gpus: int, tenant: Tenant) -> Lease:
    request = Request(
        pool=POOL, gpus=gpus, tier=Tier.INTERRUPTIBLE, max_duration=timedelta(hours=1),
        spec=Spec(command=["serve"]), resumable=True, webhook="https://example.com/notice",
    )  # fmt: skip
    with world.db.transaction() as tx:
        return admission.admit(tx, tenant, request, jobs=[], now=world.clock.now())


def backs(world: Shop) -> dict[LeaseId | None, State]:
    with world.db.transaction() as tx:
        return {one.resumes: one.state for one in store.list_live(tx)}


def test_many_come_back_in_one_transaction_and_who_cannot_pay_keeps_nobody_out(
    db: Database,
) -> None:
    world = Shop(db)
    price = 2 * 10**9  # dollars enough for a minute or so of one GPU
    poor = world.new_tenant(price)
    first = wait(world, 1, poor)
    others = [wait(world, 1, world.acme) for _ in range(7)]
    world.until(world.clock.now() + 5 * SECOND)
    job = world.internal(8)
    world.until(world.clock.now() + 20 * SECOND)
    assert all(world.show(one.id).paused for one in [first, *others])
    with db.transaction() as tx:  # the poor one spends what it had
        wallet = ledger.get_account(tx, poor.wallet)
        bank = ledger.get_account(tx, "house:bank")
        ledger.post(
            tx,
            Transfer(
                id=new_id(), debit_account=wallet.id, credit_account=bank.id,
                amount=wallet.available, reason="refund", happened_at=world.clock.now(),
            ),
            now=world.clock.now(),
        )  # fmt: skip
    world.engine.cancel_internal(job)
    ended_at = world.clock.now()
    asked: list[str] = []
    ask = world.db.transaction
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            world.db, "transaction", lambda *name: asked.append("".join(name)) or ask(*name)
        )
        world.until(ended_at + SECOND)
    assert asked.count("leases.resume") == 2, "one for all, and one for the room that is left"
    assert set(backs(world)) == {one.id for one in others}
    world.until(ended_at + 2 * SECOND)
    assert set(backs(world).values()) == {State.RUNNING}
    assert world.show(first.id).paused, "it comes back when it can pay"
    with db.transaction() as tx:
        for one in store.list_live(tx):
            hook = webhooks.find(tx, one.id)
            assert hook is not None and hook["url"] == "https://example.com/notice"
            assert store.get_spec(tx, one.id).environment["SUBLET_RESUMES"] == str(one.resumes)


def test_who_was_reclaimed_twice_keeps_the_place_of_its_first_request(db: Database) -> None:
    world = Shop(db)
    first = wait(world, 1, world.acme)
    world.until(world.clock.now() + 5 * SECOND)
    later = wait(world, 7, world.acme)
    world.until(world.clock.now() + 5 * SECOND)
    job = world.internal(1)  # takes the one with the least work
    world.until(world.clock.now() + 20 * SECOND)
    assert world.show(first.id).paused and world.show(later.id).state is State.RUNNING
    world.engine.cancel_internal(job)
    world.until(world.clock.now() + 10 * SECOND)
    assert set(backs(world)) == {first.id, None}
    job = world.internal(8)
    world.until(world.clock.now() + 20 * SECOND)
    assert backs(world) == {}
    # There is room for seven: for one of them, and for the other only without it.
    world.engine.cancel_internal(job)
    world.internal(1)
    world.until(world.clock.now() + 20 * SECOND)
    (back,) = backs(world)
    assert back is not None and world.show(LeaseId(back)).resumes == first.id
