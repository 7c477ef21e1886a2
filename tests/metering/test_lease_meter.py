"""Seconds of leases become usage and charges: once, and only what was used."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import pytest
from tests.core.databases import fresh
from tests.leases.make import lease_in

from sublet.app import bootstrap
from sublet.core.db import Database
from sublet.core.errors import Invalid, Unpaid
from sublet.core.ids import derived_id, new_id, sibling_id
from sublet.core.money import Money, Rate
from sublet.fleet import store as fleet
from sublet.fleet.pool import Policy
from sublet.leases import admission, advancing, blocks, service
from sublet.leases import store as leases
from sublet.leases.lease import EndReason, Move, State
from sublet.leases.store import Spec
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market import store as market
from sublet.market.price import Tier, lease_sku
from sublet.metering import store
from sublet.metering.lease_meter import (
    credit_of,
    credit_reclaimed,
    settle_blocks,
    settle_together,
)
from sublet.metering.usage import Line, Outcome, Usage
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

NOON: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)
NANOS_A_SECOND: Final = {Tier.INTERRUPTIBLE: 100, Tier.ON_DEMAND: 200}
WALLET: Final = 10**6


@pytest.fixture(scope="module")
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        yield database


class Shop:
    """A tenant with a million nanos, and one lease of two GPUs that runs since noon."""

    def __init__(
        self,
        db: Database,
        tier: Tier = Tier.INTERRUPTIBLE,
        *,
        minutes: int = 1,
        running: bool = True,
        firm_seconds: int = 3600,
    ) -> None:
        self.db = db
        with db.transaction() as tx:
            pool = f"pool-{new_id()}"
            fleet.observe_pools(tx, {pool: 8}, notice_seconds=10, now=NOON)
            policy = Policy(notice_seconds=10, firm_seconds=firm_seconds)
            fleet.set_policy(tx, pool, policy, now=NOON)
            for name, nanos in NANOS_A_SECOND.items():
                sku = lease_sku(pool, name)
                rate = replace(market.usd_per_hour("1"), nanos=nanos * 3600)
                self.price = market.set_price(tx, sku, rate, now=NOON)
            self.tenant = tenants.create_tenant(tx, f"acme {pool}", now=NOON)
            bootstrap.open_accounts(tx, self.tenant)
            bootstrap.top_up(tx, self.tenant, Money(WALLET), payment=1, now=NOON)
            request = service.Request(
                pool=pool, gpus=2, tier=tier, max_duration=3600 * SECOND, spec=Spec(command=["x"])
            )  # fmt: skip
            lease = admission.admit(tx, self.tenant, request, jobs=[], now=NOON)
            for to in (State.PROVISIONING, State.RUNNING) if running else ():
                lease = lease.move(Move(to=to, at=NOON))
                leases.save(tx, lease, now=NOON)
            for _ in range(1, minutes):
                blocks.hold_next(tx, [lease], now=NOON)
        self.lease = lease

    def stop(self, seconds: float, reason: EndReason) -> None:
        self.move(Move(to=State.DRAINING, at=NOON + seconds * SECOND, reason=reason))

    def move(self, move: Move) -> None:
        self.lease = self.lease.move(move)
        with self.db.transaction() as tx:
            leases.save(tx, self.lease, now=NOON)

    def settle(self, seconds: float) -> None:
        at = NOON + seconds * SECOND
        settle_blocks(self.lease, db=self.db, seen_until=at, now=at)

    def paid(self) -> tuple[int, int]:
        """Return what left the wallet, and what is still held in it."""
        with self.db.transaction() as tx:
            wallet = ledger.get_account(tx, self.tenant.wallet)
        return WALLET - wallet.balance.nanos, wallet.held.nanos


def test_a_minute_is_charged_once_it_is_known_to_be_over(db: Database) -> None:
    shop = Shop(db, minutes=3)
    minute = 2 * 60 * 100
    for seconds, charged in [(59.9, 0), (60, 1), (60, 1), (119, 1), (120, 2), (179.999, 2)]:
        shop.settle(seconds)
        assert shop.paid() == (charged * minute, (3 - charged) * minute)


def test_many_are_charged_together_each_once(db: Database) -> None:
    shops = [Shop(db, minutes=2) for _ in range(3)]
    minute = 2 * 60 * 100
    for seconds, charged in [(59, 0), (60, 1), (60, 1), (119, 1), (120, 2)]:
        at = NOON + seconds * SECOND
        seen = [(shop.lease, at) for shop in shops]
        assert settle_together(seen, db=db, now=at) == []
        for shop in shops:
            assert shop.paid() == (charged * minute, (2 - charged) * minute)
    with db.transaction() as tx:
        for shop in shops:
            assert store.charged_for_lease(tx, shop.lease.id) == Money(2 * minute)


def test_one_whose_hold_is_gone_undoes_the_others_and_all_are_charged_apart(db: Database) -> None:
    gone, well = Shop(db), Shop(db)
    with db.transaction() as tx:
        ((hold,),) = blocks.list_open(tx, [gone.lease]).values()
        ledger.void(tx, hold.hold_id, now=NOON)
    at = NOON + 60 * SECOND
    apart = settle_together([(well.lease, at), (gone.lease, at)], db=db, now=at)
    assert apart == [well.lease, gone.lease]
    assert (well.paid(), gone.paid()) == ((0, 12_000), (0, 0))
    for shop in (well, gone):
        shop.settle(60)
        assert shop.paid() == (12_000, 0)


def test_of_many_only_those_are_paid_on_whose_wallet_can(db: Database) -> None:
    rich, poor = Shop(db), Shop(db)
    with db.transaction() as tx:
        owner = f"tenant:{poor.lease.tenant_id}"
        wallet, revenue = ledger.lock(tx, f"{owner}:wallet", f"{owner}:revenue")
        rest = Transfer(
            id=new_id(), debit_account=wallet.id, credit_account=revenue.id,
            amount=Money(wallet.available.nanos - 11_999), reason="lease", happened_at=NOON,
        )  # fmt: skip
        ledger.post(tx, rest, now=NOON)
    leases_ = [replace(shop.lease, paid_until=NOON + 60 * SECOND) for shop in (rich, poor)]
    now = NOON + 45 * SECOND
    paid = advancing.pay_ahead(leases_, db=db, now=now)
    assert [lease.paid_until for lease in paid] == [NOON + 120 * SECOND, NOON + 60 * SECOND]
    assert (rich.paid()[1], poor.paid()[1]) == (24_000, 12_000)
    assert advancing.pay_ahead(paid, db=db, now=now)[0] == paid[0]
    # Behind by minutes, all of them are paid.
    late = advancing.pay_ahead(paid[:1], db=db, now=NOON + 125 * SECOND)
    assert late[0].paid_until == NOON + 180 * SECOND


@pytest.mark.parametrize("tier", NANOS_A_SECOND)
@pytest.mark.parametrize(
    ("seconds", "charged"), [(0, 0), (0.999, 0), (1, 1), (59.999, 59), (60, 60), (61.5, 61)]
)
def test_at_its_end_a_lease_is_charged_to_the_second_and_the_rest_comes_back(
    db: Database, tier: Tier, seconds: float, charged: int
) -> None:
    shop = Shop(db, tier, minutes=2)
    shop.stop(seconds, EndReason.RELEASED)
    for later in (seconds, seconds, 1000):
        shop.settle(later)
        assert shop.paid() == (2 * charged * NANOS_A_SECOND[tier], 0)
    with db.transaction() as tx:
        assert store.charged_for_lease(tx, shop.lease.id) == Money(shop.paid()[0])
        rows = store.list_charges(tx, shop.tenant.id, limit=9, lease_id=shop.lease.id)
    assert sum(row["gpu_seconds"] for row in rows) == 2 * charged


def test_what_was_paid_for_a_pool_on_a_day_is_one_trade(db: Database) -> None:
    shop = Shop(db, minutes=2)
    shop.stop(90, EndReason.RELEASED)
    shop.settle(90)
    with db.transaction() as tx:
        trades = store.list_trades(tx, since=NOON)
        assert store.list_trades(tx, since=NOON + timedelta(days=1)) == []
    (trade,) = (row for row in trades if row["pool"] == shop.lease.pool)
    assert trade == {
        "day": NOON.date(), "pool": shop.lease.pool, "gpu_seconds": 180,
        "amount_nanos": 180 * NANOS_A_SECOND[Tier.INTERRUPTIBLE],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "tier", "seconds", "credited"),
    [
        (EndReason.RECLAIMED, Tier.ON_DEMAND, 100, 500),
        (EndReason.RECLAIMED, Tier.ON_DEMAND, 599.9, 1),
        (EndReason.RECLAIMED, Tier.ON_DEMAND, 600, 0),
        (EndReason.RECLAIMED, Tier.ON_DEMAND, 630, 0),
        (EndReason.RECLAIMED, Tier.INTERRUPTIBLE, 100, 0),
        (EndReason.RELEASED, Tier.ON_DEMAND, 100, 0),
        (EndReason.NODE_LOST, Tier.ON_DEMAND, 100, 0),
    ],
)
def test_a_broken_promise_is_credited_with_what_was_left_of_it(
    db: Database, reason: EndReason, tier: Tier, seconds: float, credited: int
) -> None:
    shop = Shop(db, tier, minutes=11, firm_seconds=600)
    shop.stop(seconds, reason)
    for _ in range(2):
        shop.settle(1000)
        credit_reclaimed(shop.lease, db=db, now=NOON)
        assert shop.paid() == (2 * (int(seconds) - credited) * NANOS_A_SECOND[tier], 0)


@pytest.mark.parametrize(
    ("percent", "credited"), [(0, 0), (50, 250), (100, 500), (110, 550), (500, 600)]
)
def test_a_credit_is_as_many_per_cent_as_agreed_and_at_most_the_whole_promise(
    percent: int, credited: int
) -> None:
    lease = replace(
        lease_in(State.DRAINING), gpus=2, tier=Tier.ON_DEMAND, firm=600 * SECOND,
        credit_percent=percent, running_at=NOON, stopped_at=NOON + 100 * SECOND,
    )  # fmt: skip
    assert credit_of(lease, Rate(nanos=7, per=1)) == Money(2 * 7 * credited)


def test_what_was_sold_before_there_were_minimum_runs_gets_its_last_ten_minutes_back() -> None:
    lease = replace(
        lease_in(State.DRAINING), gpus=2, tier=Tier.ON_DEMAND, firm=None,
        running_at=NOON, stopped_at=NOON + 630 * SECOND,
    )  # fmt: skip
    assert credit_of(lease, Rate(nanos=7, per=1)) == Money(2 * 7 * 600)
    young = replace(lease, stopped_at=NOON + 100 * SECOND)
    assert credit_of(young, Rate(nanos=7, per=1)) == Money(2 * 7 * 100)


def test_the_credit_comes_before_the_last_block_is_settled(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unsettled block is what brings a new control plane back to an ended lease."""
    shop = Shop(db, Tier.ON_DEMAND)
    shop.stop(30, EndReason.RECLAIMED)

    class Crash(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("sublet.metering.lease_meter._settle", die)
        with pytest.raises(Crash):
            shop.settle(30)
    shop.settle(31)
    assert shop.paid() == (2 * (30 - 3570) * 200, 0)


def test_a_lease_that_never_ran_gives_its_minute_back_when_it_has_ended(db: Database) -> None:
    shop = Shop(db, running=False)
    held = 2 * 60 * 100
    shop.settle(1000)
    assert shop.paid() == (0, held)
    shop.move(Move(to=State.PROVISIONING, at=NOON))
    shop.settle(1000)
    assert shop.paid() == (0, held)
    shop.move(Move(to=State.DRAINING, at=NOON, reason=EndReason.START_FAILED))
    shop.move(Move(to=State.ENDED, at=NOON))
    shop.settle(1000)
    assert shop.paid() == (0, 0)


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (None, Outcome.COMPLETED),
        (EndReason.RELEASED, Outcome.COMPLETED),
        (EndReason.RECLAIMED, Outcome.RECLAIMED),
        (EndReason.NODE_LOST, Outcome.FAILED),
        (EndReason.START_FAILED, Outcome.FAILED),
    ],
)
def test_what_is_recorded_of_a_minute_is_whole_and_its_ids_stay_as_they_are(
    db: Database, reason: EndReason | None, outcome: Outcome
) -> None:
    """A repeat after an update of Sublet must find what the version before it recorded."""
    shop = Shop(db, Tier.ON_DEMAND)
    if reason is not None:
        shop.stop(30, reason)
    shop.settle(100)
    seconds = 60 if reason is None else 30
    at = NOON + (100 if reason is None else 30) * SECOND
    lease = shop.lease
    hold_id = derived_id(lease.id, "block", 0)
    usage_id = derived_id(lease.id, "usage", 0)
    moved = sibling_id(hold_id, ledger.RESOLUTION)
    with db.transaction() as tx:
        [hold] = tx.execute("SELECT * FROM transfer WHERE id = %s", [hold_id]).fetchall()
        usages = tx.execute("SELECT * FROM usage WHERE lease_id = %s", [lease.id]).fetchall()
        charges = tx.execute("SELECT * FROM charge WHERE usage_id = %s", [usage_id]).fetchall()
        wallet = ledger.get_account(tx, shop.tenant.wallet)
        movements = ledger.list_movements(tx, wallet.code, limit=9)
    assert (hold["reason"], hold["amount_nanos"]) == ("lease", 2 * 60 * 200)
    assert hold["expires_at"] == NOON + timedelta(days=36_525)
    assert usages == [
        {
            "id": usage_id, "source": f"lease:{lease.id}", "sequence": 0,
            "tenant_id": shop.tenant.id, "api_key_id": None, "lease_id": lease.id, "model": None,
            "request_id": None, "gpu_seconds": 2 * seconds, "input_tokens": 0,
            "cache_read_tokens": 0, "cache_write_tokens": 0, "output_tokens": 0,
            "reasoning_tokens": 0, "delivered_tokens": 0,
            "outcome": outcome, "happened_at": at, "recorded_at": NOON + 100 * SECOND,
            "record": usages[0]["record"], "reservation_id": None,
        }
    ]  # fmt: skip
    assert charges == [
        {
            "usage_id": usage_id, "tenant_id": shop.tenant.id, "price_ids": [lease.price_id],
            "quantities": [2 * seconds], "amounts": [2 * seconds * 200],
            "amount_nanos": 2 * seconds * 200, "transfer_id": moved, "happened_at": at,
            "recorded_at": NOON + 100 * SECOND, "record": charges[0]["record"],
        }
    ]  # fmt: skip
    expected = [(moved, "lease", -2 * seconds * 200, at)]
    if reason is EndReason.RECLAIMED:
        credit = (
            derived_id(lease.id, "credit", "reclaimed"),
            "credit",
            2 * (3600 - seconds) * 200,
            at,
        )
        expected.append(credit)
    of_lease = [row for row in movements if row["reason"] in {"lease", "credit"}]
    assert [
        (row["id"], row["reason"], row["amount_nanos"], row["happened_at"]) for row in of_lease
    ] == expected


