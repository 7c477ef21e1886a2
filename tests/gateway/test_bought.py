"""Answers bought from suppliers, which are scripted and send their own bill."""

import contextlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import httpx
import openai
import pytest
from tests.fakes.supplier import KEY, FakeSupplier, Script
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage, eventually

from sublet.core.audit import Findings
from sublet.core.money import Rate
from sublet.core.vault import Vault
from sublet.ledger import store as ledger
from sublet.market import store as market
from sublet.market.price import input_sku, model_tier, output_sku
from sublet.models.deployment import ReplicaState
from sublet.suppliers import audit, service, store
from sublet.suppliers.purchase import payable_to
from sublet.suppliers.supplier import Dialect, Rates, Supplier, Terms
from sublet.suppliers.usage import KINDS
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

PATHS = {"openai": "/v1", "xai": "/xai/v1", "anthropic": "/v1", "gemini": "/v1beta", "bedrock": ""}
SAY: list[Any] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]


@dataclass
class Market:
    """A gateway's model without a replica, and suppliers to be put up."""

    stage: Stage
    supplier: FakeSupplier
    operator: str
    number: int = 0

    def put(
        self, script: Script, *, dialect: str = "openai", cents: int = 50, key: str = KEY,
        limits: list[dict[str, Any]] | None = None, first_token_ms: int = 2_000,
        tiers: dict[str, int] | None = None,
    ) -> str:  # fmt: skip
        """Have one more supplier sell our model: at so many nanos for ten tokens; return its name."""
        Market.number += 1
        name = model = f"s{Market.number}"
        now = datetime.now(UTC)
        self.supplier.scripts[model] = script
        supplier = Supplier(
            name=name, dialect=Dialect(dialect), url=self.supplier.url + PATHS[dialect],
            project=name, first_token_ms=first_token_ms,
        )  # fmt: skip
        prices = {
            (model, tier): Rates(
                id=0,
                tier=tier,
                per=10,
                happened_at=now,
                nanos=dict.fromkeys(KINDS, nanos) | {"cache_read": min(nanos, 1_000)},
            )
            for tier, nanos in ({"default": cents} | (tiers or {})).items()
        }
        rules = [
            {"model": None, "tier": None, "zone": "UTC", "asked": False} | limit
            for limit in limits or []
        ]
        with self.stage.db.transaction() as tx:
            service.put(tx, supplier, models={model: MODEL}, prices=prices, limits=rules, now=now)
            service.set_key(tx, Vault(self.stage._vault), name, key, now=now)
        return name

    def buyer(self) -> tuple[Tenant, str]:
        """Return a tenant and its key, once the gateway knows of all suppliers."""
        tenant, key = self.stage.tenant()
        before = self.reads()
        eventually(lambda: self.reads() >= before + 2)
        return tenant, key

    def metrics(self) -> str:
        headers = {"authorization": f"Bearer {self.operator}"}
        return httpx.get(f"{self.stage.url}/metrics", headers=headers).text

    def reads(self) -> int:
        """How often the gateway read what may be bought."""
        found = re.search(
            r"^sublet_gateway_market_reads_total (\d+)$", self.metrics(), re.MULTILINE
        )
        assert found is not None
        return int(found[1])

    def purchases(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        def rows() -> list[dict[str, Any]]:
            with self.stage.db.transaction() as tx:
                return service.list_purchases(
                    tx, supplier=name, request_id=None, before=None, limit=1000
                )

        eventually(lambda: len(rows()) >= count)
        assert len(rows()) == count
        return rows()


@pytest.fixture(scope="module")
def supplier() -> Iterator[FakeSupplier]:
    with FakeSupplier() as supplier:
        yield supplier


@pytest.fixture
def bazaar(stage: Stage, supplier: FakeSupplier) -> Iterator[Market]:
    stage.set_replica(ReplicaState.DRAINING, "reclaimed")
    with stage.db.transaction() as tx:
        _, operator = tenants.create_key(tx, None, "operator", now=datetime.now(UTC))
    yield Market(stage, supplier, operator)
    with stage.db.transaction() as tx:
        for one in store.list_suppliers(tx):
            store.set_enabled(tx, one.name, enabled=False)
        tx.execute("DELETE FROM buying")
    check_books(stage)


def check_books(stage: Stage) -> None:
    """Every law of money is kept, and what is owed is what was bought."""
    stage.check_books()
    findings = Findings()
    with stage.db.transaction() as tx:
        audit.audit(tx, findings)
        for name, (_, cost) in service.sum_bought(
            tx, since=datetime(2020, 1, 1, tzinfo=UTC)
        ).items():
            if cost.nanos:
                assert ledger.get_account(tx, payable_to(name)).balance == cost
    assert findings.differences == []


@pytest.mark.parametrize("dialect", list(PATHS))
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_an_answer_is_bought_in_each_dialect_and_paid_to_the_nano(
    bazaar: Market, dialect: str, streamed: bool
) -> None:
    name = bazaar.put(
        Script(tokens=6, prompt_tokens=30, cached_tokens=10, reasoning_tokens=3), dialect=dialect
    )
    tenant, key = bazaar.buyer()
    client = bazaar.stage.client(key)
    if streamed:
        events = list(
            client.chat.completions.create(
                model=MODEL, messages=SAY, max_tokens=50, stream=True,
                stream_options={"include_usage": True}, stop=["END"], temperature=0.5,
            )
        )  # fmt: skip
        text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
        usage = events[-1].usage
    else:
        answer = client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=50)
        text, usage = answer.choices[0].message.content or "", answer.usage
        assert answer.choices[0].finish_reason == "stop"
    assert text == "tok " * 6
    assert usage is not None
    made = 9  # Anthropic and Bedrock do not say how much of it was thought
    assert (usage.prompt_tokens, usage.completion_tokens) == (30, made)
    # Ours: 20 fresh and 10 cached tokens of input, and 9 of output.
    bazaar.stage.paid(tenant, 20 * INPUT + 10 * 100 + made * OUTPUT)
    (bought,) = bazaar.purchases(name)
    assert bought["amount_nanos"] == 5 * (30 + made)
    assert (bought["outcome"], bought["basis"], bought["doubt"]) == ("completed", "reported", None)
    assert bought["request_id"] == bazaar.stage.usage(tenant)["request_id"]
    assert bazaar.stage.usage(tenant)["source"].startswith("supplier:")
    asked = bazaar.supplier.bodies[-1]
    assert "Be short." in json.dumps(asked) and KEY not in json.dumps(asked)


