"""A shop that sells tokens, leases, windows and contracts, and issues invoices: for tests."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from uuid import uuid4

from sublet.app.audit import audit
from sublet.app.bootstrap import open_accounts, top_up
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.money import NANOS, Money
from sublet.core.seal import seal_all
from sublet.finance.focus.columns import Dataset, Form, Version
from sublet.finance.focus.export import export
from sublet.fleet import store as fleet
from sublet.invoices import service, store
from sublet.invoices.invoice import Invoice, Profile, Tax, month_of
from sublet.leases import admission, blocks, booking, contracts
from sublet.leases import store as leases
from sublet.leases.contract import Contract, Step
from sublet.leases.lease import EndReason, Lease, Move, State
from sublet.leases.reservation import Reservation
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market import store as market
from sublet.market.price import Price, Tier, lease_sku
from sublet.metering import store as metering
from sublet.metering.credits import Broken, give
from sublet.metering.lease_meter import settle_blocks
from sublet.metering.reservation_meter import close_contracts, settle_windows
from sublet.metering.usage import Line, Outcome, Usage
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

BEGIN = datetime(2026, 8, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 2, 9, tzinfo=UTC)
SEPTEMBER = (date(2026, 9, 1), date(2026, 10, 1))
OCTOBER = (date(2026, 10, 1), date(2026, 11, 1))
VAT = Tax(
    jurisdiction="DE", name="VAT", percent=Fraction(19), valid_from=date(2026, 1, 1),
    valid_until=None,
)  # fmt: skip


@dataclass(slots=True)
class Shop:
    """Tenants that use tokens, and the seals that invoices wait for."""

    db: Database
    price: Price
    used: int = 0

    def tenant(self, *, usd: int = 100, **profile: object) -> Tenant:
        with self.db.transaction() as tx:
            tenant = tenants.create_tenant(tx, f"tenant {uuid4()}", now=BEGIN)
            open_accounts(tx, tenant)
            if usd:
                top_up(tx, tenant, Money(usd * NANOS), payment="first", now=BEGIN)
            if profile:
                values: dict[str, object] = {
                    "tenant_id": tenant.id, "legal_name": "Acme Ltd", "address": "1 High Street",
                    "tax_id": "", "jurisdiction": "", "currency": "USD", "email": "",
                    "terms_days": 14, "time_zone": "UTC", "threshold": None,
                }  # fmt: skip
                store.put_profile(tx, Profile(**values | profile))  # type: ignore[arg-type]
        return tenant

    def use(self, tenant: Tenant, tokens: int, at: datetime) -> int:
        """Charge tokens; return the nanos."""
        self.used += 1
        usage = Usage(
            id=uuid4(), source="test", sequence=self.used, tenant_id=tenant.id, model="gemma",
            output_tokens=tokens, delivered_tokens=tokens, outcome=Outcome.COMPLETED, happened_at=at,
        )  # fmt: skip
        line = Line(price=self.price, quantity=tokens)
        amount = metering.price_of([line])
        with self.db.transaction() as tx:
            wallet, revenue = ledger.lock(tx, tenant.wallet, tenant.revenue)
            hold = Transfer(
                id=uuid4(), debit_account=wallet.id, credit_account=revenue.id, amount=amount,
                reason="tokens", happened_at=at,
            )  # fmt: skip
            ledger.hold(tx, hold, holder="test", expires_at=at + timedelta(days=400), now=at)
            metering.settle(tx, usage, [line], hold_id=hold.id, now=at)
        return amount.nanos

    def issue(
        self, tenant: Tenant, period: tuple[date, date] = OCTOBER, now: datetime = NOW
    ) -> Invoice:
        seal_all(self.db, now=now)
        with self.db.transaction() as tx:
            return service.issue(tx, tenant.id, *period, now=now)

    def lines(self, invoice: Invoice) -> list[int]:
        with self.db.transaction() as tx:
            row = store.get_row(tx, id_=invoice.id)
        return [line.amount_nanos for line in store.read_lines(row)]

    def balance(self, code: str) -> int:
        with self.db.transaction() as tx:
            return ledger.open_account(tx, code, prepaid=False).balance.nanos

    def documents(self, tenant: Tenant) -> list[Invoice]:
        """Return the tenant's invoices and credit notes."""
        with self.db.transaction() as tx:
            rows = store.list_invoices(tx, tenant.id, limit=1_000)
        return [store.read_invoice(row) for row in rows]

    def exported(self, tenant: Tenant, *, now: datetime) -> dict[str, int]:
        """Return what each invoice adds up to in all months of FOCUS, in nanos."""
        sums: dict[str, Decimal] = {}
        months = {document.ends_at.date().replace(day=1) for document in self.documents(tenant)}
        months |= {document.issued_at.date().replace(day=1) for document in self.documents(tenant)}
        months |= {month_of(day - timedelta(days=5))[0] for day in months}
        with self.db.transaction() as tx:
            for month in sorted(months):
                pieces = export(
                    tx, Dataset.COST_AND_USAGE, Version.V1_4, Form.CSV, month=month, seller="x",
                    tenant_id=tenant.id, now=now,
                )  # fmt: skip
                text = b"".join(pieces).decode()
                for row in csv.DictReader(io.StringIO(text, newline="")):
                    label = row["InvoiceId"]
                    sums[label] = sums.get(label, Decimal(0)) + Decimal(row["BilledCost"])
        return {label: int(amount * NANOS) for label, amount in sums.items()}

    def verify(self, *, credits_of_our_own: bool = False) -> None:
        """Let the auditors find nothing; `credit` gives what no broken promise explains, as they see."""
        findings = audit(self.db, clock=ManualClock(NOW + timedelta(days=30)))
        differences = [
            found
            for found in findings.differences
            if not (credits_of_our_own and "credit" in found.what and found.law == "charged_once")
        ]
        assert differences == [], differences[:3]

    # ── GPUs ─────────────────────────────────────────────────────────────────────────────

    def pool(self, gpus: int = 64) -> str:
        """Open a pool that rents at 2 USD a GPU-hour, and 3 on demand."""
        name = f"h200-{uuid4()}"
        with self.db.transaction() as tx:
            fleet.observe_pools(tx, {name: gpus}, notice_seconds=10, now=BEGIN)
            for tier, usd in (
                (Tier.INTERRUPTIBLE, "2"),
                (Tier.ON_DEMAND, "3"),
                (Tier.RESERVED, "2.5"),
            ):
                market.set_price(tx, lease_sku(name, tier), market.usd_per_hour(usd), now=BEGIN)
        return name

    def lease(
        self, tenant: Tenant, pool: str, start: datetime, seconds: int, gpus: int = 2
    ) -> Lease:
        """Let a tenant run an interruptible lease for so long, and charge it."""
        request = Request(
            pool=pool, gpus=gpus, tier=Tier.INTERRUPTIBLE, max_duration=timedelta(seconds=seconds),
            spec=Spec(command=["x"]),
        )  # fmt: skip
        with self.db.transaction() as tx:
            lease = admission.admit(tx, tenant, request, jobs=[], now=start)
        return self._run(lease, start, seconds, pay=True)

    def draw(
        self, tenant: Tenant, sold: Reservation, start: datetime, seconds: int, gpus: int
    ) -> Lease:
        """Use GPUs of a window for so long."""
        request = Request(
            pool=sold.pool, gpus=gpus, tier=sold.tier, max_duration=timedelta(seconds=seconds),
            spec=Spec(command=["x"]), reservation=sold.id,
        )  # fmt: skip
        with self.db.transaction() as tx:
            lease = booking.draw(tx, tenant, request, jobs=[], now=start)
        return self._run(lease, start, seconds, pay=False)

    def _run(self, lease: Lease, start: datetime, seconds: int, *, pay: bool) -> Lease:
        end = start + timedelta(seconds=seconds)
        with self.db.transaction() as tx:
            for to in (State.PROVISIONING, State.RUNNING):
                lease = lease.move(Move(to=to, at=start))
                leases.save(tx, lease, now=start)
            if pay:
                lease = replace(
                    lease, paid_until=blocks.paid_until(lease, blocks=1, running_at=start)
                )
                while lease.paid_until is not None and lease.paid_until < end:
                    paid = blocks.hold_next(tx, [lease], now=start)
                    lease = replace(lease, paid_until=paid[lease.id])
            lease = lease.move(Move(to=State.DRAINING, at=end, reason=EndReason.RELEASED))
            leases.save(tx, lease, now=end)
        if pay:
            settle_blocks(lease, db=self.db, seen_until=end, now=end)
        with self.db.transaction() as tx:
            lease = lease.move(Move(to=State.ENDED, at=end))
            leases.save(tx, lease, now=end)
        return lease

    def sign(
        self, tenant: Tenant, pool: str, start: datetime, steps: Sequence[tuple[int, int, str]],
        minimum_usd: int = 0,
    ) -> Contract:  # fmt: skip
        """Sign a contract a day before its start; steps are (days, GPUs, USD a GPU-hour)."""
        begins, made = start, []
        for days, gpus, usd in steps:
            made.append(Step(starts_at=begins, gpus=gpus, rate=market.usd_per_hour(usd)))
            begins += timedelta(days=days)
        contract = Contract(
            id=uuid4(), tenant_id=tenant.id, pool=pool, name="capacity", steps=tuple(made),
            ends_at=begins, signed_at=start - timedelta(days=1), notice=timedelta(seconds=10),
            minimum=Money(minimum_usd * NANOS), shortfall_percent=100, notice_days=30, recall_days=None, renewal_days=0,
        )  # fmt: skip
        with self.db.transaction() as tx:
            return contracts.sign(tx, contract, now=contract.signed_at)

    def pass_days(self, start: datetime, end: datetime) -> None:
        """Let windows be held, charged and closed, a day at a time."""
        at = start
        while at <= end:
            settle_windows(self.db, now=at)
            close_contracts(self.db, now=at)
            at += timedelta(days=1)

    def credit(self, tenant: Tenant, sold: Reservation, at: datetime, nanos: int) -> None:
        broken = Broken(
            transfer_id=uuid4(), tenant_id=tenant.id, pool=sold.pool, lease=None,
            reservation_id=sold.id, gpus=1, broken_at=at, promised_until=at + timedelta(hours=1),
            percent=100, price_id=sold.price_id, amount=Money(nanos),
        )  # fmt: skip
        with self.db.transaction() as tx:
            give(tx, broken, now=at)


def at(month: int, day: int, hour: int = 12) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=UTC)
