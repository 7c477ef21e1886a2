"""Whatever is asked for and however policies change between: nothing is sold beyond the surplus.

The real rules on a real database, with the real loop on a simulated cluster. Before each sale what
may be sold is worked out anew, in the plainest way there is, from the rows and the cluster.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.core.databases import fresh
from tests.simulation.shop import HOUR, MINUTE, NOON, POOL, SECOND, World

from sublet.core.db import Tx
from sublet.core.errors import Invalid, Refused, SubletError, Unconfirmed, Unpaid
from sublet.core.ids import new_id
from sublet.core.money import Money, Rate
from sublet.fleet import store as fleet
from sublet.fleet.pool import QuietHours
from sublet.leases import admission, booking, contracts, policy, reservations, store
from sublet.leases.contract import Contract, Step
from sublet.leases.lease import HOLDING, State
from sublet.leases.reservation import lead
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.market.price import Tier

GPUS = 8
DAY = 24 * HOUR
POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "lendable": st.sampled_from([True, True, False]),
        "lending_limit": st.none() | st.integers(0, GPUS),
        "reserve": st.integers(0, 4),
        "notice_seconds": st.sampled_from([10, 20]),
        "firm_seconds": st.sampled_from([60, 3600, 4 * 3600]),
        "quiet": st.none() | st.just(QuietHours(start=14 * 3600, end=15 * 3600)),
    },
)  # fmt: skip


class Machine(RuleBasedStateMachine):
    fresh: ClassVar[Callable[[], Any]]

    @initialize()
    def open(self) -> None:
        self.context = self.fresh()
        self.world = World(self.context.__enter__())
        self.promises: dict[Any, tuple[Any, ...]] = {}
        self.jobs: list[Any] = []

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            for job in self.jobs:
                self.world.engine.cancel_internal(job)
            self.world.until(self.world.clock.now() + 30 * SECOND)
            self.world.finish()  # whatever was broken was credited once, says the auditor
        finally:
            self.context.__exit__(None, None, None)

    # ---- what is asked for

    @rule(gpus=st.integers(1, GPUS + 1), tier=st.sampled_from([Tier.INTERRUPTIBLE, Tier.ON_DEMAND]))
    def lease(self, gpus: int, tier: Tier) -> None:
        request = Request(
            pool=POOL, gpus=gpus, tier=tier, max_duration=2 * HOUR, spec=Spec(command=["serve"])
        )

        def sell(tx: Tx) -> None:
            idle, firm = self.surplus(tx)
            admission.admit(tx, self.world.other, request, jobs=self.internal_jobs(), now=self.now)
            assert gpus <= idle, "more was sold than is idle"
            if tier is Tier.ON_DEMAND:
                assert gpus <= firm, "more was promised than the pool has beside what is promised"

        self.sell(sell)

    @rule(
        gpus=st.integers(1, GPUS), begin=st.integers(0, 26), hours=st.integers(1, 6),
    )  # fmt: skip
    def book(self, gpus: int, begin: int, hours: int) -> None:
        start = self.now.replace(microsecond=0) + begin * HOUR
        wanted = booking.Booking(
            pool=POOL, gpus=gpus, starts_at=start, ends_at=start + hours * HOUR
        )

        def sell(tx: Tx) -> None:
            pool = fleet.lock_pool(tx, POOL)
            most = GPUS - pool.policy.reserve
            if pool.policy.lending_limit is not None:
                most = min(most, pool.policy.lending_limit)
            free = most - self.promised(tx, wanted.starts_at, wanted.ends_at)
            booking.book(tx, self.world.acme, wanted, now=self.now)
            assert pool.policy.lendable
            assert gpus <= free, "a window was sold beyond what the policy leaves"

        self.sell(sell)

    @rule(gpus=st.integers(1, GPUS), begin=st.integers(0, 2), days=st.integers(1, 2))
    def sign(self, gpus: int, begin: int, days: int) -> None:
        start = self.now.replace(microsecond=0) + SECOND + begin * DAY
        contract = Contract(
            id=new_id(), tenant_id=self.world.acme.id, pool=POOL, name="bulk",
            steps=(Step(starts_at=start, gpus=gpus, rate=Rate(nanos=10**9, per=3600)),),
            ends_at=start + days * DAY, signed_at=self.now, notice=10 * SECOND, minimum=Money(0),
            shortfall_percent=100, notice_days=0, recall_days=0, renewal_days=0,
        )  # fmt: skip

        def sell(tx: Tx) -> None:
            free = GPUS - self.promised(tx, start, contract.ends_at)
            contracts.sign(tx, contract, now=self.now)
            assert gpus <= free, "a contract took what was promised to others"

        self.sell(sell)

    @rule(gpus=st.integers(1, 4), which=st.integers(0, 9))
    def draw(self, gpus: int, which: int) -> None:
        with self.world.db.transaction() as tx:
            sold = [one for one in reservations.list_open(tx) if one.starts_at <= self.now]
        if sold:
            with suppress(Refused, Invalid):
                self.world.draw(sold[which % len(sold)], gpus)

    # ---- what happens between

    @rule(changes=POLICIES, confirmed=st.booleans())
    def change(self, changes: dict[str, Any], confirmed: bool) -> None:
        before = self.records()
        try:
            with self.world.db.transaction() as tx:
                pool = fleet.lock_pool(tx, POOL)
                wanted = replace(pool.policy, **changes)
                policy.change(tx, POOL, wanted, confirmed=confirmed, now=self.now)
        except Unconfirmed:
            assert not confirmed
            assert self.records() == before, "it asked, and changed something all the same"
        with self.world.db.transaction() as tx:
            self.keep(tx)

    @rule(gpus=st.integers(1, GPUS))
    def submit(self, gpus: int) -> None:
        if len(self.jobs) < 3:
            self.jobs.append(self.world.internal(gpus))
            self.world.until(self.now + 25 * SECOND)

    @rule(which=st.integers(0, 2))
    def cancel(self, which: int) -> None:
        if self.jobs:
            self.world.engine.cancel_internal(self.jobs.pop(which % len(self.jobs)))
            self.world.until(self.now + 7 * SECOND)

    @rule(minutes=st.sampled_from([1, 10, 59]))
    def wait(self, minutes: int) -> None:
        self.world.until(self.now + minutes * MINUTE, MINUTE)
        self.world.until(self.now + 12 * SECOND)

    # ---- what must hold

    @invariant()
    def what_was_promised_stands(self) -> None:
        """No policy takes back what was sold: a window keeps its GPUs, its time and its notice."""
        if not hasattr(self, "world"):
            return
        with self.world.db.transaction() as tx:
            for id_, terms in self.promises.items():
                found = reservations.get_reservation(tx, id_)
                assert (found.gpus, found.starts_at, found.ends_at, found.notice) == terms

    @invariant()
    def no_gpu_is_sold_twice(self) -> None:
        if hasattr(self, "world"):
            assert self.world.engine.held(POOL) <= GPUS

    # ---- the plainest way to work it out

    @property
    def now(self) -> datetime:
        return self.world.clock.now()

    def internal_jobs(self) -> Any:
        return self.world.engine.internal_jobs()

    def sell(self, sell: Callable[[Tx], None]) -> None:
        before = self.records()
        try:
            with self.world.db.transaction() as tx:
                sell(tx)
        except (Refused, Invalid, Unpaid):
            assert self.records() == before, "refused, and something is left of it"
        with self.world.db.transaction() as tx:
            self.keep(tx)

    def keep(self, tx: Tx) -> None:
        for found in reservations.list_open(tx, POOL):
            terms = found.gpus, found.starts_at, found.ends_at, found.notice
            self.promises.setdefault(found.id, terms)

    def records(self) -> list[str]:
        with self.world.db.transaction() as tx:
            return [
                str(tx.execute(b"SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text))"
                               b" FROM " + table + b" AS t").fetchone())
                for table in (b"lease", b"reservation", b"contract", b"transfer", b"pool")
            ]  # fmt: skip

    def surplus(self, tx: Tx) -> tuple[int, int]:
        """Return how many GPUs may be lent now, and how many be promised for the minimum run."""
        pool = fleet.lock_pool(tx, POOL)
        rules = pool.policy
        internal = sum(job.gpus for job in self.internal_jobs() if job.exited_at is None)
        leases = [one for one in store.list_live(tx) if one.state in HOLDING]
        held = sum(one.gpus for one in leases)
        aside = 0
        for found in reservations.list_open(tx, POOL):
            if found.starts_at <= self.now + lead(pool) and self.now < found.ends_at:
                drawn = sum(one.gpus for one in leases if one.reservation_id == found.id)
                if not found.unpaid:
                    aside += max(found.gpus - found.lost_gpus - drawn, 0)
        idle = GPUS - internal - held - aside - rules.reserve
        if rules.lending_limit is not None:
            idle = min(idle, rules.lending_limit - held - aside)
        if not rules.lendable or (rules.quiet is not None and not rules.quiet.wait(self.now)):
            idle = 0
        firm = timedelta(seconds=rules.firm_seconds)
        return idle, GPUS - self.promised(tx, self.now, self.now + firm)

    def promised(self, tx: Tx, start: datetime, end: datetime) -> int:
        """Return the most that is promised at any instant of [start, end), looked at one by one."""
        spans = []
        for one in store.list_live(tx):
            leaving = one.state is State.DRAINING or one.reservation_id is not None
            if one.tier is Tier.ON_DEMAND and one.firm and not leaving:
                spans.append((one.gpus, self.now, (one.running_at or self.now) + one.firm))
        spans += [
            (found.gpus - found.lost_gpus, found.starts_at, found.ends_at)
            for found in reservations.list_open(tx, POOL)
        ]
        instants = [start, *(begin for _, begin, _ in spans if start < begin < end)]
        return max(
            sum(gpus for gpus, begin, until in spans if begin <= at < until) for at in instants
        )


def test_no_interleaving_sells_more_than_the_surplus(postgres_url: str, template: str) -> None:
    class Bound(Machine):
        fresh = staticmethod(lambda: fresh(postgres_url, template))

    case = Bound.TestCase
    case.settings = settings(
        max_examples=8, stateful_step_count=20, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    case().runTest()


@pytest.fixture
def world(postgres_url: str, template: str) -> Any:
    with fresh(postgres_url, template) as db:
        yield World(db)


def test_no_race_of_requests_and_policies_sells_more_than_the_policy_of_that_moment(
    world: World,
) -> None:
    """Each sale looks at the pool's row under its lock: what it sees there holds until it commits."""
    sold = []

    def buy(number: int) -> None:
        for _ in range(6):
            request = Request(
                pool=POOL, gpus=1 + number % 3, tier=Tier.INTERRUPTIBLE, max_duration=HOUR,
                spec=Spec(command=["serve"]),
            )  # fmt: skip
            with suppress(Refused), world.db.transaction() as tx:
                sold.append(admission.admit(tx, world.other, request, jobs=[], now=NOON).id)
                rules = fleet.lock_pool(tx, POOL).policy
                held = sum(one.gpus for one in store.list_live(tx) if one.state in HOLDING)
                most = GPUS - rules.reserve
                if rules.lending_limit is not None:
                    most = min(most, rules.lending_limit)
                assert rules.lendable
                assert held <= most, (held, rules)

    def change() -> None:
        for limit, reserve, lendable in [(2, 0, True), (8, 3, True), (None, 0, False),
                                         (5, 1, True), (None, 0, True)] * 2:  # fmt: skip
            with suppress(SubletError), world.db.transaction() as tx:
                rules = fleet.lock_pool(tx, POOL).policy
                wanted = replace(rules, lending_limit=limit, reserve=reserve, lendable=lendable)
                policy.change(tx, POOL, wanted, confirmed=True, now=NOON)

    with ThreadPoolExecutor(5) as pool:
        tasks = [pool.submit(buy, number) for number in range(4)] + [pool.submit(change)]
        for task in tasks:
            task.result()
    assert sold
    world.finish()