@pytest.mark.parametrize("dialect", list(PATHS))
def test_a_tool_is_called_and_its_result_goes_back_in_each_dialect(
    bazaar: Market, dialect: str
) -> None:
    bazaar.put(Script(call=("weather", '{"city": "Bern"}')), dialect=dialect)
    _, key = bazaar.buyer()
    tools: list[Any] = [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    ]
    client = bazaar.stage.client(key)
    answer = client.chat.completions.create(
        model=MODEL, messages=SAY, max_tokens=50, tools=tools, tool_choice="required"
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Bern"}
    turns = [
        *SAY,
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"sun": true}'},
        {"role": "user", "content": "And now?"},
    ]
    client.chat.completions.create(model=MODEL, messages=turns, max_tokens=50, tools=tools)
    sent = json.dumps(bazaar.supplier.bodies[-1])
    assert "Bern" in sent and "sun" in sent and "And now?" in sent


@pytest.mark.parametrize(
    "trouble",
    [
        Script(status=429), Script(status=429, retry_after="30"), Script(status=500),
        Script(status=529), Script(status=404), Script(status=402), Script(hang=True),
        Script(garbage=True), Script(cut_after=0), Script(first_ms=5_000),
    ],
    ids=lambda script: str(script).replace("Script", "")[:60],
)  # fmt: skip
def test_the_next_supplier_answers_when_the_first_does_not(bazaar: Market, trouble: Script) -> None:
    cheap = bazaar.put(trouble, cents=10, first_token_ms=400)
    good = bazaar.put(Script(tokens=4), cents=20)
    tenant, key = bazaar.buyer()
    answer = bazaar.stage.client(key).chat.completions.create(
        model=MODEL, messages=SAY, max_tokens=20
    )
    assert answer.choices[0].message.content == "tok " * 4
    assert bazaar.purchases(good)[0]["amount_nanos"] == 2 * 24
    failed = 1 if trouble.status is None and not trouble.hang else 0
    for bought in bazaar.purchases(cheap, failed):
        assert (bought["outcome"], bought["basis"]) == ("failed", "estimated")
    bazaar.stage.paid(tenant, 20 * INPUT + 4 * OUTPUT)


