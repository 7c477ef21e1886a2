"""A tenant leases, looks at what it costs and sets a budget, in the console; nobody else sees it."""

import re
from collections.abc import Iterator
from datetime import date, timedelta
from uuid import uuid4

import pytest
from tests.console.house import Browser, House

from sublet.core.ids import new_id
from sublet.core.money import Money, Rate
from sublet.invoices import service
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market import store as market
from sublet.market.price import Tier, lease_sku
from sublet.tenants.person import PersonRole

PRICES = {Tier.INTERRUPTIBLE: 1.25, Tier.ON_DEMAND: 2.5, Tier.RESERVED: 2.0}
OURS = ("/", "/rent", "/your-leases", "/keys", "/usage", "/budgets", "/billing", "/status")


@pytest.fixture(scope="module")
def shop(house: House) -> House:
    """Something to buy, and money to buy it with."""
    now = house.clock.now()
    with house.db.transaction() as tx:
        for tier, usd in PRICES.items():
            rate = Rate(nanos=int(usd * 1e9), per=3600)
            market.set_price(tx, lease_sku("h200", tier), rate, now=now)
        cash = ledger.open_account(tx, "house:cash", prepaid=False)
        for tenant in (house.acme, house.other):
            payment = Transfer(
                id=new_id(), debit_account=cash.id, amount=Money(100 * 10**9), reason="payment",
                credit_account=ledger.get_account(tx, tenant.wallet).id, happened_at=now,
            )  # fmt: skip
            ledger.post(tx, payment, now=now)
    return house


@pytest.fixture(scope="module")
def member(shop: House) -> Iterator[Browser]:
    return shop.signed_in(PersonRole.TENANT_MEMBER)


def there(answer: object) -> str:
    """Return where an action sends the browser."""
    location = getattr(answer, "headers", {}).get("location", "")
    assert location.startswith("/console"), getattr(answer, "text", "")
    return str(location).removeprefix("/console")


def test_a_lease_is_bought_in_three_steps_once(shop: House, member: Browser) -> None:
    offers = member.get("/rent").text
    assert "$1.25</b> a GPU-hour" in offers and "8 GPUs free" in offers
    asked = {"pool": "h200", "tier": "interruptible", "gpus": "2", "hours": "1.5"}
    quote = there(member.post("/rent/quote", **asked))
    shown = member.get(quote).text
    assert "$3.75" in shown and "10 s to save its work" in shown
    id_ = re.search(r'name="id" value="([0-9a-f-]+)"', shown)
    assert id_ is not None
    bought = member.post(f"{quote}/accept", id=id_[1], command="echo hello")
    again = member.post(f"{quote}/accept", id=id_[1], command="echo hello")
    assert there(bought) == there(again) == f"/your-leases/{id_[1]}"
    other = member.post(f"{quote}/accept", id=str(uuid4()), command="echo hello")
    assert other.status_code == 409
    assert "It was bought" in member.get(quote).text
    page = member.get(there(bought)).text
    assert "<b>admitted</b>" in page and "2 \N{MULTIPLICATION SIGN} h200" in page
    assert id_[1] in member.get("/your-leases").text
    assert id_[1] in member.get("/your-leases", format="csv").text
    stranger = shop.browser()
    stranger.accept(shop.invite(PersonRole.TENANT_ADMIN, other=True), email="eve@other.example")
    for path in (quote, there(bought), f"{there(bought)}/logs"):
        assert stranger.get(path).status_code == 404
    assert stranger.post(f"{there(bought)}/end").status_code == 404
    assert stranger.post(f"{quote}/accept", id=str(uuid4()), command="x").status_code == 404
    for path in OURS:
        seen = stranger.get(path).text
        for theirs in (str(shop.acme.id), shop.acme.name, id_[1]):
            assert theirs not in seen, (path, theirs)
    assert member.post(f"{there(bought)}/end").status_code == 303
    assert "released" in member.get(there(bought)).text


def test_a_window_is_booked_from_its_quote(shop: House, member: Browser) -> None:
    start = shop.clock.now() + timedelta(hours=2)
    asked = {"pool": "h200", "tier": "reserved", "gpus": "1", "hours": "3"}
    assert member.post("/rent/quote", **asked).status_code == 422
    quote = there(member.post("/rent/quote", **asked, starts_at=f"{start:%Y-%m-%dT%H:%M}"))
    assert "$6.00" in member.get(quote).text
    id_ = str(uuid4())
    assert there(member.post(f"{quote}/accept", id=id_)) == "/your-leases"
    assert id_[:8] in member.get("/your-leases").text
    assert there(member.post(f"{quote}/accept", id=id_)) == "/your-leases"
    for wrong in ({"gpus": "x"}, {"hours": "-1"}, {"pool": "none"}, {"tier": "gold"}):
        answer = member.post("/rent/quote", **(asked | wrong), starts_at=f"{start:%Y-%m-%dT%H:%M}")
        assert answer.status_code in {404, 422}, wrong


def test_usage_budgets_and_billing_say_what_is_so(shop: House) -> None:
    admin = shop.signed_in(PersonRole.TENANT_ADMIN)
    assert "Nothing was charged in this time" in admin.get("/usage").text
    assert admin.get("/usage", format="csv").text.startswith("day,group,amount_usd")
    assert admin.get("/usage", by="colour").status_code == 422
    budget = {"name": "all", "amount": "20", "email": "ann@acme.example", "percents": "50, 100"}
    assert admin.post("/budgets", **budget).status_code == 303
    assert "of $20.00" in admin.get("/budgets").text
    assert admin.post("/budgets", **(budget | {"percents": "half"})).status_code == 422
    assert admin.post("/budgets/remove", name="all").status_code == 303
    assert "No budget yet" in admin.get("/budgets").text
    billing = admin.get("/billing").text
    assert "payment" in billing and f"{shop.acme.name} {shop.acme.id}" in billing
    for number in ("0", "7", "x", "9" * 30):
        assert admin.get(f"/billing/{number}").status_code == 404
    member = shop.signed_in(PersonRole.TENANT_MEMBER)
    assert member.post("/budgets", **budget).status_code == 403


def test_an_invoice_is_read_and_fetched_by_its_tenant_alone(shop: House) -> None:
    with shop.db.transaction() as tx:
        made = service.issue(
            tx, shop.acme.id, date(2026, 2, 1), date(2026, 3, 1), now=shop.clock.now()
        )
    member = shop.signed_in(PersonRole.TENANT_MEMBER)
    assert made.label in member.get("/billing").text
    assert "2026-02-01" in member.get(f"/billing/{made.number}").text
    pdf = member.get(f"/billing/{made.number}/pdf")
    assert pdf.content.startswith(b"%PDF") and pdf.headers["content-type"] == "application/pdf"
    eve = shop.browser()
    eve.accept(shop.invite(PersonRole.TENANT_ADMIN, other=True), email="eva@other.example")
    assert made.label not in eve.get("/billing").text
    for path in (f"/billing/{made.number}", f"/billing/{made.number}/pdf"):
        assert eve.get(path).status_code == 404
