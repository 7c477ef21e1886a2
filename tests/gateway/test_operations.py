"""Running a gateway: its metrics, what may change while it runs, and what it cuts off."""

import contextlib
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.samples import samples
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage, eventually, says

from sublet.core.errors import Misconfigured
from sublet.core.money import Rate
from sublet.gateway.failures import Kind
from sublet.gateway.metrics import Metrics, board, rest
from sublet.gateway.tariff import Counts
from sublet.gateway.tuning import Tuning
from sublet.market import store as market
from sublet.market.price import input_sku, model_tier, output_sku
from sublet.metering.usage import Outcome
from sublet.tenants import store as tenants


def test_what_was_served_is_counted() -> None:
    metrics = Metrics()
    counts = Counts(input_tokens=3, cache_read_tokens=4, output_tokens=5)
    for first in (0.004, 0.3, 1000.0):
        metrics.served('a"b', Outcome.COMPLETED, counts, first_seconds=first, rest_seconds=0.04)
    metrics.served("c", Outcome.ABORTED, counts, first_seconds=None, rest_seconds=0.0)
    metrics.refused(Kind.RATE_LIMITED)
    metrics.refused(Kind.OVER_LIMIT)
    metrics.show({"running": 7})
    found = samples(metrics.text().decode())
    name = 'model="a\\"b"'
    assert found[f'sublet_gateway_requests_total{{{name},outcome="completed"}}'] == 3
    assert found['sublet_gateway_requests_total{model="c",outcome="aborted"}'] == 1
    assert found[f'sublet_gateway_tokens_total{{{name},kind="cache_read"}}'] == 12
    buckets = [found[f'sublet_gateway_first_token_seconds_bucket{{{name},le="{le}"}}']
               for le in ("0.01", "0.25", "0.5", "120", "+Inf")]  # fmt: skip
    assert buckets == [1, 1, 2, 2, 3]
    assert found[f'sublet_gateway_token_seconds_bucket{{{name},le="0.01"}}'] == 3
    assert found[f"sublet_gateway_token_seconds_sum{{{name}}}"] == pytest.approx(0.03)
    assert found['sublet_gateway_refusals_total{code="rate_limit_exceeded"}'] == 2
    assert found["sublet_gateway_running{}"] == 7


def test_whichever_process_is_asked_adds_up_what_all_of_them_counted() -> None:
    shared = board(3)
    counts = Counts(input_tokens=1, cache_read_tokens=0, output_tokens=2, reasoning_tokens=3)
    everybody = [Metrics(shared, process) for process in range(3)]
    for number, one in enumerate(everybody, start=1):
        for _ in range(number):
            one.served("m", Outcome.COMPLETED, counts, first_seconds=0.3, rest_seconds=0.4)
            one.refused(Kind.UNPAID)
        one.served(f"own {number}", Outcome.FAILED, counts, first_seconds=None, rest_seconds=0)
        one.show({"workers": 1, "running": number, "held_nanos": 10**15})
    texts = {one.text() for one in everybody}
    assert len(texts) == 1
    found = samples(texts.pop().decode())
    assert found['sublet_gateway_requests_total{model="m",outcome="completed"}'] == 6
    assert found['sublet_gateway_requests_total{model="own 2",outcome="failed"}'] == 1
    assert found['sublet_gateway_tokens_total{model="m",kind="reasoning"}'] == 18
    assert found['sublet_gateway_first_token_seconds_bucket{model="m",le="0.5"}'] == 6
    assert found['sublet_gateway_first_token_seconds_sum{model="m"}'] == pytest.approx(1.8)
    assert found['sublet_gateway_token_seconds_count{model="m"}'] == 6
    assert found['sublet_gateway_refusals_total{code="payment_required"}'] == 6
    assert found["sublet_gateway_workers{}"] == 3
    assert found["sublet_gateway_running{}"] == 6
    assert found["sublet_gateway_held_nanos{}"] == 3 * 10**15

    # One dies: what it counted stays, and its successor counts on.
    rest(shared, 2)
    found = samples(everybody[0].text().decode())
    assert found["sublet_gateway_workers{}"] == 2
    assert found["sublet_gateway_running{}"] == 3
    assert found['sublet_gateway_requests_total{model="m",outcome="completed"}'] == 6
    again = Metrics(shared, 2)
    again.served("m", Outcome.COMPLETED, counts, first_seconds=None, rest_seconds=0)
    found = samples(everybody[0].text().decode())
    assert found['sublet_gateway_requests_total{model="m",outcome="completed"}'] == 7


