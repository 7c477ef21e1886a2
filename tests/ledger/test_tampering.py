# ruff: noqa: S608 -- the statements are ours, and meant to do harm
"""An audit that cannot fail proves nothing: tamper with the record, and see it named."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Final
from uuid import UUID, uuid4

import psycopg
import pytest
from tests.core.databases import fresh, undone
from tests.finance.lots import a_lot

from sublet.app import bootstrap
from sublet.app.audit import audit
from sublet.app.idempotency import QUERIES as CALLS
from sublet.app.loop import Control
from sublet.core.audit import Difference, Findings
from sublet.core.clock import ManualClock
from sublet.core.db import Database, Tx
from sublet.core.ids import derived_id
from sublet.core.money import Money, Rate
from sublet.core.seal import seal_all
from sublet.engine.port import Node, Workload
from sublet.engine.simulated import SimulatedEngine
from sublet.finance import store as finance
from sublet.finance.asset import Change
from sublet.invoices import service as billing
from sublet.invoices import store as invoices
from sublet.invoices.budgets import Budget
from sublet.invoices.invoice import Tax
from sublet.invoices.store import QUERIES as BILLING
from sublet.leases import admission
from sublet.leases import audit as leases_audit
from sublet.leases.lease import LeaseId
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.ledger import audit as ledger_audit
from sublet.ledger import store as ledger
from sublet.ledger.audit import RECORDS
from sublet.ledger.transfer import Transfer
from sublet.market import service as pricing
from sublet.market import store as market
from sublet.market.floor import Cost
from sublet.market.price import Tier, output_sku, training_sku
from sublet.metering import audit as metering_audit
from sublet.metering import store as metering
from sublet.metering import tags
from sublet.metering.usage import Line, Outcome, Usage
from sublet.suppliers import store as suppliers
from sublet.suppliers.purchase import Bought, Purchase, record
from sublet.suppliers.supplier import Dialect, Rates, Supplier
from sublet.suppliers.usage import KINDS, Used
from sublet.tenants import people
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)
SHORT, FIRM, OPEN, JOB = (UUID(int=n) for n in (1, 2, 3, 9))


def tell_a_story(db: Database) -> datetime:
    """Live an honest quarter of an hour in which everything happens once; return its end.

    One lease expires, a firm one gives way to an internal job, one still runs, and somebody
    used a model.
    """
    clock = ManualClock(START)
    engine = SimulatedEngine([Node(name="a", gpu_model="h200", gpus=8, memory_bytes=1)], clock)
    control = Control(
        db=db, engine=engine, clock=clock, first_notice_seconds=10, replicas=None
    )  # fmt: skip
    control.tick()
    with db.transaction() as tx:
        tenant = tenants.create_tenant(tx, "acme", now=START)
        bootstrap.open_accounts(tx, tenant)
        bootstrap.top_up(tx, tenant, Money(5_000_000_000), payment=1, now=START)

    def ask(id_: UUID, gpus: int, tier: Tier, seconds: int) -> None:
        request = Request(
            id=LeaseId(id_),
            pool="h200",
            gpus=gpus,
            tier=tier,
            max_duration=seconds * SECOND,
            spec=Spec(command=["serve"]),
        )
        with db.transaction() as tx:
            admission.admit(tx, tenant, request, jobs=engine.internal_jobs(), now=clock.now())

    def pass_time(seconds: int) -> None:
        for _ in range(seconds // 5):
            clock.advance(5 * SECOND)
            control.tick()

    ask(SHORT, 2, Tier.INTERRUPTIBLE, 90)
    pass_time(100)
    ask(FIRM, 4, Tier.ON_DEMAND, 3600)
    pass_time(100)
    job = Workload(id=JOB, gpu_model="h200", gpus=8, command=["sleep", "60"], sandboxed=False)
    engine.submit_internal(job, name="training", submitted_at=clock.now())
    pass_time(120)
    use_a_model(db, tenant, now=clock.now())
    buy_an_answer(db, tenant, now=clock.now())
    teach_a_model(db, tenant, now=clock.now())
    name_a_call(db, now=clock.now())
    set_a_floor(db, now=clock.now())
    keep_books(db, now=clock.now())
    ask(OPEN, 1, Tier.INTERRUPTIBLE, 3600)
    pass_time(40)
    return clock.now()


def use_a_model(db: Database, tenant: Tenant, *, now: datetime) -> None:
    with db.transaction() as tx:
        price = market.set_price(tx, output_sku("gemma"), Rate(nanos=7, per=3), now=now)
        wallet = ledger.get_account(tx, tenant.wallet)
        revenue = ledger.get_account(tx, tenant.revenue)
        hold = Transfer(
            id=uuid4(),
            debit_account=wallet.id,
            credit_account=revenue.id,
            amount=Money(900),
            reason="tokens",
            happened_at=now,
        )
        ledger.hold(tx, hold, holder="gateway:x", expires_at=now + 60 * SECOND, now=now)
        usage = Usage(
            id=derived_id("usage", "r-1"),
            source="gateway:x",
            sequence=1,
            tenant_id=tenant.id,
            model="gemma",
            request_id="r-1",
            output_tokens=100,
            delivered_tokens=100,
            outcome=Outcome.COMPLETED,
            happened_at=now,
        )
        metering.settle(
            tx, usage, [Line(price=price, quantity=100)], hold_id=hold.id, now=now
        )  # fmt: skip


def teach_a_model(db: Database, tenant: Tenant, *, now: datetime) -> None:
    """Let a fine-tuning job fail after a checkpoint, and end a batch of which nothing was answered."""
    tuning, file, artefact, batch = (uuid4() for _ in range(4))
    with db.transaction() as tx:
        key, _ = tenants.create_key(tx, tenant.id, "tuning", now=now)
        price = market.set_price(tx, training_sku("base"), Rate(nanos=7, per=3), now=now)
        for id_ in (file, artefact):
            tx.execute(
                "INSERT INTO artefact (id, tenant_id, kind, state, origin, source, created_at, since)"
                " VALUES (%s, %s, 'file', 'deleted', 'upload', '{}', %s, %s)",
                (id_, tenant.id, now, now),
            )
        tx.execute(
            "INSERT INTO stored_file (id, tenant_id, created_at) VALUES (%s, %s, %s)",
            (file, tenant.id, now),
        )
        tx.execute(
            "INSERT INTO model (name, title, recipe, serving, licence, licence_url, created_at)"
            " VALUES ('base', 'Base', 'base', '{}', '', '', %s)",
            (now,),
        )
        tx.execute(
            "INSERT INTO tuning (id, tenant_id, api_key_id, base, suffix, training_file, method,"
            " metadata, price_id, state, tokens, created_at, ended_at)"
            " VALUES (%s, %s, %s, 'base', '', %s, '{}', '{}', %s, 'failed', 9, %s, %s)",
            (tuning, tenant.id, key.id, file, price.id, now, now),
        )
        tx.execute(
            "INSERT INTO tuning_checkpoint (tuning_id, step, tokens, artefact_id, lease_id, metrics,"
            " happened_at, recorded_at) VALUES (%s, 1, 5, %s, %s, '{}', %s, %s)",
            (tuning, artefact, uuid4(), now, now),
        )
        tx.execute(
            "INSERT INTO batch_end (batch_id, tenant_id, total, answered, refused, expired,"
            " cancelled, happened_at, recorded_at) VALUES (%s, %s, 2, 0, 1, 1, 0, %s, %s)",
            (batch, tenant.id, now, now),
        )


def set_a_floor(db: Database, *, now: datetime) -> None:
    cost = Cost.of_usd(watts=0, pue=1, usd_per_kwh=0, wear=0, support=0, capital=9)
    with db.transaction() as tx:
        pricing.set_floor(tx, "h200", cost, capital_share=1, exception="an old deal", now=now)


def name_a_call(db: Database, *, now: datetime) -> None:
    call = {
        "caller": ["operator"], "key": ["k-1"], "method": ["POST"], "path": ["/v1/tenants"],
        "body_digest": [bytes(32)], "status": [201], "response": ["{}"], "created_at": [now],
    }  # fmt: skip
    with db.transaction() as tx:
        tx.execute(CALLS["insert_answers"], call)


def keep_books(db: Database, *, now: datetime) -> None:
    """Buy a lot, think of its life anew, and send a bill."""
    lot = a_lot()
    change = Change(
        lot=lot.name, effective_on=date(2027, 1, 1), life_months=72, salvage=lot.salvage
    )
    tax = Tax(
        jurisdiction="DE", name="VAT", percent=Fraction(19), valid_from=date(2025, 1, 1),
        valid_until=None,
    )  # fmt: skip
    yesterday = START.date() - timedelta(days=1)
    with db.transaction() as tx:
        finance.add(tx, [lot], [change], now=now)
        invoices.add_tax(tx, tax, now=now)
        invoices.add_exchange_rate(tx, "EUR", yesterday, 920_000_000, "a bank", now=now)
        other = tenants.create_tenant(tx, "billed", now=now)
        bootstrap.open_accounts(tx, other)
        billing.issue(tx, other.id, yesterday, START.date(), now=now)
        bill = Budget(tenant_id=other.id, name="x", amount=Money(1), email="a@b.c")
        tx.execute(
            BILLING["insert_alert"],
            {"id": bill.id, "month": yesterday, "percent": 50, "spent_nanos": 1, "now": now},
        )
        tx.execute(
            BILLING["insert_dunning_event"],
            {"invoice_id": derived_id("invoice", 1), "days": 0, "action": "remind", "now": now},
        )
        tags.put(tx, FIRM, {"team": "research"}, tenant_id=None, now=now)
        people.note_change(
            tx, uuid4(), "asked", person_id=None, tenant_id=other.id, action="pool.policy",
            subject="h200", before=None, after={"lendable": False}, now=now,
        )  # fmt: skip


def buy_an_answer(db: Database, tenant: Tenant, *, now: datetime) -> None:
    """Buy from outside what own replicas did not give."""
    rates = Rates(
        id=0, tier="default", nanos=dict.fromkeys(KINDS, 7), per=3, happened_at=now
    )  # fmt: skip
    with db.transaction() as tx:
        suppliers.put(
            tx,
            Supplier(name="acme", dialect=Dialect.OPENAI, url="https://a.example", project="acme"),
        )
        price = suppliers.add_rates(tx, "acme", "big", rates, now=now)
        used = Used(input=10, output=100)
        bought = Purchase(
            id=uuid4(), supplier="acme", model="big", deployment="gemma", tenant_id=tenant.id,
            request_id="r-2", supplier_request="x", asked_tier="default", tier="default",
            price_id=price, used=used, amount_nanos=rates.cost(used).nanos, outcome="completed",
            basis="reported", first_token_ms=1, happened_at=now,
        )  # fmt: skip
        assert record(tx, [Bought.write(bought)], now=now) == 1


class Told:
    """The story's database, and when it ends."""

    def __init__(self, db: Database, now: datetime) -> None:
        self.db = db
        self.now = now


