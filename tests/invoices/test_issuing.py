"""Invoices from charges: each charge on one of them, whatever came late, was voided or corrected."""

import csv
import io
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from uuid import uuid4

import mockeinvoice
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tests.core.databases import fresh
from tests.invoices.shop import BEGIN, NOW, OCTOBER, SEPTEMBER, VAT, Shop, at
from tests.ledger.test_journal import check

from sublet.app.admissions import Admissions
from sublet.app.audit import audit
from sublet.app.bootstrap import bootstrap, open_accounts
from sublet.app.control import build_api
from sublet.app.secrets import Secrets, load_or_make
from sublet.app.services import Services
from sublet.config import Config
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.errors import Conflict, Invalid, Refused
from sublet.core.money import NANOS, Money, Rate
from sublet.core.seal import seal_all
from sublet.engine.simulated import SimulatedEngine
from sublet.invoices import service, store
from sublet.invoices.invoice import Invoice, State
from sublet.leases import contracts
from sublet.leases.contract import bill
from sublet.ledger.journal import Format
from sublet.market import store as market
from sublet.tenants import store as tenants

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def shop(postgres_url: str, template: str) -> Iterator[Shop]:
    with fresh(postgres_url, template) as db:
        with db.transaction() as tx:
            price = market.set_price(
                tx, "model:gemma:output", Rate(nanos=1_234_567, per=1_000), now=BEGIN
            )
            store.add_tax(tx, VAT, now=BEGIN)
        yield Shop(db=db, price=price)


def test_each_charge_is_on_one_invoice_and_what_came_late_on_the_next(shop: Shop) -> None:
    tenant = shop.tenant()
    first = shop.use(tenant, 1_000, at(9, 3)) + shop.use(tenant, 2_001, at(9, 30, 23))
    second = shop.use(tenant, 500, at(10, 1, 0))
    september = shop.issue(tenant, SEPTEMBER)
    assert (september.totals.net, september.state) == (first, State.PAID)
    late = shop.use(tenant, 77, at(9, 15))
    october = shop.issue(tenant, OCTOBER)
    assert october.totals.net == second + late
    assert october.number == september.number + 1
    assert shop.issue(tenant, SEPTEMBER) == september, "the same period is the same invoice"
    assert shop.issue(tenant, OCTOBER) == october
    shop.verify()