def test_the_cheapest_is_asked_first(bazaar: Market) -> None:
    dear, cheap = bazaar.put(Script(), cents=60), bazaar.put(Script(), cents=30)
    _, key = bazaar.buyer()
    bazaar.stage.client(key).chat.completions.create(model=MODEL, messages=SAY, max_tokens=9)
    assert len(bazaar.purchases(cheap)) == 1 and not bazaar.purchases(dear, 0)


def test_a_stream_that_is_cut_ends_with_an_error_and_its_client_pays_nothing(
    bazaar: Market,
) -> None:
    name = bazaar.put(Script(cut_after=3), dialect="anthropic")
    tenant, key = bazaar.buyer()
    stream = bazaar.stage.client(key).chat.completions.create(
        model=MODEL, messages=SAY, max_tokens=20, stream=True
    )
    with pytest.raises(openai.APIError):
        for _ in stream:
            pass
    (bought,) = bazaar.purchases(name)
    # Its prompt was counted, of the answer 12 bytes came.
    assert (bought["basis"], bought["outcome"]) == ("partly", "failed")
    assert (bought["input_tokens"], bought["output_tokens"]) == (20, 3)
    assert bought["doubt"] == "it did not say what it used"
    bazaar.stage.paid(tenant, 0)


def test_an_answer_that_nobody_counted_is_charged_to_nobody(bazaar: Market) -> None:
    name = bazaar.put(Script(no_usage=True))
    tenant, key = bazaar.buyer()
    with pytest.raises(openai.InternalServerError):
        bazaar.stage.client(key).chat.completions.create(model=MODEL, messages=SAY, max_tokens=20)
    assert bazaar.purchases(name)[0]["basis"] == "estimated"
    bazaar.stage.paid(tenant, 0)


@pytest.mark.parametrize("dialect", ["openai", "gemini", "bedrock", "anthropic"])
def test_a_downgrade_is_paid_and_charged_as_what_it_was(bazaar: Market, dialect: str) -> None:
    now = datetime.now(UTC)
    with bazaar.stage.db.transaction() as tx:
        for sku, nanos in ((input_sku, 3 * INPUT), (output_sku, 3 * OUTPUT)):
            market.set_price(
                tx, sku(model_tier(MODEL, "priority")), Rate(nanos=nanos, per=1), now=now
            )
    name = bazaar.put(Script(tier="default"), dialect=dialect, tiers={"priority": 100})
    tenant, key = bazaar.buyer()
    bazaar.stage.client(key).chat.completions.create(
        model=MODEL, messages=SAY, max_tokens=20, service_tier="priority"
    )
    (bought,) = bazaar.purchases(name)
    assert (bought["asked_tier"], bought["tier"]) == ("priority", "default")
    assert bought["amount_nanos"] == 5 * 25
    bazaar.stage.paid(tenant, 20 * INPUT + 5 * OUTPUT)


def test_a_lie_about_usage_is_paid_as_told_doubted_and_not_passed_on(bazaar: Market) -> None:
    name = bazaar.put(Script(tokens=5, lie_tokens=5_000))
    tenant, key = bazaar.buyer()
    bazaar.stage.client(key).chat.completions.create(model=MODEL, messages=SAY, max_tokens=10)
    (bought,) = bazaar.purchases(name)
    assert bought["output_tokens"] == 5_000 and bought["amount_nanos"] == 5 * 5_020
    assert "asked for 10 at most" in bought["doubt"] and "in 20 bytes" in bought["doubt"]
    bazaar.stage.paid(tenant, 20 * INPUT + 10 * OUTPUT)  # what was held for it, no more


