"""Budgets and limits over running gateways: money is exact, and every refusal says why."""

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from tests.core.databases import fresh_url
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Gateway, Stage, eventually, raised, says

from sublet.tenants import limits
from sublet.tenants import store as tenants
from sublet.tenants.limit import LimitKind, Standing
from sublet.tenants.tenant import Caller, KeyId, Role, Tenant

TOKENS: Final = 5
EACH: Final = INPUT + TOKENS * OUTPUT  # nanos of one request, exactly


@pytest.fixture(scope="module")
def two(postgres_url: str, template: str) -> Iterator[tuple[Stage, list[Gateway]]]:
    """Two gateways on one database."""
    folder = Path(tempfile.mkdtemp(prefix="sublet-test-"))
    with fresh_url(postgres_url, template) as url, raised(url, folder) as stage:
        gateways = [stage.start(name=name) for name in ("one", "two")]
        try:
            yield stage, gateways
        finally:
            for gateway in gateways:
                gateway.kill()
    shutil.rmtree(folder, ignore_errors=True)


def ask(url: str, key: str, client: httpx.Client | None = None, **script: Any) -> httpx.Response:
    post = httpx.post if client is None else client.post
    return post(
        f"{url}/v1/chat/completions",
        json={
            "model": MODEL, "max_tokens": TOKENS, "messages": says(**{"tokens": TOKENS} | script),
        },
        headers={"authorization": f"Bearer {key}"},
        timeout=180,
    )  # fmt: skip


def caller(stage: Stage, key: str) -> Caller:
    with stage.db.transaction() as tx:
        return tenants.find_caller(tx, key, now=datetime.now(UTC))


def put(
    stage: Stage, tenant: Tenant, kind: LimitKind, amount: int, *, key: KeyId | None = None
) -> None:
    with stage.db.transaction() as tx:
        now = datetime.now(UTC)
        limits.set_limit(tx, tenant.id, key, kind, amount, by=Role.OPERATOR, now=now)


def standing(stage: Stage, tenant: Tenant) -> Standing:
    """How the only budget of a tenant stands."""
    with stage.db.transaction() as tx:
        listed = limits.list_limits(tx, tenant.id, now=datetime.now(UTC))
    (found,) = (one for limit, one in listed if limit.kind.is_budget)
    return found


def known(urls: list[str], key: str, header: str, value: str) -> None:
    """Wait until every gateway goes by a limit; reading costs a request, and no money."""

    def told(url: str) -> bool:
        listed = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
        return listed.headers[header] == value

    for url in urls:
        eventually(lambda url=url: told(url))