def test_tax_and_rounding_are_posted_and_paid_from_the_wallet(shop: Shop) -> None:
    tenant = shop.tenant(jurisdiction="DE")
    net = shop.use(tenant, 10_000, at(10, 5))
    tax, rounding = shop.balance("house:tax:DE"), shop.balance("house:rounding")
    wallet = shop.balance(tenant.wallet)
    invoice = shop.issue(tenant)
    totals = invoice.totals
    assert totals.net == net
    assert totals.tax == round(Fraction(net * 19, 100))
    assert totals.total % (NANOS // 100) == 0
    assert shop.balance("house:tax:DE") - tax == totals.tax
    assert shop.balance("house:rounding") - rounding == totals.rounding
    assert wallet - shop.balance(tenant.wallet) == totals.total - net
    assert shop.balance(f"tenant:{tenant.id}:receivable") == 0
    assert invoice.state is State.PAID


def test_what_the_wallet_cannot_pay_is_due_and_paid_by_hand_once(shop: Shop) -> None:
    tenant = shop.tenant(usd=1, jurisdiction="DE")
    left = NANOS * 1_000 // 1_234_567
    shop.use(tenant, left, at(10, 5))  # all of it
    invoice = shop.issue(tenant)
    assert invoice.state is State.ISSUED
    assert 0 < invoice.due_nanos <= invoice.payable_nanos < invoice.due_nanos + NANOS // 100
    assert invoice.due_on == date(2026, 11, 16)
    amount = Money(invoice.payable_nanos)
    with pytest.raises(Invalid, match="is due with"), shop.db.transaction() as tx:
        service.pay(tx, invoice.number, Money(1), reference="a", now=NOW)
    for _ in range(2):
        with shop.db.transaction() as tx:
            paid = service.pay(tx, invoice.number, amount, reference="bank 4711", now=NOW)
        assert paid.state is State.PAID
    with pytest.raises(Conflict, match="other means"), shop.db.transaction() as tx:
        service.pay(tx, invoice.number, amount, reference="bank 4712", now=NOW)
    assert shop.balance(f"tenant:{tenant.id}:receivable") == 0
    shop.verify()


def test_on_credit_a_tenant_pays_afterwards_and_never_uses_more_than_its_line(shop: Shop) -> None:
    tenant = shop.tenant(usd=0, jurisdiction="DE")
    with shop.db.transaction() as tx:
        service.set_credit_line(tx, tenant.id, Money(5 * NANOS), now=at(10, 1))
        service.set_credit_line(tx, tenant.id, Money(5 * NANOS), now=at(10, 1))
    assert shop.balance(tenant.wallet) == 5 * NANOS
    net = shop.use(tenant, 3_000, at(10, 5))
    invoice = shop.issue(tenant)
    assert (invoice.state, invoice.prepaid_nanos) == (State.ISSUED, 0)
    assert invoice.due_nanos == invoice.totals.total
    with shop.db.transaction() as tx:
        service.pay(tx, invoice.number, Money(invoice.payable_nanos), reference="x", now=NOW)
    assert shop.balance(tenant.wallet) == 5 * NANOS, "the line is whole again"
    assert net == invoice.totals.net
    with shop.db.transaction() as tx:
        service.set_credit_line(tx, tenant.id, Money(0), now=NOW)
    assert shop.balance(tenant.wallet) == 0
    shop.verify()


def test_a_void_invoice_opens_its_period_and_keeps_its_number(shop: Shop) -> None:
    tenant = shop.tenant(usd=1, jurisdiction="DE")
    shop.use(tenant, NANOS * 1_000 // 1_234_567, at(10, 5))
    tax = shop.balance("house:tax:DE")
    first = shop.issue(tenant)
    with shop.db.transaction() as tx:
        assert service.void(tx, first.number, why="address", now=NOW).state is State.VOID
    assert shop.balance("house:tax:DE") == tax
    again = shop.issue(tenant)
    assert again.number == first.number + 1
    assert again.totals == first.totals
    with pytest.raises(Conflict, match="is void"), shop.db.transaction() as tx:
        service.pay(tx, first.number, Money(first.payable_nanos), reference="x", now=NOW)
    shop.verify()


def test_a_correction_is_a_credit_note_with_its_tax_and_closed_periods_stand(shop: Shop) -> None:
    tenant = shop.tenant(jurisdiction="DE")
    net = shop.use(tenant, 10_000, at(9, 5))
    invoice = shop.issue(tenant, SEPTEMBER)
    wallet, id_ = shop.balance(tenant.wallet), uuid4()
    part = Money(net // 3)
    for _ in range(2):
        with shop.db.transaction() as tx:
            note = service.correct(tx, invoice.number, part, why="slow", id_=id_, now=NOW)
    assert note.totals.net == -part.nanos
    assert note.totals.tax == -round(Fraction(part.nanos * 19, 100))
    assert shop.balance(tenant.wallet) - wallet == -note.totals.total
    with pytest.raises(Invalid, match="are left to credit"), shop.db.transaction() as tx:
        service.correct(tx, invoice.number, Money(net), why="more", id_=uuid4(), now=NOW)
    for number, why in ((invoice.number, "is paid"), (note.number, "is paid")):
        with pytest.raises(Conflict, match=why), shop.db.transaction() as tx:
            service.void(tx, number, why="x", now=NOW)
    with pytest.raises(Refused, match="nothing to correct"), shop.db.transaction() as tx:
        service.correct(tx, note.number, Money(1), why="x", id_=uuid4(), now=NOW)
    shop.use(tenant, 5, at(10, 5))
    assert shop.issue(tenant).totals.net == 6_173, "the note is on no other invoice"
    shop.verify()


def test_periods_do_not_overlap_and_are_over(shop: Shop) -> None:
    tenant = shop.tenant()
    shop.use(tenant, 5, at(9, 5))
    shop.issue(tenant, SEPTEMBER)
    for period, why in (
        ((date(2026, 9, 15), date(2026, 10, 15)), "periods must not overlap"),
        ((date(2026, 8, 1), date(2026, 9, 1)), "is closed"),
        ((date(2026, 11, 1), date(2026, 12, 1)), "is to come"),
        ((date(2026, 10, 5), date(2026, 10, 5)), "ends after it starts"),
    ):
        with pytest.raises(Invalid, match=why):
            shop.issue(tenant, period)


def test_days_and_currencies_are_the_tenant_s(shop: Shop) -> None:
    tenant = shop.tenant(time_zone="America/New_York", currency="EUR")
    inside = shop.use(tenant, 100, at(11, 1, 3))  # still October there
    shop.use(tenant, 100, at(11, 1, 5))
    with pytest.raises(Invalid, match="no exchange rate of EUR for 2026-10-31"):
        shop.issue(tenant)
    with shop.db.transaction() as tx:
        store.add_exchange_rate(tx, "EUR", date(2026, 10, 31), 920_000_000, "ECB", now=NOW)
        store.add_exchange_rate(tx, "EUR", date(2026, 10, 31), 920_000_000, "ECB", now=NOW)
        with pytest.raises(Invalid, match="records stand"):
            store.add_exchange_rate(tx, "EUR", date(2026, 10, 31), 930_000_000, "x", now=NOW)
    invoice = shop.issue(tenant)
    assert invoice.totals.net == inside
    assert (invoice.currency, invoice.unit_nanos) == ("EUR", 920_000_000)


def test_a_gap_in_the_tax_table_and_rates_that_overlap_are_refused(shop: Shop) -> None:
    tenant = shop.tenant(jurisdiction="FR")
    shop.use(tenant, 5, at(10, 5))
    with pytest.raises(Invalid, match="no rate of 'FR' for 2026-10-31"):
        shop.issue(tenant)
    with pytest.raises(Invalid, match="must not overlap"), shop.db.transaction() as tx:
        store.add_tax(tx, VAT, now=NOW)


def test_what_is_due_is_issued_by_itself_monthly_and_over_a_threshold(shop: Shop) -> None:
    tenant = shop.tenant(threshold=Money(1_000_000))

    def due(now: datetime) -> Invoice | None:
        seal_all(shop.db, now=now)
        with shop.db.transaction() as tx:
            return service.issue_due(tx, tenant.id, now=now)

    assert due(at(10, 2)) is None, "nothing was used"
    net = shop.use(tenant, 500, at(10, 3))
    assert due(at(10, 4)) is None
    more = shop.use(tenant, 500, at(10, 4))
    over = due(at(10, 5))
    assert over is not None
    assert over.totals.net == net + more
    assert (over.starts_at, over.ends_at) == (at(10, 1, 0), at(10, 5))
    assert due(at(10, 5)) is None
    rest = shop.use(tenant, 10, at(10, 20))
    month = due(at(11, 1, 1))
    assert month is not None
    assert (month.totals.net, month.starts_at) == (rest, at(10, 5))
    assert due(at(11, 1, 2)) is None
    shop.verify()


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_over_random_months_invoices_charges_focus_wallet_and_ledger_agree(
    shop: Shop, seed: int
) -> None:
    """Tokens told late, a contract with a ramp and a minimum, credits, credit notes, any zone."""
    dice = Random(seed)
    zone = dice.choice(["UTC", "America/New_York", "Asia/Kolkata"])
    tenant = shop.tenant(usd=100_000, jurisdiction=dice.choice(["", "DE"]), time_zone=zone)
    begins = at(9, dice.randint(2, 20), dice.randint(0, 23))
    steps = [(dice.randint(1, 9), dice.randint(1, 8), f"{dice.randint(100, 300) / 100}")]
    steps += [(dice.randint(1, 9), dice.randint(1, 8), "2.00")] * dice.randint(0, 2)
    signed = shop.sign(tenant, shop.pool(), begins, steps, minimum_usd=dice.choice([0, 9_000]))
    charged = noted = given = 0
    now, invoices = at(9, 1, 0), list[Invoice]()
    for _ in range(dice.randint(3, 9)):
        later = now + timedelta(hours=dice.randint(1, 400))
        shop.pass_days(now, later)
        now = later
        for _ in range(dice.randint(0, 3)):
            when = now - timedelta(hours=dice.choice([0, 0, 0, 30, 900]))
            charged += shop.use(tenant, dice.randint(1, 3_000), when)
        if now > begins and dice.random() < 0.3:
            with shop.db.transaction() as tx:
                step = dice.choice(contracts.steps_of(tx, signed.id))
            given += (nanos := dice.randint(1, 10**10))
            shop.credit(tenant, step, now, nanos)
        seal_all(shop.db, now=now)
        with shop.db.transaction() as tx:
            found = service.issue_due(tx, tenant.id, now=now)
        invoices += [found] if found else []
        if invoices and dice.random() < 0.3 and (one := dice.choice(invoices)).totals.net > 20:
            amount = Money(dice.randint(1, one.totals.net // 20))
            with shop.db.transaction() as tx:
                service.correct(tx, one.number, amount, why="x", id_=uuid4(), now=now)
            noted += amount.nanos
    end = max(now, signed.ends_at) + timedelta(days=2)
    shop.pass_days(now, end)
    owed = bill(signed, signed.starts_at, signed.ends_at)
    charged += sum(line.amount.nanos for line in owed)
    seal_all(shop.db, now=end)
    final = at(9, 1) + timedelta(days=900)
    with shop.db.transaction() as tx:
        last = service.issue_due(tx, tenant.id, now=final)
    invoices += [last] if last else []
    assert sum(one.totals.net for one in invoices) == charged - given
    assert shop.balance(tenant.revenue) == charged - given - noted
    for one in invoices:
        assert sum(shop.lines(one)) == one.totals.net
    assert shop.balance(tenant.wallet) == 100_000 * NANOS - sum(
        document.totals.total for document in shop.documents(tenant)
    ), "the wallet paid all of it"
    assert shop.exported(tenant, now=final) == {
        document.label: document.totals.total for document in shop.documents(tenant)
    }
    shop.verify(credits_of_our_own=True)


def test_over_the_api_with_a_pdf_and_a_journal_that_hledger_accepts(
    db: Database, folder: Path
) -> None:
    secrets: Secrets = load_or_make(folder / "secrets.json")
    with db.transaction() as tx:
        demo = bootstrap(tx, secrets, model=False, now=BEGIN)
        price = market.set_price(
            tx, "model:gemma:output", Rate(nanos=1_234_567, per=1_000), now=BEGIN
        )
        other = tenants.create_tenant(tx, "other", now=BEGIN)
        open_accounts(tx, other)
        tenants.create_key(tx, other.id, "k", key="sk-sublet-other", now=BEGIN)
    shop = Shop(db=db, price=price)
    shop.use(demo, 1_000_000, at(10, 5))
    seal_all(db, now=NOW)
    services = Services(
        config=Config(
            data=folder, seller="Example Compute", seller_country="GB", seller_tax_id="GB123456789",
            seller_endpoint="9932:GB123456789",
        ),
        db=db,
        engine=SimulatedEngine([], ManualClock(NOW)), internal_queue=None, clock=ManualClock(NOW),
        admissions=Admissions(db, jobs=list, clock=ManualClock(NOW)), replicas=None, signing_key="key", refuses_commands=None, artefacts=folder, wake=lambda: None,
    )  # fmt: skip
    operator = {"Authorization": f"Bearer {secrets.operator_key}"}
    tenant = {"Authorization": f"Bearer {secrets.tenant_key}"}
    stranger = {"Authorization": "Bearer sk-sublet-other"}
    body = {"tenant_id": str(demo.id), "from": "2026-10-01", "to": "2026-11-01"}
    with TestClient(build_api(services)) as api:
        profile = {"legal_name": "Acme Ltd", "address": "1 High Street", "jurisdiction": "DE"}
        put = api.put(f"/v1/tenants/{demo.id}/billing", json=profile, headers=operator)
        assert put.status_code == 200
        tax = {"jurisdiction": "DE", "name": "VAT", "percent": "19", "valid_from": "2026-01-01"}
        assert api.post("/v1/taxes", json=tax, headers=operator).status_code == 201
        draft = api.get("/v1/invoices/draft", params=body, headers=operator).json()
        assert (draft["net_usd"], draft["lines"]) == ("1.234567", 1)
        assert api.get("/v1/invoices", headers=operator).json() == {"items": []}
        named = operator | {"Idempotency-Key": "october"}
        made = [api.post("/v1/invoices", json=body, headers=named).json() for _ in range(2)]
        assert made[0] == made[1]
        assert made[0]["number"] == "INV-000001"
        assert (made[0]["total_usd"], made[0]["state"]) == ("1.47", "paid")
        assert made[0]["lines"][0]["description"] == "gemma: output tokens"
        assert [
            one["number"] for one in api.get("/v1/invoices", headers=tenant).json()["items"]
        ] == ["INV-000001"]
        assert api.get("/v1/invoices/1", headers=stranger).status_code == 404
        assert api.get("/v1/invoices", headers=stranger).json() == {"items": []}
        pdf = api.get("/v1/invoices/1/pdf", headers=tenant)
        assert pdf.headers["content-type"] == "application/pdf"
        assert pdf.content.startswith(b"%PDF-")
        lacking = api.get("/v1/invoices/1/ubl", headers=tenant)
        assert (lacking.status_code, "--country" in lacking.text) == (422, True)
        for path, sent, why in (
            ("/v1/invoices/1/void", {"why": "x"}, "is paid"),
            ("/v1/invoices/9/void", {"why": "x"}, "no invoice 9"),
            ("/v1/invoices/1/credit-notes", {"amount_usd": "9", "why": "x"}, "are left to credit"),
        ):
            refused = api.post(path, json=sent, headers=operator)
            assert why in refused.json()["error"]["message"]
            assert api.post(path, json=sent, headers=tenant).status_code == 403
        note = api.post(
            "/v1/invoices/1/credit-notes",
            json={"amount_usd": "0.50", "why": "slow"},
            headers=operator,
        ).json()
        assert (note["number"], note["total_usd"]) == ("CN-000002", "-0.60")
        profile |= {"country": "DE", "endpoint": "9930:DE136695976", "reference": "PO 4711"}
        put = api.put(f"/v1/tenants/{demo.id}/billing", json=profile, headers=operator)
        assert put.json()["endpoint"] == "9930:DE136695976"
        wrong = api.put(
            f"/v1/tenants/{demo.id}/billing", json=profile | {"endpoint": "x"}, headers=operator
        )
        assert (wrong.status_code, "endpoint" in wrong.text) == (422, True)
        shop.use(demo, 2_000_000, at(11, 1))
        seal_all(db, now=NOW + timedelta(days=30))
        with db.transaction() as tx:
            later = service.issue(
                tx, demo.id, date(2026, 11, 1), date(2026, 12, 1), now=NOW + timedelta(days=30)
            )
        sent = api.get(f"/v1/invoices/{later.number}/ubl", headers=tenant)
        assert sent.headers["content-type"] == "application/xml"
        assert mockeinvoice.validate(sent.content)[1].verdict == "valid"
        corrected = api.post(
            f"/v1/invoices/{later.number}/credit-notes", json={"amount_usd": "0.50", "why": "slow"},
            headers=operator,
        ).json()["number"]  # fmt: skip
        noted = api.get(f"/v1/invoices/{corrected.rpartition('-')[2]}/ubl", headers=tenant)
        assert mockeinvoice.validate(noted.content)[1].verdict == "valid"
        assert later.label.encode() in noted.content
        assert api.get(f"/v1/invoices/{later.number}/ubl", headers=stranger).status_code == 404
        assert api.post("/v1/invoices/run", json={}, headers=operator).json()["issued"] == []
        october = {"from": "2026-10-01", "to": "2026-11-01"}
        used = api.get(
            "/v1/usage", params=october | {"by": ["day", "model"]}, headers=tenant
        ).json()
        assert [(one["day"], one["model"], one["amount_usd"]) for one in used["items"]] == [
            ("2026-10-05", "gemma", "1.234567")
        ]
        assert api.get("/v1/usage", params=october, headers=stranger).json()["items"] == []
        of_demo = {"tenant_id": str(demo.id)}
        foreseen = api.get("/v1/usage/forecast", params=of_demo, headers=operator).json()
        assert (foreseen["month"], foreseen["days_seen"]) == ("2026-11", 28)
        assert api.get("/v1/usage", params=of_demo, headers=stranger).status_code == 403
        (key,) = api.get("/v1/keys", headers=tenant).json()["items"]
        tags = {"tags": {"team": "research"}}
        assert api.put(f"/v1/tags/{key['id']}", json=tags, headers=stranger).status_code == 404
        assert api.put(f"/v1/tags/{key['id']}", json=tags, headers=tenant).status_code == 200
        assert api.get(f"/v1/tags/{key['id']}", headers=operator).json()["tags"] == tags["tags"]
        budget = {"amount_usd": "3", "percents": [50, 100], "email": "cfo@acme.example"}
        put = api.put("/v1/budgets/all", json=budget, headers=tenant)
        assert (put.status_code, put.json()["spent_usd"]) == (200, "2.469134")
        (found,) = api.get("/v1/budgets", headers=tenant).json()["items"]
        assert (found["name"], found["amount_usd"], found["percents"]) == ("all", "3.00", [50, 100])
        assert api.get("/v1/budgets", headers=stranger).json()["items"] == []
        for wrong, why in (
            (budget | {"amount_usd": "0"}, "more than zero"),
            (budget | {"percents": [0]}, "percents"),
            (budget | {"email": ""}, "whom to tell"),
            (budget | {"webhook": "http://127.0.0.1/x"}, "webhook"),
        ):
            refused = api.put("/v1/budgets/all", json=wrong, headers=tenant)
            assert (refused.status_code, why in refused.text) == (422, True), refused.text
        assert api.delete("/v1/budgets/all", headers=stranger).status_code == 404
        assert api.delete("/v1/budgets/all", headers=tenant).status_code == 204
        assert api.delete("/v1/budgets/all", headers=tenant).status_code == 404
        asked = {"period": "2026-10", "format": "csv"}
        bill = api.get("/v1/exports/focus", params=asked, headers=tenant)
        rows = list(csv.DictReader(io.StringIO(bill.text, newline="")))
        assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal("1.47")
        for params, headers, status in (
            (asked, stranger, 200),
            (asked | of_demo, stranger, 403),
            (asked | {"period": "2026-13"}, tenant, 422),
            (asked | {"version": "1.2", "dataset": "invoice-detail"}, tenant, 422),
            (asked | {"version": "1.3"}, tenant, 422),
        ):
            answer = api.get("/v1/exports/focus", params=params, headers=headers)
            assert answer.status_code == status, answer.text
        export = api.get(f"/v1/ledger/export?format={Format.HLEDGER}", headers=operator)
    (folder / "ledger").write_bytes(export.content)
    assert check(Format.HLEDGER, folder / "ledger") == ""
    assert audit(db, clock=ManualClock(NOW)).differences == []