@pytest.fixture(scope="module")
def told(postgres_url: str, template: str) -> Iterator[Told]:
    with fresh(postgres_url, template) as db:
        yield Told(db, tell_a_story(db))


def differences(told: Told, statements: Sequence[str]) -> list[Difference]:
    """Return what the audits say after `statements`, which are then taken back."""
    findings = Findings()
    with undone(told.db) as tx:
        for statement in statements:
            changed = tx.execute(statement.encode())
            assert changed.rowcount != 0, f"nothing to tamper with: {statement}"
        look(tx, findings, now=told.now)
    return findings.differences


def look(tx: Tx, findings: Findings, *, now: datetime) -> None:
    leases_audit.audit(tx, findings, now=now)
    ledger_audit.audit(tx, findings, now=now)
    metering_audit.audit(tx, findings, now=now)


def unguarded(table: str, *statements: str) -> list[str]:
    """Do `statements` with a table's guards off, and on again as if nothing had been."""
    return [
        f"ALTER TABLE {table} DISABLE TRIGGER USER",
        *statements,
        f"ALTER TABLE {table} ENABLE TRIGGER USER",
    ]


def test_an_honest_story_has_no_difference(told: Told) -> None:
    findings = audit(told.db, clock=ManualClock(told.now))
    assert findings.differences == []
    counts = findings.counts
    assert set(counts) == {
        "internal_first", "no_double_sale", "money", "no_overspend", "charged_once", "past_stands",
        "invoices", "purchases", "fine_tuning", "batches",
    }  # fmt: skip
    assert counts["no_double_sale"]["internal_gpu_seconds"] == 8 * 60
    assert counts["no_double_sale"]["lease_gpu_seconds"] > 2 * 90
    assert counts["internal_first"]["internal_jobs"] == 1
    assert counts["charged_once"]["ended_leases"] == 2
    assert counts["no_overspend"]["open_holds"] == 1
    assert counts["purchases"]["purchases"] == 1


