"""Suppliers in Postgres: versions of prices, shares of quota, purchases and what is owed for them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from sublet.core.audit import Findings
from sublet.core.db import Database, Tx
from sublet.core.errors import Invalid, Misconfigured, NotFound
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.core.vault import Vault
from sublet.ledger import audit as ledger_audit
from sublet.ledger import store as ledger
from sublet.models import store as models
from sublet.models.deployment import Deployment
from sublet.suppliers import audit, quotas, service, store
from sublet.suppliers.purchase import Bought, Purchase, cost_of, payable_to, record
from sublet.suppliers.quota import Asked, Measure, Share
from sublet.suppliers.supplier import Dialect, Rates, Supplier, check_url
from sublet.suppliers.usage import KINDS, Used
from sublet.tenants import store as tenants

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
ACME = Supplier(name="acme", dialect=Dialect.OPENAI, url="https://api.example/v1", project="acme")
RATES = Rates(
    id=0, tier="default", per=1_000_000, happened_at=NOON,
    nanos=dict(zip(KINDS, (600_000_001, 60_000_000, 0, 0, 2_400_000_000, 2_400_000_000),
                   strict=True)),
)  # fmt: skip
LIMIT = {
    "model": None, "tier": None, "measure": "requests", "span": "minute", "zone": "UTC",
    "asked": False, "amount": 40,
}  # fmt: skip


def put(tx: Tx, *, now: datetime = NOON, **rates: int) -> None:
    deployment = Deployment(name="llama", recipe="r", context_tokens=4096, wanted=True)
    if not models.list_deployments(tx):
        models.put_deployment(tx, deployment, now=now)
    price = replace(RATES, happened_at=now, nanos={**RATES.nanos, **rates})
    service.put(
        tx, ACME, models={"big": "llama"}, prices={("big", "default"): price},
        limits=[LIMIT], now=now,
    )  # fmt: skip


def test_a_price_that_changes_is_a_new_version_and_the_same_one_is_not(tx: Tx) -> None:
    put(tx)
    put(tx, now=NOON + timedelta(hours=1))
    put(tx, now=NOON + timedelta(hours=2), output=2_000_000_000)
    versions = [rates for _, _, rates in store.history(tx)]
    assert [one.nanos["output"] for one in versions] == [2_400_000_000, 2_000_000_000]
    held = store.list_rates(tx, at=NOON + timedelta(minutes=90))["acme", "big"]["default"]
    assert held == versions[0], "what was bought before keeps its own"
    with pytest.raises(Invalid, match="holds from now on"):
        service.put(
            tx, ACME, models={"big": "llama"}, limits=[], now=NOON + timedelta(hours=3),
            prices={("big", "default"): replace(RATES, nanos=dict.fromkeys(KINDS, 1))},
        )  # fmt: skip


def test_what_cannot_be_bought_is_refused_by_name(tx: Tx) -> None:
    with pytest.raises(NotFound, match="no model 'llama' here"):
        service.put(tx, ACME, models={"big": "llama"}, prices={}, limits=[], now=NOON)
    put(tx)
    with pytest.raises(Invalid, match="no price in tier 'default'"):
        service.put(tx, ACME, models={"big": "llama"}, prices={}, limits=[], now=NOON)
    two = {(name, "default"): RATES for name in ("a", "b")}
    with pytest.raises(Invalid, match="two of them stand for the same"):
        service.put(tx, ACME, models=dict.fromkeys("ab", "llama"), prices=two, limits=[], now=NOON)
    nowhere = LIMIT | {"zone": "Mars/Base"}
    with pytest.raises(Invalid, match="no time zone 'Mars/Base'"):
        service.put(
            tx, ACME, models={"big": "llama"}, prices={("big", "default"): RATES},
            limits=[nowhere], now=NOON,
        )  # fmt: skip
    for url in ("http://api.example", "ftp://x", "https://u@x", "https://x/", "", "https://[x"):
        with pytest.raises(Invalid, match="url"):
            check_url(url)
    check_url("http://127.0.0.1:9000")


def test_a_key_is_sealed_for_its_supplier_and_nobody_elses(tx: Tx, folder: Path) -> None:
    vault = Vault(folder / "key")
    vault.prepare()
    put(tx)
    with pytest.raises(NotFound):
        service.set_key(tx, vault, "nobody", "sk-1", now=NOON)
    assert store.read_market(tx, now=NOON).sources == {}, "without a key nothing is bought"
    service.set_key(tx, vault, "acme", "sk-secret", now=NOON)
    assert service.open_keys(tx, vault) == {"acme": "sk-secret"}
    row = tx.execute("SELECT sealed_key FROM supplier").fetchone()
    assert row is not None and b"sk-secret" not in bytes(row["sealed_key"])
    market = store.read_market(tx, now=NOON)
    assert [one.model for one in market.sources["llama"]] == ["big"]
    store.put(tx, replace(ACME, name="other"))
    tx.execute("UPDATE supplier SET sealed_key = (SELECT sealed_key FROM supplier WHERE name ="
               " 'acme') WHERE name = 'other'")  # fmt: skip
    with pytest.raises(Misconfigured):
        service.open_keys(tx, vault)


def test_processes_that_settle_at_once_never_hold_more_than_the_limit(db: Database) -> None:
    with db.transaction() as tx:
        put(tx)
        (limit,) = store.list_limits(tx)

    def work(name: str) -> int:
        share, taken = Share(limit=limit), 0
        instance = str(new_id())
        for step in range(30):
            if not share.take(1, now=float(step)):
                share.wanted = 1
                asked = share.ask(name, instance)
                with db.transaction() as tx:
                    held = quotas.settle_all(tx, {limit.id: asked})[limit.id]
                share.answered(asked, held)
                if not share.take(1, now=float(step)):
                    continue
            share.end(1, 1)
            taken += 1
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = sum(pool.map(work, ["a", "b", "c", "d"]))
    assert taken == limit.amount == 40, "all of it was used, and no more"
    with db.transaction() as tx:
        ((standing, at),) = quotas.standings(tx)
        assert standing.counted(at) <= 40
        assert standing.limit.measure is Measure.REQUESTS


def test_what_a_dead_run_of_a_name_held_is_given_back(tx: Tx) -> None:
    put(tx)
    (limit,) = store.list_limits(tx)
    first, second = str(uuid4()), str(uuid4())
    asked = Asked(holder="gateway", instance=first, used=0, flying=0, wanted=40)
    assert quotas.settle_all(tx, {limit.id: asked}, now=NOON) == {limit.id: 40}
    quotas.give_back(tx, "gateway", second, now=NOON)
    other = Asked(holder="other", instance=second, used=0, flying=0, wanted=40)
    assert quotas.settle_all(tx, {limit.id: other}, now=NOON) == {limit.id: 0}
    later = NOON + timedelta(seconds=70)
    assert quotas.settle_all(tx, {limit.id: other}, now=later) == {limit.id: 40}


def a_purchase(tx: Tx, tenant: UUID, **tokens: int) -> Purchase:
    rates = store.list_rates(tx, at=NOON)["acme", "big"]["default"]
    used = Used(**tokens)
    return Purchase(
        id=new_id(), supplier="acme", model="big", deployment="llama", tenant_id=tenant,
        request_id="req_1", supplier_request="chatcmpl-1", asked_tier="default", tier="default",
        price_id=rates.id, used=used, amount_nanos=rates.cost(used).nanos, outcome="completed",
        basis="reported", first_token_ms=12, happened_at=NOON,
    )  # fmt: skip


@pytest.fixture
def bought(tx: Tx) -> list[Bought]:
    put(tx)
    tenant = tenants.create_tenant(tx, "buyer", now=NOON)
    some = [
        a_purchase(tx, tenant.id, input=1, output=3),  # 600.000001 is rounded by itself
        a_purchase(tx, tenant.id, input=999_999, cache_read=7, output=1, reasoning=5),
        a_purchase(tx, tenant.id),  # it cost nothing
    ]
    return [Bought.read(Bought.write(one).line) for one in some]


def test_what_was_bought_is_recorded_once_and_owed_to_the_nano(
    tx: Tx, bought: list[Bought]
) -> None:
    assert record(tx, bought[:2], now=NOON) == 2
    assert record(tx, bought, now=NOON) == 1, "a repeat brings only what is new"
    assert record(tx, bought, now=NOON) == 0
    costs = [one.purchase.amount_nanos for one in bought]
    assert costs[0] == 600 + 7200 and costs[2] == 0
    cost, payable = (ledger.get_account(tx, of("acme")) for of in (cost_of, payable_to))
    assert payable.balance == Money(sum(costs)) and cost.balance == Money(-sum(costs))
    rows = service.list_purchases(tx, supplier="acme", request_id=None, before=None, limit=9)
    assert len(rows) == 3
    assert found(tx) == []


def found(tx: Tx) -> list[str]:
    findings = Findings()
    audit.audit(tx, findings)
    assert findings.counts["purchases"]["purchases"] >= 2
    ledger_audit.audit(tx, findings, now=NOON)
    return [one.what for one in findings.differences]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("UPDATE purchase SET amount_nanos = amount_nanos + 1", "its tokens cost"),
        ("UPDATE purchase SET output_tokens = output_tokens + 1", "its tokens cost"),
        ("UPDATE purchase SET tier = 'flex'", "names the price of"),
        ("UPDATE purchase SET happened_at = happened_at - interval '1 day'", "did not hold yet"),
        ("DELETE FROM purchase WHERE output_tokens = 3", "its purchases of acme cost"),
        ("UPDATE purchase SET transfer_id = NULL", "moved no money"),
    ],
)
def test_the_audit_names_what_was_tampered_with(
    tx: Tx, bought: list[Bought], harm: str, words: str
) -> None:
    record(tx, bought, now=NOON)
    tx.execute("ALTER TABLE purchase DISABLE TRIGGER USER")
    tx.execute(harm.encode())
    assert any(words in what for what in found(tx)), found(tx)


def test_money_that_was_moved_for_no_purchase_is_named(tx: Tx, bought: list[Bought]) -> None:
    record(tx, bought, now=NOON)
    tx.execute(
        "INSERT INTO transfer (id, kind, debit_account, credit_account, amount_nanos, reason,"
        " happened_at, recorded_at) SELECT gen_random_uuid(), 'posted', credit_account,"
        " debit_account, 5, 'purchase', now(), now() FROM transfer WHERE reason = 'purchase'"
    )
    assert any("moved 0.000000005 USD" in what for what in found(tx))
