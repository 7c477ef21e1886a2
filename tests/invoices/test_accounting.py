"""What each rule of accounting leaves on which account, as hledger adds the exported journal up.

Every story has tenants of its own, all of them are in one journal, and nothing here reads a balance
of ours: what hledger says is compared with what the story's prices and quantities make.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from uuid import uuid4

import pytest
from tests.core.databases import fresh
from tests.invoices.shop import BEGIN, NOW, OCTOBER, SEPTEMBER, VAT, Shop, at
from tests.ledger.test_journal import check, export, run_hledger

from sublet.core.money import NANOS, Money, Rate
from sublet.core.seal import seal_all
from sublet.invoices import dunning, service, store
from sublet.invoices.dunning import Action, Step
from sublet.invoices.invoice import Invoice
from sublet.leases import contracts
from sublet.ledger.journal import Format, account_code, account_name
from sublet.market import store as market
from sublet.tenants.tenant import Tenant

pytestmark = pytest.mark.real
_CENT = NANOS // 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """What hledger adds up, in nanos: credits above nothing, by code of account."""

    balances: dict[str, int]

    def of(self, code: str) -> int:
        return self.balances.get(code, 0)

    def tenant(self, tenant: Tenant) -> dict[str, int]:
        """Return {last part of the account: balance} of what is not even."""
        return {
            code.rpartition(":")[2]: nanos
            for code, nanos in self.balances.items()
            if str(tenant.id) in code and nanos
        }


@dataclass(slots=True, kw_only=True)
class Stories:
    shop: Shop
    folder: Path
    invoices: list[Invoice]

    def book(self) -> Book:
        file = self.folder / f"{uuid4()}.journal"
        export(Format.HLEDGER, self.shop.db, file)
        assert check(Format.HLEDGER, file) == ""
        done = run_hledger("-f", file, "balance", "--flat", "--empty", "--no-total", "-O", "csv")
        rows = list(csv.reader(done.stdout.splitlines()))[1:]
        assert rows, done.stderr
        return Book(
            balances={
                account_code(name): -int(Decimal(text.split(" ")[0]).scaleb(9))
                for name, text in rows
            }
        )

    def issue(self, tenant: Tenant, period: tuple[date, date] = SEPTEMBER) -> Invoice:
        self.invoices.append(self.shop.issue(tenant, period))
        return self.invoices[-1]


@pytest.fixture(scope="module")
def stories(
    postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stories]:
    with fresh(postgres_url, template) as db:
        with db.transaction() as tx:
            rate = Rate(nanos=1_234_567, per=1_000)
            price = market.set_price(tx, "model:gemma:output", rate, now=BEGIN)
            store.add_tax(tx, VAT, now=BEGIN)
        shop = Shop(db=db, price=price)
        yield Stories(shop=shop, folder=tmp_path_factory.mktemp("books"), invoices=[])


def in_cents(nanos: int) -> int:
    return round(Fraction(nanos, _CENT)) * _CENT


def test_what_was_paid_ahead_is_owed_until_it_is_used(stories: Stories) -> None:
    tenant = stories.shop.tenant(usd=100)
    assert stories.book().tenant(tenant) == {"wallet": 100 * NANOS}, (
        "and no revenue, ever: no breakage"
    )
    name = account_name(Format.HLEDGER, tenant.wallet)
    assert name.startswith("liabilities:")


def test_revenue_is_what_was_used_when_it_was_used_whenever_it_is_billed(stories: Stories) -> None:
    shop = stories.shop
    tenant = shop.tenant(usd=100)
    used = shop.use(tenant, 3_000_001, at(9, 5))
    assert used == round(Fraction(3_000_001 * 1_234_567, 1_000))
    left = {"wallet": 100 * NANOS - used, "revenue": used}
    assert stories.book().tenant(tenant) == left, "before any invoice"
    invoice = stories.issue(tenant)
    rounding = in_cents(used) - used
    assert (invoice.totals.net, invoice.totals.rounding) == (used, rounding)
    book = stories.book()
    assert book.tenant(tenant) == left | {"wallet": left["wallet"] - rounding}, "the rounding alone"
    assert account_name(Format.HLEDGER, tenant.revenue).startswith("income:")


def test_rounding_has_an_account_of_its_own_and_is_no_revenue(stories: Stories) -> None:
    before = stories.book().of("house:rounding")
    shop = stories.shop
    made = []
    for tokens in (1_001, 2_003, 4_007):
        tenant = shop.tenant(usd=10)
        made.append(shop.use(tenant, tokens, at(9, 6)))
        stories.issue(tenant)
    added = sum(in_cents(nanos) - nanos for nanos in made)
    assert added
    assert stories.book().of("house:rounding") - before == added


def test_tax_is_owed_to_whose_it_is_and_the_tenant_owes_nothing_once_it_paid(
    stories: Stories,
) -> None:
    shop, code = stories.shop, "house:tax:DE"
    before = stories.book().of(code)
    tenant = shop.tenant(usd=100, jurisdiction="DE")
    used = shop.use(tenant, 2_000_000, at(9, 7))
    stories.issue(tenant)
    tax = round(Fraction(used * 19, 100))
    book = stories.book()
    assert book.of(code) - before == tax
    assert account_name(Format.HLEDGER, code).startswith("liabilities:")
    total = in_cents(used + tax)
    assert book.tenant(tenant) == {"wallet": 100 * NANOS - total, "revenue": used}


def test_who_has_not_paid_owes_tax_and_rounding_as_a_receivable(stories: Stories) -> None:
    shop = stories.shop
    tenant = shop.tenant(usd=0, jurisdiction="DE")
    with shop.db.transaction() as tx:
        service.set_credit_line(tx, tenant.id, Money(5 * NANOS), now=at(9, 1))
    used = shop.use(tenant, 1_000_000, at(9, 8))
    invoice = stories.issue(tenant)
    tax = round(Fraction(used * 19, 100))
    owed = in_cents(used + tax) - used
    line = {"wallet": 5 * NANOS - used, "credit_line": -5 * NANOS, "revenue": used}
    assert stories.book().tenant(tenant) == line | {"receivable": -owed}
    receivable = account_name(Format.HLEDGER, f"tenant:{tenant.id}:receivable")
    assert receivable.startswith("assets:")
    bank = stories.book().of("house:bank")
    due = Money(invoice.payable_nanos)
    with shop.db.transaction() as tx:
        service.pay(tx, invoice.number, due, reference="transfer 1", now=NOW)
    book = stories.book()
    excess = due.nanos - in_cents(used + tax)  # banks move whole cents
    assert book.tenant(tenant) == line | {"wallet": 5 * NANOS + excess}
    assert book.of("house:bank") - bank == -due.nanos


def test_what_a_contract_sets_aside_is_revenue_day_by_day_used_or_not(stories: Stories) -> None:
    """Take or pay: this is what becomes revenue without being used, and the rule is the contract."""
    shop = stories.shop
    tenant = shop.tenant(usd=10_000)
    start = datetime(2026, 9, 10, tzinfo=UTC)
    shop.sign(tenant, shop.pool(), start, [(4, 8, "2.00")])
    shop.pass_days(start - timedelta(days=1), start + timedelta(days=2))
    day = 8 * 24 * 2 * NANOS
    assert stories.book().tenant(tenant)["revenue"] == 2 * day, "two of its four days are over"
    shop.pass_days(start + timedelta(days=2), start + timedelta(days=6))
    assert stories.book().tenant(tenant) == {
        "revenue": 4 * day, "wallet": 10_000 * NANOS - 4 * day
    }  # fmt: skip


def test_the_shortfall_to_a_contracts_minimum_is_revenue_at_its_end(stories: Stories) -> None:
    shop = stories.shop
    tenant = shop.tenant(usd=10_000)
    start = datetime(2026, 9, 12, tzinfo=UTC)
    shop.sign(tenant, shop.pool(), start, [(2, 4, "2.00")], minimum_usd=1_000)
    capacity = 2 * 24 * 4 * 2 * NANOS
    shop.pass_days(start - timedelta(days=1), start + timedelta(days=1))
    assert stories.book().tenant(tenant)["revenue"] == capacity // 2
    shop.pass_days(start + timedelta(days=1), start + timedelta(days=4))
    assert stories.book().tenant(tenant)["revenue"] == 1_000 * NANOS
    invoice = stories.issue(tenant, (date(2026, 9, 1), date(2026, 10, 1)))
    assert invoice.totals.net == 1_000 * NANOS


def test_a_credit_for_a_broken_promise_is_less_revenue_and_no_cost(stories: Stories) -> None:
    shop = stories.shop
    tenant = shop.tenant(usd=10_000)
    start = datetime(2026, 9, 14, tzinfo=UTC)
    signed = shop.sign(tenant, shop.pool(), start, [(3, 8, "2.00")])
    shop.pass_days(start - timedelta(days=1), start + timedelta(days=5))
    with shop.db.transaction() as tx:
        (step,) = contracts.steps_of(tx, signed.id)
    credit = 12_345_678_901
    shop.credit(tenant, step, start + timedelta(days=1), credit)
    earned = 3 * 24 * 8 * 2 * NANOS - credit
    assert stories.book().tenant(tenant) == {
        "revenue": earned, "wallet": 10_000 * NANOS - earned
    }  # fmt: skip
    assert stories.issue(tenant).totals.net == earned


def test_a_credit_note_takes_revenue_and_its_tax_back_into_the_wallet(stories: Stories) -> None:
    shop, code = stories.shop, "house:tax:DE"
    tenant = shop.tenant(usd=100, jurisdiction="DE")
    used = shop.use(tenant, 5_000_000, at(9, 9))
    invoice = stories.issue(tenant)
    before, part = stories.book(), 2 * NANOS + 3
    with shop.db.transaction() as tx:
        note = service.correct(
            tx, invoice.number, Money(part), why="slow", id_=uuid4(), now=NOW
        )  # fmt: skip
    stories.invoices.append(note)
    tax = round(Fraction(part * 19, 100))
    book = stories.book()
    assert book.of(code) - before.of(code) == -tax
    paid = in_cents(used + round(Fraction(used * 19, 100))) - in_cents(part + tax)
    assert book.tenant(tenant) == {"revenue": used - part, "wallet": 100 * NANOS - paid}


def test_what_a_suspended_tenant_has_is_still_owed_to_it(stories: Stories) -> None:
    shop = stories.shop
    tenant = shop.tenant(usd=0, jurisdiction="DE")
    with shop.db.transaction() as tx:
        service.set_credit_line(tx, tenant.id, Money(7 * NANOS), now=at(9, 1))
    used = shop.use(tenant, 1_000_000, at(9, 10))
    stories.issue(tenant)
    owed = in_cents(used + round(Fraction(used * 19, 100))) - used
    with shop.db.transaction() as tx:
        dunning.set_steps(tx, [Step(days=1, action=Action.SUSPEND)])
        (step,) = service.dun_due(tx, tenant.id, now=NOW + timedelta(days=30))
        dunning.set_steps(tx, [])
    assert step.action is Action.SUSPEND
    assert stories.book().tenant(tenant) == {
        "suspended": 7 * NANOS - used, "credit_line": -7 * NANOS, "revenue": used, "receivable": -owed,
    }  # fmt: skip
    name = account_name(Format.HLEDGER, f"tenant:{tenant.id}:suspended")
    assert name.startswith("liabilities:")


def test_in_the_end_revenue_in_the_journal_is_what_was_invoiced_or_is_to_be(
    stories: Stories,
) -> None:
    shop = stories.shop
    tenant = shop.tenant(usd=100)
    shop.use(tenant, 777, at(9, 20))
    stories.issue(tenant)
    later = shop.use(tenant, 555, at(10, 3))
    seal_all(shop.db, now=NOW)
    book = stories.book()
    invoiced = sum(one.totals.net for one in stories.invoices if one.tenant_id == tenant.id)
    assert book.tenant(tenant)["revenue"] == invoiced + later
    assert book.of("house:rounding") == sum(one.totals.rounding for one in stories.invoices)
    assert book.of("house:tax:DE") == sum(one.totals.tax for one in stories.invoices)
    assert sum(book.balances.values()) == 0
    stories.issue(tenant, OCTOBER)
    shop.verify(credits_of_our_own=True)