@pytest.mark.parametrize(
    ("reason", "seconds", "credit"),
    [
        (EndReason.RECLAIMED, 100, 2 * 3500 * 200),
        (EndReason.RECLAIMED, 3600, 0),
        (EndReason.RELEASED, 100, 0),
    ],
)
def test_what_was_credited_is_said_again(
    db: Database, reason: EndReason, seconds: float, credit: int
) -> None:
    shop = Shop(db, Tier.ON_DEMAND, minutes=2)
    assert credit_reclaimed(shop.lease, db=db, now=NOON) == Money(0)
    shop.stop(seconds, reason)
    for _ in range(2):
        assert credit_reclaimed(shop.lease, db=db, now=NOON) == Money(credit)


# ---- usage of any kind


def token_usage(tenant: Tenant, number: int, tokens: int) -> Usage:
    return Usage(
        id=derived_id("usage", tenant.id, number),
        source=f"gateway:{tenant.id}",
        sequence=number,
        tenant_id=tenant.id,
        model="gemma",
        request_id=f"r-{number}",
        output_tokens=tokens,
        outcome=Outcome.COMPLETED,
        happened_at=NOON,
    )


def hold(shop: Shop, nanos: int) -> UUID:
    with shop.db.transaction() as tx:
        transfer = Transfer(
            id=new_id(),
            debit_account=ledger.get_account(tx, shop.tenant.wallet).id,
            credit_account=ledger.get_account(tx, shop.tenant.revenue).id,
            amount=Money(nanos),
            reason="tokens",
            happened_at=NOON,
        )
        ledger.hold(tx, transfer, holder="gateway:x", expires_at=NOON + 9 * SECOND, now=NOON)
    return transfer.id