WALLET = "code LIKE 'tenant:%:wallet' AND debits_posted > 0"
FREELY_NUMBERED = "ALTER TABLE transfer ALTER COLUMN sequence SET GENERATED BY DEFAULT"
ANY_VOID = "(SELECT id FROM transfer WHERE kind = 'void' LIMIT 1)"
TAMPERED = {
    # ---- money
    "a payment grows": (
        "money", "credits_posted",
        unguarded("transfer", "UPDATE transfer SET amount_nanos = amount_nanos + 1 WHERE reason = 'payment'"),
    ),
    "a transfer is gone": (
        "money", "its transfers say",
        unguarded("transfer", "DELETE FROM transfer WHERE reason = 'credit'"),
    ),
    "a wallet's counter grows": (
        "money", "debits and credits differ by -1",
        [f"UPDATE account SET credits_posted = credits_posted + 1 WHERE {WALLET}"],
    ),
    "two counters grow alike": (
        "money", "its transfers say",
        [
            f"UPDATE account SET credits_posted = credits_posted + 1 WHERE {WALLET}",
            "UPDATE account SET debits_posted = debits_posted + 1 WHERE code = 'house:bank'",
        ],
    ),
    "a hold is settled for more than it held": (
        "money", "does not fit hold",
        unguarded("transfer", "UPDATE transfer SET amount_nanos = 901 WHERE kind = 'post' AND reason = 'tokens'"),
    ),
    # ---- no overspend
    "money was spent before it came": (
        "no_overspend", "stood at -",
        unguarded("transfer", "UPDATE transfer SET sequence = DEFAULT WHERE reason = 'payment'"),
    ),
    "money was spent long before it came": (
        "no_overspend", "stood at -",
        unguarded("transfer", FREELY_NUMBERED, "UPDATE transfer SET sequence = sequence + 1000000 WHERE reason = 'payment'"),
    ),
    "a hold is resolved twice": (
        "no_overspend", "is resolved 2 times",
        ["DROP INDEX transfer_resolves_once",
         ("INSERT INTO transfer (id, kind, pending_id, debit_account, credit_account, amount_nanos, reason, happened_at, recorded_at)"
          " SELECT gen_random_uuid(), kind, pending_id, debit_account, credit_account, amount_nanos, reason, happened_at, recorded_at"
          " FROM transfer WHERE kind = 'post' AND reason = 'tokens'")],
    ),
    "a resolution is of another account": (
        "money", "does not fit hold",
        unguarded("transfer", "UPDATE transfer SET credit_account = (SELECT id FROM account WHERE code = 'house:bank')"
                  " WHERE kind = 'post' AND reason = 'tokens'"),
    ),
    "a hold is leaked": (
        "no_overspend", "open but resolved",
        [("INSERT INTO open_hold SELECT pending_id, 'gateway:x', '2026-02-01Z' FROM transfer"
         " WHERE kind = 'post' AND reason = 'tokens'")],
    ),
    "a hold is forgotten": (
        "no_overspend", "unresolved but not open",
        [f"DELETE FROM open_hold WHERE holder = 'lease:{OPEN}'"],
    ),
    "a hold outlives its time": (
        "no_overspend", "should have expired",
        ["UPDATE open_hold SET expires_at = '2026-01-01Z'"],
    ),
    "an ended lease holds money": (
        "no_overspend", "has ended and still holds money",
        [f"UPDATE open_hold SET holder = 'lease:{SHORT}'"],
    ),
    # ---- charged once
    "a charge grows": (
        "charged_once", "nanos for",
        unguarded("charge", "UPDATE charge SET amount_nanos = amount_nanos + 1, amounts[1] = amounts[1] + 1 WHERE quantities[1] = 100"),
    ),
    "a charge is more than its lines": (
        "charged_once", "all lines together",
        unguarded("charge", "UPDATE charge SET amount_nanos = amount_nanos + 1 WHERE quantities[1] = 100"),
    ),
    "a charge is gone": (
        "charged_once", "no charge explains it",
        unguarded("charge", "DELETE FROM charge WHERE quantities[1] = 100"),
    ),
    "a charge is another tenant's": (
        "charged_once", "another tenant's",
        [
            "INSERT INTO tenant VALUES (gen_random_uuid(), 'other', 'customer', false, now())",
            *unguarded("charge", "UPDATE charge SET tenant_id = (SELECT id FROM tenant WHERE name = 'other')"),
        ],
    ),
    "a charge is paid by another one's money": (
        "charged_once", "its charges add up to",
        unguarded("charge", "UPDATE charge SET transfer_id = (SELECT id FROM transfer WHERE kind = 'post' AND reason = 'lease' LIMIT 1)"
                  " WHERE quantities[1] = 100"),
    ),
    "a charge is paid by a payment": (
        "charged_once", "its charges add up to",
        unguarded("charge", "UPDATE charge SET transfer_id = (SELECT id FROM transfer WHERE reason = 'payment') WHERE quantities[1] = 100"),
    ),
    "a charge of nothing names no transfer that is there": (
        "charged_once", "names a transfer that is not there",
        [
            ("INSERT INTO usage (id, source, sequence, tenant_id, model, outcome, happened_at, recorded_at)"
             " SELECT '00000000-0000-0000-0000-00000000000f', 's', 1, id, 'm', 'completed', now(), now() FROM tenant LIMIT 1"),
            ("INSERT INTO charge (usage_id, tenant_id, price_ids, quantities, amounts, amount_nanos, transfer_id, happened_at, recorded_at)"
             " SELECT id, tenant_id, '{}', '{}', '{}', 0, gen_random_uuid(), now(), now() FROM usage WHERE source = 's'"),
        ],
    ),
    "a use and its charge grow alike": (
        "charged_once", "its charges add up to",
        [
            *unguarded("usage", "UPDATE usage SET output_tokens = 103 WHERE model = 'gemma'"),
            *unguarded("charge", "UPDATE charge SET quantities = '{103}', amounts = '{240}', amount_nanos = 240 WHERE quantities[1] = 100"),
        ],
    ),
    "a charge has a price of its own": (
        "charged_once", "names a price that is not there",
        unguarded("charge", "UPDATE charge SET price_ids = '{4711}' WHERE quantities[1] = 100"),
    ),
    "a use grows": (
        "charged_once", "is not charged in full",
        unguarded("usage", "UPDATE usage SET output_tokens = 101 WHERE model = 'gemma'"),
    ),
    "a lease's seconds grow": (
        "charged_once", "were billed",
        unguarded("usage", f"UPDATE usage SET gpu_seconds = gpu_seconds + 2 WHERE lease_id = '{SHORT}'"),
    ),
    "a lease ran longer than its record": (
        "charged_once", "was usable for",
        [f"UPDATE lease SET stopped_at = stopped_at + interval '1 hour' WHERE id = '{SHORT}'"],
    ),
    "a price changes after the fact": (
        "charged_once", "of model:gemma:output at",
        unguarded("price", "UPDATE price SET nanos = nanos + 3 WHERE sku = 'model:gemma:output'"),
    ),
    "a request is reported twice": (
        "charged_once", "request r-1 was charged 2 times",
        [("INSERT INTO usage (id, source, sequence, tenant_id, model, request_id, outcome, happened_at, recorded_at)"
         " SELECT gen_random_uuid(), source, 99, tenant_id, model, request_id, outcome, happened_at, recorded_at"
         " FROM usage WHERE request_id = 'r-1'")],
    ),
    "a use is of nobody": (
        "charged_once", "names a tenant that is not there",
        [("INSERT INTO usage (id, source, sequence, tenant_id, model, outcome, happened_at, recorded_at)"
         " VALUES (gen_random_uuid(), 's', 1, gen_random_uuid(), 'm', 'completed', now(), now())")],
    ),
    "a charge is for no use": (
        "charged_once", "names a usage that is not there",
        [("INSERT INTO charge (usage_id, tenant_id, price_ids, quantities, amounts, amount_nanos, happened_at, recorded_at)"
         " SELECT gen_random_uuid(), id, '{}', '{}', '{}', 0, now(), now() FROM tenant LIMIT 1")],
    ),
    # ---- the past stands
    "a move is gone": (
        "past_stands", "which it cannot",
        unguarded("lease_event", f"DELETE FROM lease_event WHERE lease_id = '{SHORT}' AND version = 3"),
    ),
    "a first move is gone": (
        "past_stands", "begins as admitted",
        unguarded("lease_event", f"DELETE FROM lease_event WHERE lease_id = '{SHORT}' AND version = 1"),
    ),
    "a move is moved in time": (
        "past_stands", "its record says from",
        unguarded("lease_event", "UPDATE lease_event SET happened_at = happened_at + interval '1 second' WHERE state = 'running'"),
    ),
    "a lease skips its draining": (
        "past_stands", "which it cannot",
        unguarded("lease_event", f"UPDATE lease_event SET state = 'ended' WHERE lease_id = '{SHORT}' AND state = 'draining'"),
    ),
    "an internal job's submission is gone": (
        "past_stands", "was never submitted",
        unguarded("internal_job_event", "DELETE FROM internal_job_event WHERE event = 'submitted'"),
    ),
    "a lease is not where its record says": (
        "past_stands", "its record says otherwise",
        [f"UPDATE lease SET state = 'running' WHERE id = '{SHORT}'"],
    ),
    # ---- no double sale
    "an internal job ran on leased GPUs": (
        "no_double_sale", "9 of 8 GPUs in use",
        [("INSERT INTO internal_job_event"
         " SELECT '00000000-0000-0000-0000-00000000000a', e, 'h200', 7, 'x', '2026-01-01T00:00:10Z', '2026-01-01T00:00:10Z'"
         " FROM unnest(ARRAY['submitted', 'started']) AS e")],
    ),
    "there were fewer GPUs than sold": (
        "no_double_sale", "of 1 GPUs in use",
        unguarded("pool_event", "UPDATE pool_event SET gpus = 1"),
    ),
    # ---- internal first
    "an internal job waited for leases": (
        "internal_first", "should have had its GPUs",
        unguarded("internal_job_event", "UPDATE internal_job_event SET happened_at = happened_at - interval '1 minute'"
                  " WHERE event = 'submitted'"),
    ),
}  # fmt: skip


