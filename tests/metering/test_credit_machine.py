"""Whatever happens in whatever order, a broken promise is credited once, and no other is.

Leases are stopped for any reason at any second; then credits are given and minutes are settled again
and again, by one or by two at the same time, and whoever does it may die in the middle. In the end the
wallet has what was due, to the nano, and each credit has its one record with what says so.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule
from tests.core.databases import fresh
from tests.metering.test_credits import end, found
from tests.metering.test_lease_meter import NANOS_A_SECOND, NOON, SECOND, Shop

from sublet.core.db import Database
from sublet.leases.lease import EndReason, State
from sublet.market.price import Tier
from sublet.metering.lease_meter import credit_reclaimed

FIRM = 120  # seconds
GPUS = 2
# Where it may die: the money is moved and nothing says why yet; all is said, and not committed; the
# credit is given, and the last minute is not settled.
STEPS = {
    "moved": "sublet.metering.credits._evidence",
    "credited": "sublet.metering.lease_meter._settle",
}


class Killed(BaseException):
    pass


class Credits(RuleBasedStateMachine):
    db: ClassVar[Database]

    def __init__(self) -> None:
        super().__init__()
        self.stopped: list[tuple[Shop, float, EndReason]] = []

    running = Bundle("running")
    over = Bundle("over")

    @rule(target=running, tier=st.sampled_from([Tier.ON_DEMAND, Tier.INTERRUPTIBLE]))
    def start(self, tier: Tier) -> Shop:
        return Shop(self.db, tier, minutes=4, firm_seconds=FIRM)

    @rule(
        target=over,
        shop=consumes(running),
        seconds=st.integers(0, 200) | st.floats(0, 200).map(lambda s: round(s, 3)),
        reason=st.sampled_from([EndReason.RECLAIMED, EndReason.RELEASED, EndReason.NODE_LOST]),
    )
    def stop(self, shop: Shop, seconds: float, reason: EndReason) -> Shop:
        shop.stop(seconds, reason)
        self.stopped.append((shop, seconds, reason))
        return shop

    @rule(shop=running, seconds=st.integers(0, 59))
    def look(self, shop: Shop, seconds: int) -> None:
        """Nothing is due while it runs."""
        credit_reclaimed(shop.lease, db=self.db, now=NOON + seconds * SECOND)
        shop.settle(seconds)

    @rule(shop=over)
    def give(self, shop: Shop) -> None:
        credit_reclaimed(shop.lease, db=self.db, now=NOON + 300 * SECOND)

    @rule(shop=over)
    def settle(self, shop: Shop) -> None:
        shop.settle(300)

    @rule(shop=over, step=st.sampled_from(sorted(STEPS)))
    def die(self, shop: Shop, step: str) -> None:
        with mock.patch(STEPS[step], side_effect=Killed), contextlib.suppress(Killed):
            shop.settle(300)

    @rule(shops=st.lists(over, min_size=1, max_size=3))
    def two_at_once(self, shops: list[Shop]) -> None:
        """Two control planes, each of which believes that it leads."""
        work: list[Callable[[], object]] = []
        for shop in shops:
            work += [lambda shop=shop: self.give(shop), lambda shop=shop: self.settle(shop)]  # type: ignore[misc]
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(each) for each in work * 2]:
                done.result()

    def teardown(self) -> None:
        for shop, seconds, reason in self.stopped:
            shop.settle(400)
            ran = int(seconds)
            due = reason is EndReason.RECLAIMED and shop.lease.tier is Tier.ON_DEMAND and ran < FIRM
            nanos = GPUS * (FIRM - ran) * NANOS_A_SECOND[shop.lease.tier] if due else 0
            with self.db.transaction() as tx:
                given = tx.execute(
                    "SELECT amount_nanos FROM transfer JOIN account ON account.id = credit_account"
                    " WHERE reason = 'credit' AND account.code = %s",
                    [shop.tenant.wallet],
                ).fetchall()
                said = tx.execute(
                    "SELECT amount_nanos FROM credit WHERE tenant_id = %s", [shop.tenant.id]
                ).fetchall()
            assert [int(row["amount_nanos"]) for row in given] == ([nanos] if nanos else [])
            assert given == said
            price = GPUS * NANOS_A_SECOND[shop.lease.tier]
            assert shop.paid() == (ran * price - nanos, 0)
            assert shop.lease.state is State.DRAINING
            end(shop)
        names = [shop.lease.id for shop, _, _ in self.stopped]
        assert found(self.db, *names, *(shop.tenant.id for shop, _, _ in self.stopped)) == []


@pytest.fixture(scope="module")
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        yield database


def test_each_broken_promise_is_credited_once(db: Database) -> None:
    class OnThis(Credits):
        pass

    OnThis.db = db
    OnThis.TestCase.settings = settings(max_examples=15, stateful_step_count=15)
    OnThis.TestCase().runTest()