def report(shop: Shop, usage: Usage, hold_id: UUID) -> Money:
    line = Line(price=shop.price, quantity=usage.output_tokens)
    with shop.db.transaction() as tx:
        return store.settle(tx, usage, [line], hold_id=hold_id, now=NOON)


@pytest.fixture
def idle(db: Database) -> Shop:
    """A shop whose lease is over and cost nothing."""
    shop = Shop(db)
    shop.stop(0, EndReason.RELEASED)
    shop.settle(0)
    return shop


def test_a_report_that_is_sent_again_charges_nothing_more(idle: Shop) -> None:
    held = hold(idle, 5000)
    usage = token_usage(idle.tenant, 1, 10)
    assert report(idle, usage, held) == Money(2000)
    assert report(idle, usage, held) == Money(0)
    assert idle.paid() == (2000, 0)


def test_use_of_nothing_gives_the_hold_back(idle: Shop) -> None:
    assert report(idle, token_usage(idle.tenant, 1, 0), hold(idle, 5000)) == Money(0)
    assert idle.paid() == (0, 0)


def test_use_that_came_after_its_hold_was_gone_is_charged_to_the_wallet(idle: Shop) -> None:
    held = hold(idle, 5000)
    with idle.db.transaction() as tx:
        assert held in ledger.expire(tx, now=NOON + 9 * SECOND)
    usage = token_usage(idle.tenant, 1, 10)
    assert report(idle, usage, held) == Money(2000)
    assert report(idle, usage, held) == Money(0)
    assert idle.paid() == (2000, 0)
    with idle.db.transaction() as tx:
        [late, *_] = ledger.list_movements(tx, idle.tenant.wallet, limit=9)
        [charge] = store.list_charges(tx, idle.tenant.id, limit=9)
    # The id stays as it is, for repeats after an update.
    moved = derived_id(held, "late")
    assert (late["id"], late["reason"], late["happened_at"]) == (moved, "tokens", NOON)
    assert (charge["transfer_id"], charge["usage_id"]) == (moved, usage.id)