def test_more_models_than_there_is_place_for_are_counted_together() -> None:
    metrics = Metrics()
    counts = Counts(input_tokens=1, cache_read_tokens=0, output_tokens=1)
    names = [*map(str, range(1100)), "long " * 100]
    for name in names:
        metrics.served(name, Outcome.COMPLETED, counts, first_seconds=None, rest_seconds=0)
    found = samples(metrics.text().decode())
    served = {name: n for name, n in found.items() if 'outcome="completed"' in name}
    assert sum(served.values()) == len(names)
    assert len(served) == 1000
    assert found['sublet_gateway_requests_total{model="other",outcome="completed"}'] == 102


def test_an_operator_reads_metrics_and_no_prompt_is_in_them(stage: Stage) -> None:
    _, key = stage.tenant()
    with stage.db.transaction() as tx:
        _, operator = tenants.create_key(tx, None, "operator", now=datetime.now(UTC))
    url = f"{stage.url}/metrics"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"x-api-key": key}).status_code == 401
    for stream in (False, True):
        assert stage.post(key, messages=says(tokens=3), stream=stream).status_code == 200
    stage.post(key, model="nonsense", messages=says())
    text = httpx.get(url, headers={"authorization": f"Bearer {operator}"}).text
    found = samples(text)
    assert found['sublet_gateway_requests_total{model="fake",outcome="completed"}'] >= 2
    assert found['sublet_gateway_tokens_total{model="fake",kind="output"}'] >= 6
    assert found['sublet_gateway_first_token_seconds_count{model="fake"}'] >= 1
    assert found['sublet_gateway_refusals_total{code="model_not_found"}'] >= 1
    assert "script" not in text
    assert "nonsense" not in text


def test_a_gateway_goes_by_its_file_as_it_is_now(own_stage: Stage, folder: Path) -> None:
    file = folder / "gateway.toml"
    file.write_text("requests_per_minute = 50")
    gateway = own_stage.start(tuning=str(file))
    _, key = own_stage.tenant()

    def limit() -> str:
        listed = httpx.get(f"{own_stage.url}/v1/models", headers={"x-api-key": key})
        return str(listed.headers["x-ratelimit-limit-requests"])

    assert limit() == "50"
    file.write_text("requests_per_minute = 5000\n")
    eventually(lambda: limit() == "5000")
    file.write_text("requests = 7\n")
    eventually(lambda: "gateway.not_tuned" in gateway.log.read_text())
    assert limit() == "5000"
    assert gateway.stop() == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("requests = 1", "unknown setting requests; there are first_token_seconds"),
        ("stall_seconds = 0", "stall_seconds must be more than 0"),
        ("tokens_per_minute = 'many'", "Expected `int`"),
        ("=", "cannot read"),
    ],
)
def test_a_file_that_is_wrong_says_why(folder: Path, text: str, why: str) -> None:
    file = folder / "gateway.toml"
    file.write_text(text)
    with pytest.raises(Misconfigured, match=why):
        Tuning().read(file)
    with pytest.raises(Misconfigured, match="cannot read"):
        Tuning().read(folder / "missing.toml")


