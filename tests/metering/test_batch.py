"""Charging many at once must do what charging one after the other does."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.databases import fresh, undone

from sublet.app import bootstrap
from sublet.core.audit import Findings
from sublet.core.db import Database, Tx
from sublet.core.errors import Invalid, NotFound, SubletError, Unpaid
from sublet.core.money import Money, Rate
from sublet.ledger import audit
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market import store as market
from sublet.market.price import Price, input_sku, output_sku
from sublet.metering import batch, store
from sublet.metering.usage import Line, Outcome, Usage
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
HELD = 100
HOLDS = 6  # 0 to 3 are open, 4 was voided, 5 expired


@dataclass(frozen=True, slots=True)
class Shop:
    db: Database
    tenants: tuple[Tenant, Tenant]
    prices: tuple[Price, Price]

    def bill(self, item: tuple[int, int, int, int]) -> batch.Bill:
        usage, hold, inputs, outputs = item
        lines = [
            Line(price=price, quantity=quantity)
            for price, quantity in zip(self.prices, (inputs, outputs), strict=True)
            if quantity
        ]
        fact = Usage(
            id=UUID(int=usage),
            source="gateway:test",
            sequence=usage,
            tenant_id=self.tenants[hold % 2].id,
            model="m",
            request_id=f"req_{usage}",
            input_tokens=inputs,
            output_tokens=outputs,
            outcome=Outcome.COMPLETED,
            happened_at=NOON,
        )
        return batch.Bill(usage=fact, lines=lines, hold_id=UUID(int=1000 + hold))


@pytest.fixture(scope="module")
def shop(postgres_url: str, template: str) -> Iterator[Shop]:
    with fresh(postgres_url, template) as db, db.transaction() as tx:
        made = [tenants.create_tenant(tx, name, now=NOON) for name in ("acme", "bits")]
        for tenant in made:
            bootstrap.open_accounts(tx, tenant)
            bootstrap.top_up(tx, tenant, Money(10**6), payment=1, now=NOON)
        prices = [
            market.set_price(tx, sku, Rate(nanos=nanos, per=1), now=NOON)
            for sku, nanos in ((input_sku("m"), 1), (output_sku("m"), 10))
        ]
        for number in range(HOLDS):
            expires_at = NOON if number == 5 else LATER
            hold(tx, made[number % 2], number, expires_at)
        ledger.void(tx, UUID(int=1004), now=NOON)
        assert ledger.expire(tx, now=NOON) == [UUID(int=1005)]
        tx.commit()
        yield Shop(db, (made[0], made[1]), (prices[0], prices[1]))


def hold(tx: Tx, tenant: Tenant, number: int, expires_at: datetime, nanos: int = HELD) -> None:
    transfer = Transfer(
        id=UUID(int=1000 + number),
        debit_account=ledger.get_account(tx, tenant.wallet).id,
        credit_account=ledger.get_account(tx, tenant.revenue).id,
        amount=Money(nanos),
        reason="tokens",
        happened_at=NOON,
    )
    ledger.hold(tx, transfer, holder="gateway:test", expires_at=expires_at, now=NOON)


def apart(tx: Tx, bills: list[batch.Bill]) -> list[Money | SubletError]:
    outcomes: list[Money | SubletError] = []
    tx.execute("SELECT 1")  # so that what follows are savepoints
    for bill in bills:
        try:
            with tx.transaction():
                outcomes.append(
                    store.settle(tx, bill.usage, bill.lines, hold_id=bill.hold_id, now=NOON)
                )
        except SubletError as error:
            outcomes.append(error)
    return outcomes


def together(tx: Tx, bills: list[batch.Bill]) -> list[Money | SubletError]:
    return batch.settle_many(tx, bills, now=NOON)


def written(tx: Tx) -> tuple[object, ...]:
    """All that was recorded; when is left out, as a batch spreads it by microseconds."""
    queries = (
        (
            "SELECT id, debits_pending, debits_posted, credits_pending, credits_posted"
            " FROM account ORDER BY id"
        ),
        (
            "SELECT id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,"
            " happened_at FROM transfer ORDER BY id"
        ),
        "SELECT * FROM open_hold ORDER BY transfer_id",
        (
            "SELECT id, source, sequence, tenant_id, model, request_id, input_tokens, output_tokens,"
            " outcome, happened_at FROM usage ORDER BY id"
        ),
        (
            "SELECT id, usage_id, tenant_id, price_id, quantity, amount_nanos, transfer_id"
            " FROM charge ORDER BY id"
        ),
    )
    return tuple(tx.execute(query.encode()).fetchall() for query in queries)


# (usage, hold, input, output): few of each, so that repeats and gone holds are common, and
# more than was held now and then.
ITEM = st.tuples(st.integers(1, 7), st.integers(0, 6), st.integers(0, 9), st.integers(0, 10))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ITEM, max_size=6), min_size=1, max_size=4))
def test_a_batch_charges_what_one_by_one_does(
    shop: Shop, rounds: list[list[tuple[int, int, int, int]]]
) -> None:
    ends: list[tuple[object, ...]] = []
    for way in (together, apart):
        with undone(shop.db) as tx:
            outcomes = [
                [
                    (type(one), str(one))
                    for one in way(tx, [shop.bill(item) for item in sorted(items)])
                ]
                for items in rounds
            ]
            findings = Findings()
            audit.audit(tx, findings, now=NOON)
            assert findings.differences == []
            ends.append((outcomes, *written(tx)))
    assert ends[0] == ends[1]


def test_one_bill_that_cannot_be_settled_leaves_the_others_alone(shop: Shop) -> None:
    with undone(shop.db) as tx:
        poor = tenants.create_tenant(tx, "poor", now=NOON)
        bootstrap.open_accounts(tx, poor)
        bootstrap.top_up(tx, poor, Money(20), payment=2, now=NOON)
        late = shop.bill((1, 4, 5, 5))
        late = replace(late, usage=replace(late.usage, tenant_id=poor.id))
        bills = [
            late,
            shop.bill((2, 0, 0, 11)),  # more than was held
            shop.bill((3, 99, 1, 1)),
            shop.bill((4, 1, 3, 4)),
            shop.bill((4, 1, 3, 4)),
        ]
        unpaid, invalid, missing, paid, again = batch.settle_many(tx, bills, now=NOON)
        assert [type(one) for one in (unpaid, invalid, missing)] == [Unpaid, Invalid, NotFound]
        assert (paid, again) == (Money(43), Money(0))
        assert tx.execute("SELECT id FROM usage").fetchall() == [{"id": UUID(int=4)}]


def test_charges_of_one_batch_can_be_paged_through(shop: Shop) -> None:
    with undone(shop.db) as tx:
        batch.settle_many(tx, [shop.bill((1, 0, 1, 0)), shop.bill((2, 2, 1, 0))], now=NOON)
        (newest,) = store.list_charges(tx, shop.tenants[0].id, limit=1)
        (next_,) = store.list_charges(tx, shop.tenants[0].id, limit=1, before=newest["recorded_at"])
        assert (newest["request_id"], next_["request_id"]) == ("req_2", "req_1")