def test_a_supplier_whose_key_expired_rests_until_there_is_a_new_one(bazaar: Market) -> None:
    name = bazaar.put(Script(), key="sk-expired")
    _, key = bazaar.buyer()
    client = bazaar.stage.client(key)
    for _ in range(2):
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=9)
        assert refused.value.code == "model_reclaimed"

    def rests() -> list[store.Rest]:
        with bazaar.stage.db.transaction() as tx:
            return [r for r in store.list_rests(tx, now=datetime.now(UTC)) if r.supplier == name]

    eventually(lambda: [rest.why for rest in rests()] == ["key"])
    with bazaar.stage.db.transaction() as tx:
        vault = Vault(bazaar.stage._vault)
        service.set_key(tx, vault, name, KEY, now=datetime.now(UTC))
    bazaar.buyer()
    client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=9)
    assert len(bazaar.purchases(name)) == 1


def test_no_more_is_asked_than_the_quota_allows(bazaar: Market) -> None:
    minute = {"span": "minute"}
    name = bazaar.put(
        Script(first_ms=20),
        limits=[{"measure": "requests", "amount": 7, **minute},
                {"measure": "tokens", "amount": 100_000, **minute}],
    )  # fmt: skip
    _, key = bazaar.buyer()

    def ask(_: int) -> int:
        return bazaar.stage.post(key, messages=SAY, max_tokens=9).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(ask, range(20)))
    assert statuses == [200] * 7 + [503] * 13
    assert len(bazaar.purchases(name, 7)) == 7


def test_a_supplier_that_is_too_dear_is_asked_within_what_may_be_lost(bazaar: Market) -> None:
    # 100,000 nanos a token, of which the caller pays 1,000 or 4,000.
    name = bazaar.put(Script(), cents=1_000_000)
    _, key = bazaar.buyer()
    assert bazaar.stage.post(key, messages=SAY, max_tokens=9).status_code == 503
    with bazaar.stage.db.transaction() as tx:
        store.put_terms(tx, MODEL, Terms(loss_nanos=16_000_000))  # about one such request's most
    bazaar.buyer()
    statuses = [bazaar.stage.post(key, messages=SAY, max_tokens=9).status_code for _ in range(12)]
    assert statuses[0] == 200 and statuses[-1] == 503
    bought = bazaar.purchases(name, statuses.count(200))
    lost = sum(int(one["amount_nanos"]) for one in bought) - len(bought) * (20 * INPUT + 5 * OUTPUT)
    assert 0 < lost <= 16_000_000


def test_a_margin_must_be_left(bazaar: Market) -> None:
    bazaar.put(Script(), cents=9_500)  # 950 of 1,000 nanos an input token
    with bazaar.stage.db.transaction() as tx:
        store.put_terms(tx, MODEL, Terms(margin=Fraction(90, 100)))
    _, key = bazaar.buyer()
    assert bazaar.stage.post(key, messages=SAY, max_tokens=9).status_code == 503
    with bazaar.stage.db.transaction() as tx:
        store.put_terms(tx, MODEL, Terms(margin=Fraction(5, 100)))
    bazaar.buyer()
    assert bazaar.stage.post(key, messages=SAY, max_tokens=9).status_code == 200
    with bazaar.stage.db.transaction() as tx:
        store.put_terms(tx, MODEL, Terms(enabled=False))
    bazaar.buyer()
    assert bazaar.stage.post(key, messages=SAY, max_tokens=9).status_code == 503