def test_a_body_of_a_hundred_megabytes_is_cut_off(stage: Stage) -> None:
    tenant, key = stage.tenant()
    assert stage.gateway is not None
    before = stage.gateway.memory_bytes()
    host, port = stage.url.removeprefix("http://").split(":")
    size, part = 100_000_000, b"x" * 1_000_000
    with socket.create_connection((host, int(port)), timeout=120) as one:
        one.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
            + key.encode() + b"\r\ncontent-length: %d\r\n\r\n" % size
        )  # fmt: skip
        with contextlib.suppress(ConnectionError):
            for _ in range(size // len(part)):
                one.sendall(part)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while more := one.recv(65536):
                answer += more
    assert not answer or answer.startswith(b"HTTP/1.1 413 ")
    assert stage.gateway.memory_bytes() - before < 40_000_000
    assert stage.post(key, messages=says(tokens=1)).status_code == 200
    assert len(stage.usages(tenant)) <= 1
    stage.check_books()


def test_prompts_are_in_no_log(stage: Stage) -> None:
    _, key = stage.tenant()
    secret = "the-launch-code-is-0000"
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": secret}]}),
        ("/v1/chat/completions", {"messages": [{"role": secret, "content": secret}]}),
        ("/v1/responses", {"input": secret, "stream": True}),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": secret}]}),
    ):
        stage.post(key, path, **body)
    assert stage.gateway is not None
    assert secret not in stage.gateway.log.read_text()


# ── tiers ────────────────────────────────────────────────────────────────────────────────


def test_a_tier_costs_what_it_costs_and_the_answer_says_which(stage: Stage) -> None:
    flex = model_tier(MODEL, "flex")
    with stage.db.transaction() as tx:
        for sku, nanos in ((input_sku(flex), 10), (output_sku(flex), 40)):
            market.set_price(tx, sku, Rate(nanos=nanos, per=1), now=datetime.now(UTC))
    tenant, key = stage.tenant()
    body: dict[str, Any] = {"messages": says(tokens=3), "service_tier": "flex"}
    eventually(lambda: stage.post(key, **body).status_code == 200)  # once the price is known
    stage.paid(tenant, 10 + 3 * 40)
    assert stage.post(key, **body).json()["service_tier"] == "flex"
    streamed = stage.post(key, stream=True, **body).text
    assert '"service_tier":"flex"' in streamed
    answer = stage.post(
        key, "/v1/responses", input=says(tokens=3)[0]["content"], service_tier="flex"
    ).json()
    assert answer["service_tier"] == "flex"
    stage.paid(tenant, 4 * (10 + 3 * 40))


def test_flex_is_refused_where_nothing_is_idle_and_the_others_are_served(
    own_stage: Stage,
) -> None:
    stage = own_stage
    flex = model_tier(MODEL, "flex")
    with stage.db.transaction() as tx:
        for sku in (input_sku(flex), output_sku(flex)):
            market.set_price(tx, sku, Rate(nanos=10, per=1), now=datetime.now(UTC))
    tenant, key = stage.tenant()
    stage.start()
    body: dict[str, Any] = {"messages": says(tokens=1), "service_tier": "flex"}
    assert stage.post(key, **body).status_code == 200
    now = datetime.now(UTC)
    with stage.db.transaction() as tx:
        tx.execute("SET LOCAL session_replication_role = replica")  # a lease without its pool
        tx.execute(
            "INSERT INTO lease (id, tenant_id, pool, gpus, tier, notice_seconds, price_id, workload,"
            " max_seconds, requested_at, state, since, version)"
            " VALUES (%s, %s, 'x', 1, 'on_demand', 1, 1, '{}', 1, %s, 'running', %s, 1)",
            [stage.replica_id, tenant.id, now, now],
        )
    eventually(lambda: stage.post(key, **body).status_code == 503)
    refused = stage.post(key, **body)
    assert refused.json()["error"]["code"] == "capacity_unavailable"
    assert refused.headers["retry-after-ms"] == "5000"
    assert stage.post(key, messages=says(tokens=1)).status_code == 200
    stage.check_books()


def test_a_tier_without_a_price_is_not_sold(stage: Stage) -> None:
    tenant, key = stage.tenant()
    for tier in ("priority", "batch"):
        refused = stage.post(key, messages=says(tokens=1), service_tier=tier)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "service_tier")
        assert "has no price for tier" in error["message"]
    for tier in ("auto", "default"):
        answer = stage.post(key, messages=says(tokens=1), service_tier=tier)
        assert answer.json()["service_tier"] == "default"
    stage.paid(tenant, 2 * (INPUT + OUTPUT))
