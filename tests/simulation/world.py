"""A small world in one process, on a clock moved by hand: same seed, same history.

The control plane is the real one, and so is PostgreSQL. Only the cluster is simulated, and
the dice decide what tenants and internal teams do, what breaks, and when the control plane
dies between two of its calls.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final
from uuid import UUID

from sublet.app import bootstrap
from sublet.app.audit import audit
from sublet.app.loop import Control
from sublet.core.clock import ManualClock
from sublet.core.db import Database, Tx
from sublet.core.errors import Refused, Unavailable, Unpaid
from sublet.core.ids import derived_id
from sublet.core.money import Money
from sublet.engine.port import Node, Observation, Workload
from sublet.engine.simulated import Faults, SimulatedEngine
from sublet.leases import admission, service, store
from sublet.leases.lease import EndReason, Lease, LeaseId, State
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.market.price import Tier
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
POOL: Final = "h200"
GPUS: Final = 16
NOTICE: Final = timedelta(seconds=10)
SLACK: Final = timedelta(seconds=2)  # the loop's own time: here its longest step
SECOND: Final = timedelta(seconds=1)
FAULTS: Final = Faults(
    unavailable=0.002,
    slow_start=0.2,
    slow_start_most=40 * SECOND,
    failed_start=0.06,
    lost=0.15,
    lost_most=120 * SECOND,
    deaf=0.25,
    obeys_most=15 * SECOND,
)

logging.getLogger("sublet").setLevel(logging.CRITICAL)  # it would print every decision


class Crash(BaseException):
    """The control plane is gone, here and now; nothing of it gets to clean up."""


class Fuse:
    """Burns one call at a time while it is lit; at its end the control plane is gone."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.left = None
                raise Crash


class FragileDatabase:
    """Dies before a transaction, before its commit, or after it with nobody told."""

    def __init__(self, db: Database, fuse: Fuse) -> None:
        self._db = db
        self._fuse = fuse

    @contextmanager
    def transaction(self, name: str | None = None) -> Iterator[Tx]:
        self._fuse.burn()
        with self._db.transaction(name) as tx:
            yield tx
            self._fuse.burn()
        self._fuse.burn()


class FragileEngine:
    """Dies before a call took effect, or after it with nobody told."""

    def __init__(self, engine: SimulatedEngine, fuse: Fuse) -> None:
        self._engine = engine
        self._fuse = fuse

    def __getattr__(self, name: str) -> object:
        call = getattr(self._engine, name)

        def fragile(*args: object, **kwargs: object) -> object:
            self._fuse.burn()
            answer = call(*args, **kwargs)
            self._fuse.burn()
            return answer

        return fragile


@dataclass(slots=True)
class Waiting:
    """The internal job at the head of the queue, since it fitted beside the other jobs."""

    job: UUID
    since: datetime
    excused: timedelta  # of the control plane's trouble, what was before


@dataclass(slots=True)
class Seen:
    """What the engine itself knows of one workload, faults aside."""

    workload: Workload
    internal: bool
    submitted_at: datetime
    held_from: datetime | None
    look: Observation

    @property
    def holds(self) -> bool:
        return self.held_from is not None and self.look.exited_at is None

    @property
    def waits(self) -> bool:
        return self.internal and self.held_from is None and self.look.exited_at is None