def test_own_replicas_come_first_until_their_queue_is_full(bazaar: Market) -> None:
    name = bazaar.put(Script(text="out "))
    bazaar.stage.set_replica(ReplicaState.READY)
    _, key = bazaar.buyer()

    def text(**more: Any) -> str:
        answer = bazaar.stage.post(key, **more).json()
        return str(answer["choices"][0]["message"]["content"])

    assert text(messages=SAY, max_tokens=9).startswith("tok")
    slow = '#script:{"tokens":1,"first_ms":5000}'
    before = len(bazaar.stage.fake.book._records)
    with ThreadPoolExecutor(4) as pool:
        # More than the 4,096 tokens that one replica shall have outstanding.
        full = [
            pool.submit(text, messages=[{"role": "user", "content": slow}], max_tokens=3000)
            for _ in range(2)
        ]
        eventually(lambda: len(bazaar.stage.fake.book._records) == before + 2)
        assert text(messages=SAY, max_tokens=9).startswith("out")
        assert all(one.result().startswith("tok") for one in full)
    assert text(messages=SAY, max_tokens=9).startswith("tok"), "and then they are asked again"
    assert len(bazaar.purchases(name)) == 1


def test_who_hangs_up_pays_for_what_was_delivered_and_the_supplier_for_all(
    bazaar: Market,
) -> None:
    name = bazaar.put(Script(tokens=40, delay_ms=20))
    tenant, key = bazaar.buyer()
    with httpx.stream(
        "POST", f"{bazaar.stage.url}/v1/chat/completions", timeout=120,
        headers={"authorization": f"Bearer {key}"},
        json={"model": MODEL, "messages": SAY, "max_tokens": 50, "stream": True},
    ) as response:  # fmt: skip
        for line in response.iter_lines():
            if "tok" in line:
                break
    (bought,) = bazaar.purchases(name)
    assert (bought["outcome"], bought["output_tokens"]) == ("aborted", 40)
    assert bought["amount_nanos"] == 5 * 60
    usage = bazaar.stage.usage(tenant)
    assert usage["outcome"] == "aborted" and 0 < usage["output_tokens"] < 40


def test_metrics_say_what_was_bought_and_what_was_not(bazaar: Market) -> None:
    name = bazaar.put(Script())
    bazaar.put(Script(), cents=1_000_000)
    _, key = bazaar.buyer()
    bazaar.stage.client(key).chat.completions.create(model=MODEL, messages=SAY, max_tokens=9)

    label = f'supplier="{name}"'
    said = bazaar.metrics()
    assert f'sublet_gateway_purchases_total{{{label},outcome="completed"}} 1' in said
    assert f'sublet_gateway_purchased_tokens_total{{{label},kind="output"}} 5' in said
    assert f"sublet_gateway_purchase_cost_nanos_total{{{label}}} 125" in said
    assert 'sublet_gateway_not_bought_total{reason="margin"}' in said


@pytest.mark.parametrize("step", ["gateway.purchase.noted", "suppliers.record.owed"])
def test_what_was_bought_is_owed_once_though_the_gateway_dies(
    own_stage: Stage, supplier: FakeSupplier, step: str
) -> None:
    folder = own_stage.folder / "failpoints"
    for name in ("reached", "fired"):
        (folder / name).mkdir(parents=True)
    own_stage.start(failpoints=str(folder))
    own_stage.set_replica(ReplicaState.DRAINING, "reclaimed")
    with own_stage.db.transaction() as tx:
        _, operator = tenants.create_key(tx, None, "operator", now=datetime.now(UTC))
    bazaar = Market(own_stage, supplier, operator)
    name = bazaar.put(Script(text="bought ", tokens=3))
    _, key = bazaar.buyer()
    (folder / "plan").write_text(f"{step} kill\n")
    with contextlib.suppress(httpx.TransportError):  # it may die before or after its answer
        httpx.post(
            f"{own_stage.url}/v1/chat/completions",
            json={"model": MODEL, "messages": SAY, "max_tokens": 9},
            headers={"authorization": f"Bearer {key}"},
            timeout=120,
        )
    assert own_stage.gateway is not None
    own_stage.gateway.process.wait(120)
    own_stage.start(failpoints=str(folder))
    bazaar.purchases(name)
    check_books(own_stage)
