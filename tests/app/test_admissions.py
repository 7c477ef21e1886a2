"""Calls that lease at the same time: one transaction for all who waited, an answer for each."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import psycopg
import pytest
from fastapi import Response
from pydantic import BaseModel

from sublet.app import bootstrap
from sublet.app.admissions import Admissions
from sublet.app.idempotency import REPLAYED, Once
from sublet.core.clock import ManualClock
from sublet.core.db import Database, Tx
from sublet.core.errors import Invalid, Refused, SubletError
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.core.process import wait_for
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.leases.admission import Asked
from sublet.leases.lease import Lease
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.market.price import Tier
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GPUS = 8


class Body(BaseModel):
    gpus: int = 1


@dataclass(slots=True)
class Shop:
    """Its first call waits, with the turn, until `opened` is set."""

    db: Database
    pool: str
    tenant: Tenant
    opened: Event
    admissions: Admissions

    def sell(self, *, key: str | None = None, gpus: int = 1, command: str = "x") -> Any:
        once = Once(
            db=self.db, clock=ManualClock(NOON), caller=f"tenant:{self.tenant.id}", key=key,
            method="POST", path="/v1/leases", status=201, response=Response(),
        )  # fmt: skip
        request = Request(
            pool=self.pool, gpus=gpus, tier=Tier.INTERRUPTIBLE,
            max_duration=timedelta(hours=1), spec=Spec(command=[command]),
        )  # fmt: skip
        asked = Asked(tenant=self.tenant, request=request)
        body = Body(gpus=gpus)
        try:
            said = self.admissions.sell(once, body, asked, show=show)
        except SubletError as error:
            return error
        return {**said, "replayed": once.response.headers.get(REPLAYED) == "true"}

    def together(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Let one call take the turn, the others come in order, and then go on."""
        with ThreadPoolExecutor(len(calls)) as threads:
            answers: list[Future[Any]] = []
            try:
                for place, call in enumerate(calls):
                    answers.append(threads.submit(call))
                    assert wait_for(lambda: self.wait(place), wait_seconds=60)  # noqa: B023
            finally:
                self.opened.set()
            return [answer.result(60) for answer in answers]

    def wait(self, calls: int) -> bool:
        """Say whether one has the turn, and so many wait for it."""
        return self.admissions._turn.locked() and len(self.admissions._waiting) == calls

    def transactions(self) -> Counter[str]:
        with self.db.transaction() as tx:
            return Counter(row["xmin"] for row in tx.execute("SELECT xmin::text FROM lease"))


def show(_: Tx, leases: Sequence[Lease]) -> list[dict[str, Any]]:
    return [{"id": lease.id, "gpus": lease.gpus} for lease in leases]


@pytest.fixture
def shop(db: Database) -> Iterator[Shop]:
    opened = Event()
    clock = ManualClock(NOON)
    with db.transaction() as tx:
        pool = f"pool-{new_id()}"
        fleet.observe_pools(tx, {pool: GPUS}, notice_seconds=10, now=NOON)
        bootstrap.first_prices(tx, [pool], now=NOON)
        tenant = tenants.create_tenant(tx, f"acme {pool}", now=NOON)
        bootstrap.open_accounts(tx, tenant)
        bootstrap.top_up(tx, tenant, Money(10**12), payment=1, now=NOON)

    def jobs() -> Sequence[InternalJob]:
        assert opened.wait(180)
        return []

    yield Shop(db, pool, tenant, opened, Admissions(db, jobs=jobs, clock=clock))
    opened.set()


def test_those_who_come_meanwhile_are_served_in_order_with_one_commit(shop: Shop) -> None:
    answers = shop.together([shop.sell] * (GPUS + 3))
    assert all(isinstance(one, dict) for one in answers[:GPUS]), answers
    assert all(isinstance(one, Refused) for one in answers[GPUS:]), answers
    assert sorted(shop.transactions().values()) == [1, GPUS - 1]


def test_a_key_is_kept_for_each_and_asked_twice_answers_the_same(shop: Shop) -> None:
    def named(key: str, gpus: int = 1) -> Callable[[], Any]:
        return lambda: shop.sell(key=key, gpus=gpus)

    keys = [named("a"), named("b"), named("c"), named("b"), named("c", 2), named("d")]
    first, second, third, again, other, last = shop.together(keys)
    assert len({one["id"] for one in (first, second, third, last)}) == 4
    assert again == {**second, "replayed": True} and not second["replayed"]
    assert isinstance(other, Invalid)
    assert shop.sell(key="d") == {**last, "replayed": True}
    assert shop.transactions().total() == 4


def test_one_that_the_database_cannot_store_keeps_nobody_else_out(shop: Shop) -> None:
    def odd() -> Any:
        with pytest.raises(psycopg.DataError):
            shop.sell(command="a\0b")

    answers = shop.together([shop.sell, shop.sell, odd, shop.sell])
    assert [isinstance(one, dict) for one in answers] == [True, True, False, True]
    assert shop.transactions().total() == 3


def test_a_key_that_another_process_has_at_hand_holds_up_nobody_else(
    shop: Shop, database_url: str
) -> None:
    shop.opened.set()
    with psycopg.connect(database_url) as other:
        caller = f"tenant:{shop.tenant.id}"
        other.execute("SELECT pg_advisory_xact_lock(hashtext(%s), hashtext(%s))", [caller, "busy"])
        with ThreadPoolExecutor(1) as threads:
            busy = threads.submit(shop.sell, key="busy")
            assert isinstance(shop.sell(key="free"), dict)
            assert not busy.done()
            other.commit()
            assert isinstance(busy.result(60), dict)
