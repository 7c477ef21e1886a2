"""The auditor knows which leases get their last minutes back, and finds any other credit."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from tests.core.databases import fresh
from tests.metering.test_lease_meter import NOON, SECOND, Shop

from sublet.core.audit import Findings
from sublet.core.db import Database
from sublet.core.errors import Unpaid
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.leases import store as leases
from sublet.leases.lease import EndReason, Move, State
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market.price import Tier
from sublet.metering import audit
from sublet.metering.lease_meter import credit_id

LATER = NOON + timedelta(hours=1)


@pytest.fixture(scope="module")
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        yield database


def end(shop: Shop) -> None:
    shop.lease = shop.lease.move(Move(to=State.ENDED, at=shop.lease.since))
    with shop.db.transaction() as tx:
        leases.save(tx, shop.lease, now=NOON)


def give(shop: Shop, nanos: int, **more: object) -> None:
    with shop.db.transaction() as tx:
        wallet = ledger.get_account(tx, shop.tenant.wallet)
        revenue = ledger.get_account(tx, shop.tenant.revenue)
        transfer = Transfer(
            id=more.get("id", new_id()),  # type: ignore[arg-type]
            debit_account=revenue.id,
            credit_account=wallet.id,
            amount=Money(nanos),
            reason="credit",
            happened_at=NOON,
        )
        ledger.post(tx, transfer, now=NOON)


def found(db: Database, *names: object) -> list[str]:
    """Return what the auditor says of these: other tests' leases are in the same database."""
    findings = Findings()
    with db.transaction() as tx:
        audit.audit(tx, findings, now=LATER)
    said = [difference.what for difference in findings.differences]
    return [what for what in said if any(str(name) in what for name in names)]


@pytest.fixture
def reclaimed(db: Database) -> Shop:
    shop = Shop(db, Tier.ON_DEMAND, minutes=2)
    shop.stop(90, EndReason.RECLAIMED)
    return shop


def test_a_credit_that_was_due_and_given_is_no_difference(db: Database, reclaimed: Shop) -> None:
    reclaimed.settle(90)
    end(reclaimed)
    assert found(db, reclaimed.lease.id, reclaimed.tenant.id) == []


def test_a_credit_that_was_due_and_not_given_is_found(db: Database, reclaimed: Shop) -> None:
    end(reclaimed)
    due = 2 * (3600 - 90) * 200
    sentence = f"lease {reclaimed.lease.id} was reclaimed and did not get {due} nanos back"
    assert sentence in found(db, reclaimed.lease.id)


def test_a_credit_of_another_amount_is_found(db: Database, reclaimed: Shop) -> None:
    give(reclaimed, 7, id=credit_id(reclaimed.lease.id))
    (what,) = found(db, reclaimed.lease.id)
    assert "1404000 nanos were due" in what and ": 7 went to" in what


def test_a_credit_that_no_lease_explains_is_found(db: Database, reclaimed: Shop) -> None:
    reclaimed.settle(90)
    give(reclaimed, 7)
    (what,) = found(db, reclaimed.tenant.id)
    assert "no reclaimed lease explains it" in what


def test_a_block_whose_hold_is_gone_stays_owed_and_holds_up_no_other(db: Database) -> None:
    shop = Shop(db, minutes=3)
    with db.transaction() as tx:
        first = tx.execute(
            "SELECT hold_id FROM lease_block WHERE lease_id = %s AND block = 0", [shop.lease.id]
        ).fetchone()
        assert first is not None
        ledger.void(tx, first["hold_id"], now=NOON)  # by hand: nothing of ours does
        wallet = ledger.get_account(tx, shop.tenant.wallet)
        bank = ledger.open_account(tx, "house:bank", prepaid=False)
        away = Transfer(
            id=new_id(), debit_account=wallet.id, credit_account=bank.id,
            amount=wallet.available, reason="correction", happened_at=NOON,
        )  # fmt: skip
        ledger.post(tx, away, now=NOON)
    shop.stop(130, EndReason.RELEASED)
    minute = 2 * 60 * 100
    for _ in range(2):
        with pytest.raises(Unpaid):
            shop.settle(130)
    with db.transaction() as tx:
        revenue = ledger.get_account(tx, shop.tenant.revenue)
        assert revenue.balance.nanos == minute + 10 * 200
        # Money comes in, and what is owed is paid.
        back = Transfer(
            id=new_id(), debit_account=bank.id, credit_account=wallet.id,
            amount=Money(minute), reason="payment", happened_at=NOON,
        )  # fmt: skip
        ledger.post(tx, back, now=NOON)
    shop.settle(130)
    with db.transaction() as tx:
        assert ledger.get_account(tx, shop.tenant.revenue).balance.nanos == 2 * minute + 10 * 200
        assert ledger.get_account(tx, shop.tenant.wallet).balance.nanos >= 0


def test_a_hold_of_a_lease_outlives_any_absence(db: Database) -> None:
    shop = Shop(db, minutes=2)
    with db.transaction() as tx:
        assert ledger.expire(tx, now=NOON + timedelta(days=3650)) == []
    shop.stop(61, EndReason.RELEASED)
    shop.settle(int(timedelta(days=3650) / SECOND))
    assert shop.paid() == (61 * 200, 0)