def test_where_the_record_is_cut_for_the_replay_does_not_matter(told: Told) -> None:
    far_apart = unguarded(
        "transfer", FREELY_NUMBERED, "UPDATE transfer SET sequence = sequence * 200000"
    )
    assert differences(told, far_apart) == []


@pytest.mark.parametrize("what", TAMPERED)
def test_the_audit_names_what_was_tampered_with(told: Told, what: str) -> None:
    law, words, statements = TAMPERED[what]
    found = differences(told, statements)
    assert any(one.law == law and words in one.what for one in found), found


@pytest.mark.parametrize("table", RECORDS)
@pytest.mark.parametrize("way", ["DROP TRIGGER {} ON {}", "ALTER TABLE {1} DISABLE TRIGGER {0}"])
def test_a_missing_guard_is_reported(told: Told, table: str, way: str) -> None:
    for guard in ("the_past_stands", "the_past_is_not_cut"):
        found = differences(told, [way.format(guard, table)])
        assert found == [
            Difference(law="past_stands", what=f"table {table} is not guarded against change")
        ]


# No contract is in the story.
OF_CONTRACTS = {
    "coming_capacity": "INSERT INTO coming_capacity"
    " (id, pool, name, gpus, ready_at, happened_at, recorded_at)"
    " VALUES (gen_random_uuid(), 'h200', 'hall 2', 1, now(), now(), now())",
    "contract_delivery": "INSERT INTO contract_delivery"
    " (reservation_id, contract_id, gpus, happened_at, recorded_at)"
    " VALUES (gen_random_uuid(), gen_random_uuid(), 1, now(), now())",
    "contract_break": "INSERT INTO contract_break"
    " (id, reservation_id, contract_id, gpus, happened_at, recorded_at)"
    " VALUES (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, now(), now())",
}


@pytest.mark.parametrize("table", RECORDS)
@pytest.mark.parametrize(
    "way", ["UPDATE {0} SET {1} = {1}", "DELETE FROM {0}", "TRUNCATE {0} CASCADE"]
)
def test_records_cannot_be_changed(told: Told, table: str, way: str) -> None:
    column = {
        "internal_job_event": "gpus", "pool_event": "gpus", "lease_event": "state",
        "idempotency_key": "status", "seal": "rows", "credit": "gpus", "asset_lot": "name",
        "asset_change": "lot", "tax_rate": "name", "exchange_rate": "source", "invoice": "number",
    }.get(table, "happened_at")  # fmt: skip
    seal_all(told.db, now=START)
    with told.db.transaction() as tx:
        if table in OF_CONTRACTS:
            tx.execute("SET LOCAL session_replication_role = 'replica'")
            tx.execute(OF_CONTRACTS[table].encode())
            tx.execute("SET LOCAL session_replication_role = 'origin'")
        with pytest.raises(psycopg.errors.IntegrityError, match="never changed or removed"):
            tx.execute(way.format(table, column).encode())
        tx.rollback()