def error(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    told = answer.json()["error"]
    assert told["code"] == code
    return str(told["message"])


def test_a_budget_is_spent_to_the_nano_by_a_crowd_on_two_gateways(
    two: tuple[Stage, list[Gateway]],
) -> None:
    stage, gateways = two
    urls = [gateway.url for gateway in gateways]
    tenant, key = stage.tenant()
    put(stage, tenant, LimitKind.DAY, 10 * EACH)
    # Set after it, so whoever knows this one knows both.
    put(stage, tenant, LimitKind.REQUESTS, 100_000)
    known(urls, key, "x-ratelimit-limit-requests", "600")  # the key's own is the smaller
    with stage.db.transaction() as tx:
        limits.set_limit(
            tx, tenant.id, caller(stage, key).key_id, LimitKind.REQUESTS, 50_000,
            by=Role.TENANT, now=datetime.now(UTC),
        )  # fmt: skip
    known(urls, key, "x-ratelimit-limit-requests", "50000")

    def insist(number: int) -> tuple[bool, str]:
        with httpx.Client() as client:
            while True:
                answer = ask(urls[number % 2], key, client)
                if answer.status_code == 200:
                    return True, ""
                if answer.json()["error"]["code"] != "in_flight_budget_exhausted":
                    return False, error(answer, 402, "budget_exhausted")
                assert answer.headers["x-should-retry"] == "true"

    with ThreadPoolExecutor(12) as crowd:
        answers = list(crowd.map(insist, range(30)))
    assert sum(good for good, _ in answers) == 10
    assert "0.00 USD left; it returns at 20" in answers[-1][1] or any(
        "0.00 USD left; it returns at 20" in message for _, message in answers
    )
    stage.paid(tenant, 10 * EACH)
    found = standing(stage, tenant)
    assert (found.spent_nanos, found.held_nanos) == (10 * EACH, 0)


def test_refusals_name_the_budget_and_what_is_left(two: tuple[Stage, list[Gateway]]) -> None:
    stage, gateways = two
    url = gateways[0].url
    tenant, key = stage.tenant()
    put(stage, tenant, LimitKind.LIFETIME, EACH // 2, key=caller(stage, key).key_id)
    eventually(lambda: ask(url, key, tokens=1).status_code == 402)
    refused = ask(url, key)
    message = error(refused, 402, "weight_exceeds_budget")
    assert "this key's budget is 0.00001" in message
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    put(stage, tenant, LimitKind.LIFETIME, 3 * EACH // 2, key=caller(stage, key).key_id)
    eventually(lambda: ask(url, key).status_code == 200)
    eventually(lambda: standing(stage, tenant).spent_nanos == EACH)
    message = error(ask(url, key), 402, "budget_exhausted")
    assert "it does not return" in message
    # In Anthropic's words it is a matter of billing, not of rates.
    refused = httpx.post(
        f"{url}/v1/messages",
        json={"model": MODEL, "max_tokens": TOKENS, "messages": says(tokens=1)},
        headers={"x-api-key": key},
    )
    assert refused.status_code == 402
    assert refused.json()["error"]["type"] == "billing_error"


def test_what_is_not_used_of_a_budget_returns(two: tuple[Stage, list[Gateway]]) -> None:
    stage, gateways = two
    tenant, key = stage.tenant()
    put(stage, tenant, LimitKind.MONTH, EACH)
    put(stage, tenant, LimitKind.REQUESTS, 500)
    known([gateway.url for gateway in gateways], key, "x-ratelimit-limit-requests", "500")
    assert ask(gateways[0].url, key, status=500).status_code == 502
    eventually(lambda: standing(stage, tenant).left_nanos == EACH)
    assert ask(gateways[1].url, key, tokens=2).status_code == 200
    eventually(lambda: standing(stage, tenant).spent_nanos == INPUT + 2 * OUTPUT)
    assert standing(stage, tenant).held_nanos == 0


def test_a_budget_survives_a_gateway_that_is_killed(own_stage: Stage) -> None:
    tenant, key = own_stage.tenant()
    put(own_stage, tenant, LimitKind.DAY, 2 * EACH)
    gateway = own_stage.start()
    assert ask(gateway.url, key).status_code == 200
    with ThreadPoolExecutor(1) as other:
        asking = other.submit(ask, gateway.url, key, hang=True)
        eventually(lambda: standing(own_stage, tenant).held_nanos == EACH)
        message = error(ask(gateway.url, key), 402, "in_flight_budget_exhausted")
        assert "held by what runs now" in message
        gateway.kill()
        with pytest.raises(httpx.TransportError):
            asking.result(60)
    gateway = own_stage.start()
    found = standing(own_stage, tenant)
    assert (found.spent_nanos, found.held_nanos) == (EACH, 0)
    assert ask(gateway.url, key).status_code == 200
    assert ask(gateway.url, key).status_code == 402
    own_stage.check_books()


def test_a_tenants_limits_hold_for_its_keys_together_and_on_every_path(
    two: tuple[Stage, list[Gateway]],
) -> None:
    stage, gateways = two
    url = gateways[0].url
    tenant, key = stage.tenant()
    with stage.db.transaction() as tx:
        _, second = tenants.create_key(tx, tenant.id, "second", now=datetime.now(UTC))
    put(stage, tenant, LimitKind.REQUESTS, 4)
    known([url], key, "x-ratelimit-limit-requests", "4")
    headers = {"authorization": f"Bearer {second}"}
    paths = ("/v1/models", f"/v1/models/{MODEL}", "/v1/responses/resp_1")
    answers = [httpx.get(url + path, headers=headers) for path in paths for _ in range(2)]
    refused = answers[-1]
    assert "this tenant's limit is 4 requests a minute" in error(
        refused, 429, "rate_limit_exceeded"
    )
    for path in ("/v1/completions", "/v1/responses", "/v1/messages/count_tokens"):
        assert httpx.post(url + path, json={}, headers=headers).status_code == 429


def test_no_more_answers_at_a_time_than_are_allowed(two: tuple[Stage, list[Gateway]]) -> None:
    stage, gateways = two
    url = gateways[0].url
    tenant, key = stage.tenant()
    put(stage, tenant, LimitKind.STREAMS, 1)
    put(stage, tenant, LimitKind.REQUESTS, 500)
    known([url], key, "x-ratelimit-limit-requests", "500")
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", timeout=180,
        json={"model": MODEL, "stream": True, "messages": says(tokens=2000, delay_ms=20)},
        headers={"authorization": f"Bearer {key}"},
    ) as stream:  # fmt: skip
        assert stream.status_code == 200, stream.read()
        parts = stream.iter_bytes()  # kept: without it the stream would be closed
        next(parts)
        refused = ask(url, key)
        assert "limit is 1 answers at the same time" in error(refused, 429, "rate_limit_exceeded")
        assert refused.headers["x-should-retry"] == "true"
    eventually(lambda: ask(url, key).status_code == 200)


def test_after_all_the_books_are_right(two: tuple[Stage, list[Gateway]]) -> None:
    stage, _ = two
    stage.check_books()
