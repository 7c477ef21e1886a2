"""Eight GPUs, two tenants and the real loop, to reserve windows on."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sublet.app import bootstrap
from sublet.app.audit import audit
from sublet.app.loop import Control
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.engine.port import Node, Workload
from sublet.engine.simulated import SimulatedEngine
from sublet.leases import admission, booking, service, store
from sublet.leases.booking import Booking
from sublet.leases.lease import Lease, LeaseId
from sublet.leases.reservation import Reservation
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.ledger import store as ledger
from sublet.market.price import Tier
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
POOL = "h200"
GPU_HOUR = 2_000_000_000  # nanos, reserved
WALLET = 10**12
NODE = Node(name="a", gpu_model=POOL, gpus=8, memory_bytes=1 << 40)


class World:
    """Eight GPUs, two tenants, and the loop, once a second."""

    def __init__(self, db: Database, nodes: Sequence[Node] = (NODE,)) -> None:
        self.db = db
        self.clock = ManualClock(NOON)
        self.engine = SimulatedEngine(nodes, self.clock)
        self.control = Control(
            db=db, engine=self.engine, clock=self.clock, first_notice_seconds=10, replicas=None
        )
        self.control.tick()
        with db.transaction() as tx:
            house = tenants.find_tenant(tx, bootstrap.HOUSE)
            if house is None:
                house = tenants.create_tenant(tx, bootstrap.HOUSE, now=NOON)
                bootstrap.open_accounts(tx, house)
        self.acme, self.other = self.new_tenant(), self.new_tenant()

    def new_tenant(self, nanos: int = WALLET) -> Tenant:
        with self.db.transaction() as tx:
            tenant = tenants.create_tenant(tx, f"tenant {new_id()}", now=NOON)
            bootstrap.open_accounts(tx, tenant)
            if nanos:
                bootstrap.top_up(tx, tenant, Money(nanos), payment=1, now=NOON)
        return tenant

    def book(self, tenant: Tenant | None = None, **changes: Any) -> Reservation:
        wanted = Booking(pool=POOL, gpus=4, starts_at=NOON + HOUR, ends_at=NOON + 3 * HOUR)
        with self.db.transaction() as tx:
            return booking.book(
                tx, tenant or self.acme, replace(wanted, **changes), now=self.clock.now()
            )

    def draw(self, sold: Reservation, gpus: int = 4, **changes: Any) -> Lease:
        request = Request(
            pool=POOL, gpus=gpus, tier=Tier.RESERVED, max_duration=service.LONGEST,
            spec=Spec(command=["serve"]), reservation=sold.id,
        )  # fmt: skip
        with self.db.transaction() as tx:
            return booking.draw(
                tx, self.acme, replace(request, **changes), jobs=self.engine.internal_jobs(),
                now=self.clock.now(),
            )  # fmt: skip

    def lease(self, gpus: int, tier: Tier = Tier.INTERRUPTIBLE) -> LeaseId:
        request = Request(
            pool=POOL, gpus=gpus, tier=tier, max_duration=9 * HOUR, spec=Spec(command=["serve"])
        )
        with self.db.transaction() as tx:
            return admission.admit(
                tx, self.other, request, jobs=self.engine.internal_jobs(), now=self.clock.now()
            ).id

    def internal(self, gpus: int) -> UUID:
        job = Workload(id=new_id(), gpu_model=POOL, gpus=gpus, command=["serve"], sandboxed=False)
        self.engine.submit_internal(job, name="training", submitted_at=self.clock.now())
        return job.id

    def until(self, at: datetime, step: timedelta = SECOND) -> None:
        while self.clock.now() < at:
            self.clock.advance(min(step, at - self.clock.now()))
            self.control.tick()

    def show(self, id_: UUID) -> Lease:
        with self.db.transaction() as tx:
            return store.get(tx, LeaseId(id_))

    def wallet(self, tenant: Tenant) -> tuple[int, int]:
        """Return what left it, and what is held in it."""
        with self.db.transaction() as tx:
            found = ledger.get_account(tx, tenant.wallet)
        return WALLET - found.balance.nanos, found.held.nanos

    def finish(self) -> None:
        """Let everything be over, and let the auditor look at it."""
        self.control.stopping = True
        self.until(self.clock.now() + MINUTE, 5 * SECOND)
        self.clock.advance(MINUTE)
        self.control.tick()
        assert audit(self.db, clock=self.clock).differences == []
