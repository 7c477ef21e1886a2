"""Purses and the ledger: what is held, handed over and returned, however often it is said."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from sublet.app import bootstrap
from sublet.app.audit import audit
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.ids import new_id
from sublet.core.money import Money, Rate
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.grant import RICH, Clip, CountFirst, Grant, Need
from sublet.gateway.purse import Held
from sublet.gateway.tariff import Counts, Tariff
from sublet.gateway.till import BAD_DEBT, HOLD, Refill, Till, Turn
from sublet.ledger import store as ledger
from sublet.market import store as market
from sublet.market.price import input_sku, output_sku
from sublet.metering.report import Report
from sublet.metering.usage import Outcome, Usage
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
EACH = 10 + 5 * 40


@dataclass(slots=True)
class Counter:
    db: Database
    clock: ManualClock
    till: Till
    tariff: Tariff
    number: int = 0

    def tenant(self, nanos: int) -> Tenant:
        with self.db.transaction() as tx:
            made = tenants.create_tenant(tx, str(new_id()), now=NOON)
            bootstrap.open_accounts(tx, made)
            if nanos:
                bootstrap.top_up(tx, made, Money(nanos), payment=new_id(), now=NOON)
        return made

    def need(self, max_tokens: int | None = 5, *, counted: bool = True) -> Need:
        return Need(
            prompt_tokens=1, counted=counted, max_tokens=max_tokens, context_left=99,
            tariff=self.tariff,
        )  # fmt: skip

    def refill(
        self,
        tenant: Tenant,
        *needs: Need,
        before: Held | None = None,
        free: int = 0,
        extra: int = 0,
    ) -> Refill:
        one = Refill(
            tenant_id=tenant.id,
            before=before,
            free=free,
            needs=needs,
            extra=extra,
            next_id=new_id(),
        )
        self.till.refill([one])
        return one

    def report(self, tenant: Tenant, *, output: int = 5, source: str = "gateway:test") -> Report:
        self.number += 1
        counts = Counts(input_tokens=1, cache_read_tokens=0, output_tokens=output)
        fact = Usage(
            id=new_id(), source=source, sequence=self.number, tenant_id=tenant.id, model="m",
            request_id=f"req_{self.number}", input_tokens=1, output_tokens=output,
            outcome=Outcome.COMPLETED, happened_at=NOON,
        )  # fmt: skip
        return Report.write(fact, self.tariff.lines(counts))

    def turn(
        self,
        tenant: Tenant,
        before: Held | None,
        *reports: Report,
        keep: int = 0,
        stays: bool = False,
    ) -> Turn:
        one = Turn(tenant_id=tenant.id, before=before, keep=keep, next_id=new_id(), stays=stays)
        self.till.hand_over(reports, [one])
        return one

    def wallet(self, tenant: Tenant) -> tuple[int, int, int]:
        """Return (available, held, spent)."""
        with self.db.transaction() as tx:
            account = ledger.get_account(tx, tenant.wallet)
        return account.available.nanos, account.held.nanos, account.debits_posted

    def check(self) -> None:
        assert audit(self.db, clock=self.clock).differences == []


@pytest.fixture
def counter(db: Database) -> Iterator[Counter]:
    with db.transaction() as tx:
        for sku, nanos in ((input_sku("m"), 10), (output_sku("m"), 40)):
            market.set_price(tx, sku, Rate(nanos=nanos, per=1), now=NOON)
        tariff = Tariff.of("m", {price.sku: price for price in market.list_prices(tx)})
    assert tariff is not None
    clock = ManualClock(NOON)
    made = Counter(db, clock, Till(db, holder="gateway:test:1", clock=clock), tariff)
    yield made
    made.check()


def test_each_is_decided_from_what_the_last_one_left(counter: Counter) -> None:
    tenant = counter.tenant(2 * EACH + 3)
    done = counter.refill(tenant, *[counter.need()] * 4)
    assert [type(answer) for answer in done.answers] == [Grant, Grant, Failure, Failure]
    refused = done.answers[2]
    assert isinstance(refused, Failure) and refused.kind is Kind.IN_FLIGHT
    assert done.after is not None and done.after.nanos == 2 * EACH
    assert counter.wallet(tenant) == (3, 2 * EACH, 0)


def test_without_a_number_the_wallet_is_the_limit_and_who_follows_gets_nothing(
    counter: Counter,
) -> None:
    tenant = counter.tenant(10 + 7 * 40 + 39)
    most, nothing = counter.refill(tenant, counter.need(None), counter.need(1)).answers
    assert isinstance(most, Grant) and isinstance(nothing, Failure)
    assert (most.max_tokens, most.clipped_by) == (7, Clip.WALLET)


def test_money_for_requests_to_come_is_a_small_part_of_what_is_there(counter: Counter) -> None:
    rich, poor = counter.tenant(RICH * 10_000), counter.tenant(2 * EACH)
    done = counter.refill(rich, counter.need(counted=False), extra=10**9)
    assert isinstance(done.answers[0], Grant)
    amount = counter.need().most.nanos
    assert done.after is not None
    assert 9_000 < done.after.nanos - amount < 10_000
    done = counter.refill(poor, counter.need(), extra=10**9)
    assert done.after is not None and done.after.nanos == EACH
    assert isinstance(counter.refill(poor, counter.need(counted=False)).answers[0], CountFirst)


def test_a_purse_that_is_refilled_keeps_what_runs_on_it(counter: Counter) -> None:
    tenant = counter.tenant(3 * EACH)
    first = counter.refill(tenant, counter.need(), counter.need())
    second = counter.refill(tenant, counter.need(), counter.need(), before=first.after)
    assert [type(answer) for answer in second.answers] == [Grant, Failure]
    assert second.after is not None and second.after.nanos == 3 * EACH
    # What came back meanwhile is given anew, without a look at the wallet's last nano.
    third = counter.refill(tenant, counter.need(), before=second.after, free=EACH)
    assert isinstance(third.answers[0], Grant)
    assert counter.wallet(tenant) == (0, 3 * EACH, 0)


def test_many_tenants_are_each_told_their_own(counter: Counter) -> None:
    rich, broke = counter.tenant(10**6), counter.tenant(0)
    asked = [
        Refill(
            tenant_id=id_, before=None, free=0, needs=[counter.need()], extra=0, next_id=new_id()
        )
        for id_ in (broke.id, rich.id, new_id())
    ]
    counter.till.refill(asked)
    none, some, unknown = (one.answers[0] for one in asked)
    assert isinstance(none, Failure) and none.kind is Kind.UNPAID
    assert isinstance(some, Grant)
    assert isinstance(unknown, Failure) and "no wallet yet" in str(unknown)


def test_what_was_used_is_paid_once_and_the_rest_held_on(counter: Counter) -> None:
    tenant = counter.tenant(10 * EACH)
    held = counter.refill(tenant, *[counter.need()] * 3).after
    reports = [counter.report(tenant), counter.report(tenant, output=2)]
    paid = EACH + 10 + 80
    turn = counter.turn(tenant, held, *reports, keep=EACH)
    assert turn.after is not None and turn.after.nanos == EACH
    assert counter.wallet(tenant) == (9 * EACH - paid, EACH, paid)
    # Sent again, as after a crash between the commit and its word: the same, and no more.
    counter.till.hand_over(reports, [turn])
    assert turn.after is not None
    assert counter.wallet(tenant) == (9 * EACH - paid, EACH, paid)
    last = counter.turn(tenant, turn.after)
    assert last.after is None
    assert counter.wallet(tenant) == (10 * EACH - paid, 0, paid)
    with counter.db.transaction() as tx:
        rows = tx.execute("SELECT DISTINCT transfer_id FROM charge").fetchall()
    assert len(rows) == 1  # two charges, one movement


def test_a_refill_that_is_made_again_finds_what_it_did(counter: Counter) -> None:
    tenant = counter.tenant(2 * EACH)
    first = counter.refill(tenant, counter.need())
    again = Refill(
        tenant_id=tenant.id, before=first.after, free=0, needs=[counter.need()], extra=0,
        next_id=new_id(),
    )  # fmt: skip
    for _ in range(3):
        counter.till.refill([again])
        assert isinstance(again.answers[0], Grant)
        assert again.after is not None and again.after.nanos == 2 * EACH
        assert counter.wallet(tenant) == (0, 2 * EACH, 0)


def test_use_whose_hold_expired_is_paid_from_the_wallet_or_written_off(counter: Counter) -> None:
    able, broke = counter.tenant(10 * EACH), counter.tenant(EACH)
    held = [counter.refill(tenant, counter.need()).after for tenant in (able, broke)]
    counter.clock.advance(HOLD + timedelta(seconds=1))
    with counter.db.transaction() as tx:
        assert len(ledger.expire(tx, now=counter.clock.now())) == 2
    # The broke one has spent its money elsewhere meanwhile.
    spent = counter.refill(broke, counter.need()).after
    elsewhere = counter.report(broke)
    counter.turn(broke, spent, elsewhere)
    for tenant, before in zip((able, broke), held, strict=True):
        turn = counter.turn(tenant, before, counter.report(tenant), keep=1)
        assert turn.after is None
    assert counter.wallet(able) == (9 * EACH, 0, EACH)
    assert counter.wallet(broke) == (0, 0, EACH)
    with counter.db.transaction() as tx:
        assert ledger.get_account(tx, BAD_DEBT).debits_posted == EACH


def test_the_next_run_pays_for_what_the_last_one_left(counter: Counter) -> None:
    one, other = counter.tenant(10 * EACH), counter.tenant(10 * EACH)
    for tenant in (one, other):
        counter.refill(tenant, *[counter.need()] * 4)
    reports = [counter.report(tenant, source="gateway:1") for tenant in (one, other, one)]
    after = Till(counter.db, holder="gateway:test:2", clock=counter.clock)
    after.recover(reports[:2])
    after.recover(reports)  # some of it for the second time
    assert counter.wallet(one)[2] == 2 * EACH
    assert counter.wallet(other)[2] == EACH
    with counter.db.transaction() as tx:
        left = [hold.id for hold in ledger.holds_of(tx, "gateway:test:")]
    after.give_back(left)
    after.give_back(left)
    assert counter.wallet(one) == (8 * EACH, 0, 2 * EACH)


def test_a_hold_that_stays_is_paid_for_beside_it(counter: Counter) -> None:
    tenant = counter.tenant(5 * EACH)
    held = counter.refill(tenant, counter.need(), counter.need()).after
    assert held is not None
    reports = [counter.report(tenant), counter.report(tenant)]
    for _ in range(2):  # the second time as if nobody knew how the first one ended
        turn = Turn(tenant_id=tenant.id, before=held, keep=0, next_id=new_id(), stays=True)
        counter.till.hand_over(reports, [turn])
        assert turn.after is held
        assert counter.wallet(tenant) == (EACH, 2 * EACH, 2 * EACH)
    assert counter.turn(tenant, held, counter.report(tenant)).after is None
    assert counter.wallet(tenant) == (2 * EACH, 0, 3 * EACH)


def test_a_wallet_that_cannot_pay_beside_the_hold_pays_out_of_it(counter: Counter) -> None:
    poor, rich = counter.tenant(2 * EACH + 7), counter.tenant(9 * EACH)
    before = [counter.refill(one, *[counter.need()] * 2).after for one in (poor, rich)]
    reports = [counter.report(one) for one in (poor, poor, rich)]
    turns = [
        Turn(tenant_id=one.id, before=held, keep=keep, next_id=new_id(), stays=True)
        for one, held, keep in zip((poor, rich), before, (0, EACH), strict=True)
    ]
    counter.till.hand_over(reports, turns)
    assert turns[0].after is None
    assert turns[1].after is before[1]
    assert counter.wallet(poor) == (7, 0, 2 * EACH)
    assert counter.wallet(rich) == (6 * EACH, 2 * EACH, EACH)


def test_a_hold_that_was_to_stay_and_is_gone_is_paid_from_the_wallet(counter: Counter) -> None:
    tenant = counter.tenant(3 * EACH)
    held = counter.refill(tenant, counter.need()).after
    counter.clock.advance(HOLD + timedelta(seconds=1))
    with counter.db.transaction() as tx:
        ledger.expire(tx, now=counter.clock.now())
    assert counter.turn(tenant, held, counter.report(tenant), stays=True).after is None
    assert counter.wallet(tenant) == (2 * EACH, 0, EACH)