class World:
    def __init__(self, seed: int, db: Database, *, trouble: bool = True) -> None:
        self.dice = Random(seed)
        self.db = db
        self.trouble = trouble
        self.clock = ManualClock(START)
        nodes = [
            Node(name=name, gpu_model=POOL, gpus=GPUS // 2, memory_bytes=1 << 40) for name in "ab"
        ]
        faults = FAULTS if trouble else replace(FAULTS, unavailable=0.0)
        self.engine = SimulatedEngine(nodes, self.clock, Random(seed + 1), faults=faults)
        self.fuse = Fuse()
        self.control = self._new_control()
        self.happened: Counter[str] = Counter()
        self.paid: Counter[UUID] = Counter()  # nanos that each tenant paid in
        self.payments = 0
        self.downtime = timedelta()
        self.away: list[tuple[datetime, datetime]] = []  # when nobody reconciled
        self.down = False
        self.waiting: Waiting | None = None
        self.longest_wait = timedelta()
        with db.transaction() as tx:
            house = tenants.create_tenant(tx, bootstrap.HOUSE, now=START)
            bootstrap.open_accounts(tx, house)
        # Cents buy minutes: one GPU-minute costs two cents interruptible and four on demand.
        self.tenants = [
            self._new_tenant(name, cents)
            for name, cents in [("rich", 100_000), ("careful", 60), ("poor", 9), ("broke", 0)]
        ]
        self.asked: list[tuple[Tenant, Request]] = []
        self._pass()  # the first look makes the pool and its prices

    def _new_control(self) -> Control:
        return Control(
            db=FragileDatabase(self.db, self.fuse),  # type: ignore[arg-type]
            engine=FragileEngine(self.engine, self.fuse),  # type: ignore[arg-type]
            clock=self.clock,
            first_notice_seconds=int(NOTICE.total_seconds()),
            replicas=None,
        )

    def _new_tenant(self, name: str, cents: int) -> Tenant:
        with self.db.transaction() as tx:
            tenant = tenants.create_tenant(tx, name, now=START)
            bootstrap.open_accounts(tx, tenant)
        if cents:
            self._pay_in(tenant, cents)
        return tenant

    def _pay_in(self, tenant: Tenant, cents: int) -> None:
        self.payments += 1
        amount = Money(cents * 10_000_000)
        with self.db.transaction() as tx:
            bootstrap.top_up(tx, tenant, amount, payment=self.payments, now=self.clock.now())
        self.paid[tenant.id] += amount.nanos

    # ---- one step of everything

    def tick(self) -> None:
        step = timedelta(seconds=self.dice.uniform(0.2, 2.0))
        if self.trouble and self._happens(0.004):
            # Nobody reconciles for a while: the fences must hold.
            step = timedelta(seconds=self.dice.uniform(5, 150))
            self.happened["outage"] += 1
            self.down = True
        before = self.down
        self.clock.advance(step)
        self._tenants_act()
        self._internal_teams_act()
        if self.trouble and self._happens(0.03):
            self.fuse.left = self.dice.randint(1, 90)
        self.down = not self._pass()
        if before or self.down:
            self.downtime += step
            self.away.append((self.clock.now() - step, self.clock.now()))
        self.check()

    def _pass(self) -> bool:
        """Let the control plane do one pass; False when it could not end it."""
        try:
            self.control.tick()
        except Unavailable:
            self.happened["unavailable"] += 1
        except Crash:
            self.happened["crash"] += 1
            self.control = self._new_control()
        else:
            return True
        return False

    def _happens(self, probability: float) -> bool:
        return self.dice.random() < probability

    def _tenants_act(self) -> None:
        if self._happens(0.3):
            request = Request(
                id=LeaseId(self._id()),
                pool=POOL,
                gpus=self.dice.choice([1, 1, 2, 3, 4, 8]),
                tier=self.dice.choice([Tier.INTERRUPTIBLE, Tier.ON_DEMAND]),
                max_duration=self.dice.choice([1, 7, 45, 60, 61, 120, 300, 3600]) * SECOND,
                spec=Spec(command=self._command()),
            )
            self._ask(self.dice.choice(self.tenants), request)
        if self.asked and self._happens(0.03):
            self._ask(*self.dice.choice(self.asked))  # a client that was not sure
        if self.asked and self._happens(0.06):
            tenant, request = self.dice.choice(self.asked[-8:])
            assert request.id is not None
            with self.db.transaction() as tx:
                service.check_owner(tx, request.id, tenant.id)
                store.ask_release(tx, request.id, EndReason.RELEASED)
        if self._happens(0.02):
            self._pay_in(self.dice.choice(self.tenants[1:]), self.dice.randint(1, 40))

    def _command(self) -> list[str]:
        sleep = ["sleep", str(self.dice.randint(0, 200))]
        return self.dice.choice([["serve"], ["serve"], sleep, ["true"], ["false"]])

    def _ask(self, tenant: Tenant, request: Request) -> None:
        try:
            jobs = self.engine.internal_jobs()
            with self.db.transaction() as tx:
                lease = admission.admit(tx, tenant, request, jobs=jobs, now=self.clock.now())
            assert lease.id == request.id
        except Unpaid:
            self.happened["unpaid"] += 1
        except Refused:
            self.happened["refused"] += 1
        except Unavailable:
            pass
        else:
            if (tenant, request) in self.asked:
                self.happened["repeated"] += 1
            else:
                self.asked.append((tenant, request))

    def _internal_teams_act(self) -> None:
        if self._happens(0.02):
            for _ in range(self.dice.randint(1, 4)):
                self.happened["internal_job"] += 1
                gpus = self.dice.choice([1, 2, 4, 8, 8, GPUS])
                job = Workload(
                    id=self._id(),
                    gpu_model=POOL,
                    gpus=gpus,
                    command=["sleep", str(self.dice.randint(1, 30))],
                    sandboxed=False,
                )
                now = self.clock.now()
                self.engine.submit_internal(job, name="training", submitted_at=now)
        if self._happens(0.01):
            jobs = [seen for seen in self.truth() if seen.internal and seen.look.exited_at is None]
            if jobs:
                self.engine.cancel_internal(self.dice.choice(jobs).workload.id)

    def _id(self) -> UUID:
        return UUID(int=self.dice.getrandbits(128), version=4)

    # ---- what must hold, whatever happened

    def truth(self) -> list[Seen]:
        """Return every workload as the engine knows it, in the order they came."""
        now = self.clock.now()
        return [
            Seen(
                workload=job.workload,
                internal=job.internal,
                submitted_at=job.submitted_at,
                held_from=job.slots_at,
                look=job.look(now),
            )
            for job in self.engine._jobs.values()
        ]

    def check(self) -> None:
        everything = self.truth()
        in_use = sum(seen.workload.gpus for seen in everything if seen.holds)
        assert in_use <= GPUS, "a GPU was given to two"
        self._check_internal_first(everything)
        with self.db.transaction() as tx:
            live = {lease.id for lease in store.list_live(tx)}
            books = tx.execute(_BOOKS).fetchone()
        for seen in everything:
            if not seen.internal and seen.holds:
                assert seen.workload.id in live, "an ended lease still runs"
        assert books == {"overspent": 0, "posted": 0, "pending": 0, "unexplained": 0}

    def _check_internal_first(self, everything: list[Seen]) -> None:
        now = self.clock.now()
        queue = [seen for seen in everything if seen.waits]
        head = min(queue, key=lambda seen: seen.submitted_at, default=None)
        internal = sum(seen.workload.gpus for seen in everything if seen.internal and seen.holds)
        if head is None or internal + head.workload.gpus > GPUS:
            self.waiting = None  # nobody waits for leases
            return
        if self.waiting is None or self.waiting.job != head.workload.id:
            # If it waited before, then for other internal jobs; those are none of our business.
            self.waiting = Waiting(job=head.workload.id, since=now, excused=self.downtime)
        waited = now - self.waiting.since
        excused = self.downtime - self.waiting.excused
        self.longest_wait = max(self.longest_wait, waited - excused)
        assert waited <= NOTICE + SLACK + excused, "an internal job waits for leases"

    def finish(self) -> None:
        """Let everything leave, and check the whole record against what really happened."""
        self.engine._faults = Faults()
        self.fuse.left = None
        for seen in self.truth():
            if seen.internal:
                self.engine.cancel_internal(seen.workload.id)
        self.control.stopping = True
        for _ in range(60):
            self.clock.advance(SECOND)
            assert self._pass()
            self.check()
            if self.control.idle() and not any(seen.holds for seen in self.truth()):
                break
        self.clock.advance(60 * SECOND)
        assert self._pass()
        self._check_record()
        self._check_audit()

    def _check_audit(self) -> None:
        findings = audit(self.db, clock=self.clock)
        # The auditor cannot know when the control plane was away; we do.
        excused = self.excused_jobs()
        left = [
            difference.what
            for difference in findings.differences
            if difference.law != "internal_first"
            or not any(str(job) in difference.what for job in excused)
        ]
        assert not left, "\n".join(left)
        assert findings.counts["no_double_sale"]["lease_gpu_seconds"] > 0

    def excused_jobs(self) -> set[UUID]:
        """Return the internal jobs that waited while the control plane was away."""
        return {
            seen.workload.id
            for seen in self.truth()
            if seen.internal
            and any(
                start < (seen.held_from or seen.look.exited_at or self.clock.now())
                and seen.submitted_at < end
                for start, end in self.away
            )
        }

    def _check_record(self) -> None:
        ran = {seen.workload.id: seen.look for seen in self.truth() if not seen.internal}
        with self.db.transaction() as tx:
            leases = [store.get(tx, request.id) for _, request in self.asked if request.id]
            rows = tx.execute(_BILLED).fetchall()
            money = {row["tenant_id"]: row for row in tx.execute(_MONEY).fetchall()}
            holds = tx.execute("SELECT * FROM open_hold").fetchall()
        billed = {row["lease_id"]: row for row in rows}
        assert holds == []
        for lease in leases:
            assert lease.state is State.ENDED and lease.end_reason is not None
            self.happened[lease.end_reason] += 1
            seconds = billed[lease.id]["gpu_seconds"] // lease.gpus if lease.id in billed else 0
            look = ran.get(lease.id)
            if look is None or look.started_at is None:
                assert seconds == 0, "billed, and it never ran"
                continue
            assert look.exited_at is not None
            assert seconds <= (look.exited_at - look.started_at) // SECOND, "billed and not run"
            assert lease.paid_until is None or look.exited_at <= lease.paid_until + lease.notice, (
                "it ran on unpaid"
            )
            self._check_credit(lease, seconds, billed)
        for tenant in self.tenants:
            row = money[tenant.id]
            assert row["charged"] - row["credited"] == self.paid[tenant.id] - row["wallet"]
            assert row["charged"] - row["credited"] == row["revenue"]

    def _check_credit(self, lease: Lease, seconds: int, billed: dict[UUID, dict[str, int]]) -> None:
        """What was left of a promise that was broken came back; no other lease got anything."""
        with self.db.transaction() as tx:
            row = tx.execute(
                "SELECT amount_nanos FROM transfer WHERE id = %s",
                [derived_id(lease.id, "credit", "reclaimed")],
            ).fetchone()
        credited = 0 if row is None else int(row["amount_nanos"])
        reclaimed = lease.end_reason is EndReason.RECLAIMED and lease.tier is Tier.ON_DEMAND
        if reclaimed and lease.stopped_at is not None and seconds:
            assert lease.firm is not None
            # Each minute was rounded by itself, and the credit once.
            charged = billed[lease.id]["nanos"]
            promised = lease.firm // SECOND
            left = max(promised - seconds, 0)
            assert abs(charged * left - credited * seconds) <= 10 * promised, (
                "a firm lease gave way for nothing"
            )
            self.happened["credited"] += 1
        else:
            assert credited == 0


_BOOKS: Final = """
SELECT (SELECT count(*) FROM account
         WHERE prepaid AND debits_posted + debits_pending > credits_posted)           AS overspent,
       (SELECT sum(debits_posted - credits_posted)::bigint FROM account)               AS posted,
       (SELECT sum(debits_pending - credits_pending)::bigint FROM account)             AS pending,
       ((SELECT sum(debits_pending) FROM account)
        - (SELECT coalesce(sum(t.amount_nanos), 0)
             FROM open_hold o JOIN transfer t ON t.id = o.transfer_id))::bigint        AS unexplained
"""
_BILLED: Final = """
SELECT u.lease_id, sum(u.gpu_seconds)::bigint AS gpu_seconds, sum(c.amount_nanos)::bigint AS nanos
  FROM usage u JOIN charge c ON c.usage_id = u.id
 GROUP BY u.lease_id
"""
_MONEY: Final = """
SELECT n.id AS tenant_id,
       (w.credits_posted - w.debits_posted)::bigint AS wallet,
       (r.credits_posted - r.debits_posted)::bigint AS revenue,
       (SELECT coalesce(sum(amount_nanos), 0) FROM charge c WHERE c.tenant_id = n.id)::bigint AS charged,
       (SELECT coalesce(sum(amount_nanos), 0) FROM transfer t
         WHERE t.credit_account = w.id AND t.reason = 'credit')::bigint AS credited
  FROM tenant n
  JOIN account w ON w.code = 'tenant:' || n.id || ':wallet'
  JOIN account r ON r.code = 'tenant:' || n.id || ':revenue'
"""
