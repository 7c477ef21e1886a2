"""Many requests at once: each gets its money, ends, and is paid for."""

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from sublet.app import bootstrap
from sublet.app.audit import audit
from sublet.core.clock import SystemClock
from sublet.core.db import Database
from sublet.core.errors import Unavailable
from sublet.core.ids import new_id
from sublet.core.money import Money, Rate
from sublet.core.process import wait_for
from sublet.gateway.cashier import Cashier
from sublet.gateway.grant import Need
from sublet.gateway.spool import Spool
from sublet.gateway.tariff import Counts, Tariff
from sublet.gateway.till import Refill, Till
from sublet.ledger import store as ledger
from sublet.market import store as market
from sublet.market.price import input_sku, output_sku
from sublet.metering.report import Report
from sublet.metering.usage import Outcome, Usage
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

CALLERS, EACH = 60, 40


def open_shop(db: Database) -> tuple[list[Tenant], Tariff]:
    now, made = datetime.now(UTC), []
    with db.transaction() as tx:
        for number in range(20):
            tenant = tenants.create_tenant(tx, str(number), now=now)
            bootstrap.open_accounts(tx, tenant)
            bootstrap.top_up(tx, tenant, Money(10**9), payment=number, now=now)
            made.append(tenant)
        for sku, nanos in ((input_sku("m"), 10), (output_sku("m"), 40)):
            market.set_price(tx, sku, Rate(nanos=nanos, per=1), now=now)
        tariff = Tariff.of("m", {price.sku: price for price in market.list_prices(tx)})
    assert tariff is not None
    return made, tariff


def test_nobody_waits_for_ever_and_everybody_pays_once(db: Database, folder: Path) -> None:
    """What comes just when a batch has ended must not be forgotten: it was, once."""
    made, tariff = open_shop(db)
    source = new_id()
    till = Till(db, holder=f"gateway:test:{source}", clock=SystemClock())
    spool = Spool(folder / "spool", source)
    spool.open()
    cashier = Cashier(till, spool)
    sequence, turn = itertools.count(1), itertools.cycle(made)

    def report(tenant_id: UUID) -> Report:
        counts = Counts(input_tokens=1, cache_read_tokens=0, output_tokens=2)
        fact = Usage(
            id=new_id(), source=f"gateway:{source}", sequence=next(sequence),
            tenant_id=tenant_id, model="m", input_tokens=1, output_tokens=2,
            outcome=Outcome.COMPLETED, happened_at=datetime.now(UTC),
        )  # fmt: skip
        return Report.write(fact, tariff.lines(counts))

    async def call() -> None:
        need = Need(prompt_tokens=1, counted=False, max_tokens=2, context_left=99, tariff=tariff)
        for _ in range(EACH):
            tenant = next(turn)
            grant = await cashier.hold(tenant.id, need)
            await cashier.settle(grant, report(tenant.id))

    async def run() -> None:
        watch = asyncio.create_task(cashier.watch())
        async with asyncio.timeout(60):
            await asyncio.gather(*(call() for _ in range(CALLERS)))
            assert await cashier.drain(30) == 0
        watch.cancel()

    try:
        asyncio.run(run())
    finally:
        cashier.stop()
        spool.close()
    with db.transaction() as tx:
        paid = [ledger.get_account(tx, tenant.wallet).debits_posted for tenant in made]
    assert sum(paid) == CALLERS * EACH * (10 + 2 * 40)
    assert audit(db, clock=SystemClock()).differences == []


class Deaf(Till):
    """Does what it is asked, and does not hear the first answer."""

    heard = False

    def refill(self, refills: Sequence[Refill]) -> None:
        super().refill(refills)
        if not self.heard:
            self.heard = True
            raise Unavailable("the connection was lost after COMMIT")


def test_a_hold_is_as_old_as_the_first_attempt_at_it(db: Database, folder: Path) -> None:
    """Else it would be given from for longer than it lasts, when the database was away for long."""
    made, tariff = open_shop(db)
    spool = Spool(folder / "spool", new_id())
    spool.open()
    cashier = Cashier(Deaf(db, holder="gateway:test:1", clock=SystemClock()), spool)

    async def run() -> None:
        need = Need(prompt_tokens=1, counted=False, max_tokens=2, context_left=99, tariff=tariff)
        with pytest.raises(Unavailable):
            await cashier.hold(made[0].id, need)
        told = asyncio.get_running_loop().time()
        (purse,) = cashier._purses.values()
        assert await asyncio.to_thread(wait_for, lambda: purse.hold_id is not None, wait_seconds=30)
        assert asyncio.get_running_loop().time() > told > purse.held_at
        assert await cashier.drain(30) == 0

    try:
        asyncio.run(run())
    finally:
        cashier.stop()
        spool.close()