def test_seconds_that_came_after_their_hold_was_gone_are_charged_as_a_lease_s(db: Database) -> None:
    shop = Shop(db)
    hold_id = derived_id(shop.lease.id, "block", 0)
    with db.transaction() as tx:
        ledger.void(tx, hold_id, now=NOON)
    shop.settle(60)
    assert shop.paid() == (2 * 60 * 100, 0)
    with db.transaction() as tx:
        [late, *_] = ledger.list_movements(tx, shop.tenant.wallet, limit=9)
    assert (late["id"], late["reason"]) == (derived_id(hold_id, "late"), "lease")


def test_use_of_nothing_after_its_hold_was_gone_costs_nothing(idle: Shop) -> None:
    held = hold(idle, 5000)
    with idle.db.transaction() as tx:
        assert held in ledger.expire(tx, now=NOON + 9 * SECOND)
    assert report(idle, token_usage(idle.tenant, 1, 0), held) == Money(0)
    assert idle.paid() == (0, 0)


def test_what_cannot_be_paid_or_was_not_held_is_not_recorded_at_all(idle: Shop) -> None:
    late = hold(idle, 5000)
    with idle.db.transaction() as tx:
        ledger.void(tx, late, now=NOON)
    hold(idle, WALLET)  # all of it, for something else
    with pytest.raises(Unpaid):
        report(idle, token_usage(idle.tenant, 1, 10), late)
    assert idle.paid() == (0, WALLET)


def test_more_than_was_held_is_our_bug_and_changes_nothing(idle: Shop) -> None:
    held = hold(idle, 5000)
    with pytest.raises(Invalid):
        report(idle, token_usage(idle.tenant, 1, 26), held)
    assert idle.paid() == (0, 5000)
    with idle.db.transaction() as tx:
        counted = tx.execute(
            "SELECT count(*) AS usages FROM usage WHERE tenant_id = %s", [idle.tenant.id]
        ).fetchone()
    assert counted == {"usages": 0}
