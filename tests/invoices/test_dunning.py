"""Bills that are not paid, budgets that are spent: who is told, and what follows; by a real mail server."""

import email
import email.policy
import hmac
import json
import ssl
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from tests.app.test_webhooks import Server
from tests.core.databases import fresh
from tests.invoices.shop import BEGIN, NOW, VAT, Shop, at

from sublet.app.bootstrap import top_up
from sublet.app.mail import Post, secret_of
from sublet.app.posting import Poster
from sublet.core import certificates
from sublet.core.clock import ManualClock
from sublet.core.errors import Invalid, NotFound, Unpaid
from sublet.core.money import NANOS, Money, Rate
from sublet.core.net import free_port
from sublet.invoices import budgets, dunning, outgoing, service, store
from sublet.invoices.budgets import Budget
from sublet.invoices.dunning import Action, Step
from sublet.invoices.invoice import State
from sublet.leases import admission
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.market import store as market
from sublet.market.price import Tier
from sublet.tenants.tenant import Tenant

pytestmark = pytest.mark.real
STEPS = [Step(days=3, action=Action.REMIND), Step(days=10, action=Action.SUSPEND)]


class Inbox:
    """A mail server on loopback, which answers as it is told."""

    def __init__(self, **settings: Any) -> None:
        self.letters: list[Any] = []
        self.answers: list[str] = []
        self.logins: list[tuple[bytes, bytes, bool]] = []  # name, password, whether encrypted
        if settings:
            settings["authenticator"] = self.let_in
        self._controller = Controller(self, hostname="127.0.0.1", port=free_port(), **settings)
        self._controller.start()
        self.port = self._controller.port

    async def handle_DATA(  # noqa: N802 -- aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        answer = self.answers.pop(0) if self.answers else "250 OK"
        if answer.startswith("250"):
            assert isinstance(envelope.content, bytes)
            self.letters.append(
                email.message_from_bytes(envelope.content, policy=email.policy.default)
            )
        return answer

    def let_in(
        self, server: SMTP, _session: Session, _envelope: Envelope, _how: str, given: Any
    ) -> AuthResult:
        """Take one name and one password."""
        encrypted = server.transport.get_extra_info("sslcontext") is not None
        self.logins.append((given.login, given.password, encrypted))
        known = (given.login, given.password) == (b"bills@x", b"p@ss word")
        return AuthResult(success=known, handled=False)

    def stop(self) -> None:
        self._controller.stop()


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    found = Inbox()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def shop(postgres_url: str, template: str) -> Iterator[Shop]:
    with fresh(postgres_url, template) as db:
        with db.transaction() as tx:
            rate = Rate(nanos=1_234_567, per=1_000)
            price = market.set_price(tx, "model:gemma:output", rate, now=BEGIN)
            store.add_tax(tx, VAT, now=BEGIN)
            dunning.set_steps(tx, STEPS)
        yield Shop(db=db, price=price)


def post_of(
    shop: Shop, clock: ManualClock, inbox: Inbox | None, poster: Poster | None = None
) -> Post:
    return Post(
        shop.db, clock=clock, signing_key="key", sender="Bills <bills@example.com>",
        smtp=None if inbox is None else f"smtp://127.0.0.1:{inbox.port}", seller="Example Compute",
        poster=poster,
    )  # fmt: skip


def owing(shop: Shop) -> Tenant:
    """Return a tenant on credit with an invoice that is due on 16 November, and 2 USD of its own."""
    tenant = shop.tenant(usd=0, jurisdiction="DE", email="pay@acme.example")
    with shop.db.transaction() as tx:
        service.set_credit_line(tx, tenant.id, Money(5 * NANOS), now=at(10, 1))
    shop.use(tenant, 1_000_000, at(10, 5))
    shop.issue(tenant)
    return tenant


def rows(shop: Shop, tenant: Tenant) -> list[dict[str, Any]]:
    with shop.db.transaction() as tx:
        return outgoing.list_of(tx, tenant.id)


def dun(shop: Shop, tenant: Tenant, days: int) -> list[Action]:
    with shop.db.transaction() as tx:
        now = at(11, 16) + timedelta(days=days)
        return [step.action for step in service.dun_due(tx, tenant.id, now=now)]


def buy(shop: Shop, tenant: Tenant, pool: str) -> None:
    request = Request(
        pool=pool, gpus=1, tier=Tier.INTERRUPTIBLE, max_duration=timedelta(hours=1),
        spec=Spec(command=["x"]),
    )  # fmt: skip
    with shop.db.transaction() as tx:
        admission.admit(tx, tenant, request, jobs=[], now=NOW)


def test_who_does_not_pay_is_reminded_then_suspended_and_resumed_by_paying(shop: Shop) -> None:
    tenant, pool = owing(shop), shop.pool()
    assert dun(shop, tenant, 2) == []
    assert dun(shop, tenant, 3) == [Action.REMIND]
    assert dun(shop, tenant, 9) == [], "each step once"
    buy(shop, tenant, pool)
    before = shop.balance(tenant.wallet)
    assert dun(shop, tenant, 10) == [Action.SUSPEND]
    aside = shop.balance(f"tenant:{tenant.id}:suspended")
    assert aside + shop.balance(tenant.wallet) == before
    with pytest.raises(Unpaid):
        buy(shop, tenant, pool)
    with pytest.raises(Unpaid):
        shop.use(tenant, 1_000, at(11, 27))
    with shop.db.transaction() as tx:
        top_up(tx, tenant, Money(NANOS), payment="while suspended", now=at(11, 28))
    assert shop.balance(f"tenant:{tenant.id}:suspended") == aside + NANOS, "it buys nothing either"
    assert dun(shop, tenant, 30) == []
    shop.verify()
    (invoice,) = shop.documents(tenant)
    with shop.db.transaction() as tx:
        amount = Money(invoice.payable_nanos)
        service.pay(tx, invoice.number, amount, reference="late", now=at(11, 29))
        assert not dunning.is_suspended(tx, tenant)
        again = outgoing.list_of(tx, tenant.id)
    assert shop.balance(f"tenant:{tenant.id}:suspended") == 0
    buy(shop, tenant, pool)
    assert [row["subject"] for row in again] == [
        "Suspended: INV-000001 is not paid", "Reminder: INV-000001 is not paid", "Invoice INV-000001",
    ]  # fmt: skip
    shop.verify()


def test_who_tops_up_enough_is_taken_for_paid(shop: Shop) -> None:
    tenant = shop.tenant(usd=1, jurisdiction="DE")
    left = NANOS - shop.use(tenant, NANOS * 1_000 // 1_234_567, at(10, 5))  # so the tax is due
    invoice = shop.issue(tenant)
    assert invoice.state is State.ISSUED
    assert dun(shop, tenant, 12) == [Action.REMIND, Action.SUSPEND], "after an outage both"
    with shop.db.transaction() as tx:
        top_up(tx, tenant, Money(NANOS), payment="p", now=at(11, 28))
    assert dun(shop, tenant, 13) == []
    (invoice,) = shop.documents(tenant)
    assert invoice.state is State.PAID
    assert shop.balance(tenant.wallet) == left + NANOS - (
        invoice.totals.total - invoice.prepaid_nanos
    )
    shop.verify()


def test_letters_go_out_once_with_the_invoice_and_again_when_the_server_is_busy(
    shop: Shop, inbox: Inbox
) -> None:
    tenant = owing(shop)
    clock = ManualClock(NOW)
    nobody = post_of(shop, clock, None)
    nobody.step()
    post = post_of(shop, clock, inbox)
    inbox.answers = ["451 come back later"]
    while post.step():
        pass
    clock.advance(timedelta(minutes=3))
    while post.step():
        pass
    (row,) = rows(shop, tenant)
    (letter,) = (one for one in inbox.letters if one["Message-ID"].startswith(f"<{row['id']}@"))
    assert letter["Subject"].startswith("Invoice INV-")
    assert letter["From"] == "Bills <bills@example.com>"
    assert "USD are due by 2026-11-16" in letter.get_body().get_content()
    (pdf,) = letter.iter_attachments()
    assert pdf.get_content().startswith(b"%PDF-")
    told = len(inbox.letters)
    clock.advance(timedelta(days=1))
    assert post.step() == 0
    assert len(inbox.letters) == told
    assert (row["outcome"], row["detail"]) == ("delivered", "delivered")


LOGIN = "bills%40x:p%40ss%20word@"


@pytest.mark.parametrize(
    ("scheme", "login", "trusted", "outcome"),
    [
        ("smtp", LOGIN, True, "delivered"),  # STARTTLS, then the password
        ("smtps", LOGIN, True, "delivered"),  # encrypted from the first byte
        ("smtp", "bills%40x:wrong@", True, "535"),
        ("smtp", LOGIN, False, "CERTIFICATE_VERIFY_FAILED"),
        ("smtps", LOGIN, False, "CERTIFICATE_VERIFY_FAILED"),
        ("plain", LOGIN, True, "no password is sent to it"),  # it offers no STARTTLS
        ("smtp", "", True, "530"),  # it wants a login
    ],
)
def test_a_password_goes_encrypted_to_a_server_that_is_known_or_not_at_all(
    shop: Shop, folder: Path, scheme: str, login: str, trusted: bool, outcome: str
) -> None:
    made = certificates.ensure(folder / "tls", hosts=(), now=datetime.now(UTC))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.server, made.server_key)
    kinds: dict[str, dict[str, Any]] = {
        "smtp": {"tls_context": context, "auth_required": True},
        # By its lights these two take passwords in the clear, as some servers do.
        "smtps": {"ssl_context": context, "auth_require_tls": False},
        "plain": {"auth_require_tls": False},
    }
    box = Inbox(**kinds[scheme])
    try:
        tenant = owing(shop)
        clock = ManualClock(NOW)
        post = Post(
            shop.db, clock=clock, signing_key="key", sender="bills@example.com", seller="Example",
            smtp=f"{scheme.replace('plain', 'smtp')}://{login}localhost:{box.port}",
            tls=ssl.create_default_context(cafile=made.ca if trusted else None),
        )  # fmt: skip
        while post.step():
            pass
        (row,) = rows(shop, tenant)
        assert outcome in row["detail"], row["detail"]
        delivered = outcome == "delivered"
        mine = [one for one in box.letters if one["Message-ID"].startswith(f"<{row['id']}@")]
        assert len(mine) == delivered
        assert all(encrypted for *_, encrypted in box.logins), "never in the clear"
        if delivered:
            assert box.logins[-1][:2] == (b"bills@x", b"p@ss word")
    finally:
        box.stop()


def test_what_is_old_is_not_sent_to_a_server_that_comes_later(shop: Shop, inbox: Inbox) -> None:
    tenant = owing(shop)
    post = post_of(shop, ManualClock(NOW + timedelta(days=4)), inbox)
    while post.step():
        pass
    (row,) = rows(shop, tenant)
    assert (row["outcome"], row["detail"]) == ("given_up", "it is too old to be sent")


def test_a_budget_tells_of_its_shares_once_a_month_signed(
    shop: Shop, inbox: Inbox, folder: Path
) -> None:
    server = Server(folder)
    tenant = shop.tenant()
    budget = Budget(
        tenant_id=tenant.id, name="all", amount=Money(2 * NANOS), percents=(50, 100),
        email="cfo@acme.example", webhook=server.url,
    )  # fmt: skip
    try:
        with shop.db.transaction() as tx:
            budgets.put(tx, budget)
        assert alert(shop, budget) == []
        shop.use(tenant, 1_000_000, NOW)  # 1.234567 USD
        assert alert(shop, budget) == [50]
        assert alert(shop, budget) == []
        shop.use(tenant, 1_000_000, NOW)
        assert alert(shop, budget) == [100]
        poster = Poster(allowed=lambda _: True, tls=server.tls)
        post = post_of(shop, ManualClock(NOW), inbox, poster)
        while post.step():
            pass
        said = [json.loads(body) for _, _, body in server.got]
        assert [one["percent"] for one in said] == [50, 100]
        assert (said[0]["spent_usd"], said[0]["month"]) == ("1.234567", "2026-11")
        _, headers, body = server.got[0]
        when, _, given = headers["Sublet-Signature"].partition(",v1=")
        signed = when.removeprefix("t=").encode() + b"." + body
        secret = secret_of("key", tenant.id).encode()
        assert hmac.new(secret, signed, sha256).hexdigest() == given
        mine = [one["Subject"] for one in inbox.letters if one["To"] == budget.email]
        assert sorted(mine) == [
            "100 % of the budget all are spent", "50 % of the budget all are spent",
        ]  # fmt: skip
        with shop.db.transaction() as tx:
            budgets.remove(tx, tenant.id, "all")
            with pytest.raises(NotFound, match="no budget"):
                budgets.remove(tx, tenant.id, "all")
    finally:
        server.close()
    with pytest.raises(Invalid, match="say whom to tell"):
        Budget(tenant_id=tenant.id, name="x", amount=Money(1))


def alert(shop: Shop, budget: Budget) -> list[int]:
    with shop.db.transaction() as tx:
        return list(budgets.alert(tx, budget, zone_name="UTC", now=NOW))


def test_two_steps_of_one_day_are_refused(shop: Shop) -> None:
    with shop.db.transaction() as tx:
        with pytest.raises(Invalid, match="two of one day"):
            dunning.set_steps(tx, [STEPS[0], Step(days=3, action=Action.SUSPEND)])
        assert dunning.list_steps(tx) == STEPS
    assert STEPS[0].days < (date(2026, 11, 30) - date(2026, 11, 16)).days
