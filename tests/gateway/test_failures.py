"""What goes wrong, and what clients are told of it."""

import socket
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from openai import APIError, InternalServerError
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage, eventually, says

from sublet.models.deployment import ReplicaState
from sublet.tenants import store as tenants


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"].startswith("req_")
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


# ── keys ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Basic abc"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer sk-sublet-unknown"},
        {"authorization": "Bearer " + "x" * 5000},
        {"x-api-key": "nonsense"},
    ],
)
def test_without_a_good_key_nothing_is_served(stage: Stage, headers: dict[str, str]) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        refused = httpx.post(stage.url + path, json={}, headers=headers)
        assert error(refused, 401)["code"] == "invalid_api_key"
    assert httpx.get(f"{stage.url}/v1/models", headers=headers).status_code == 401


def test_expired_and_revoked_keys_say_so_and_an_operator_spends_nothing(stage: Stage) -> None:
    tenant, key = stage.tenant()
    now = datetime.now(UTC)
    with stage.db.transaction() as tx:
        _, short = tenants.create_key(
            tx, tenant.id, "short", now=now, expires_at=now + timedelta(seconds=4)
        )
        revoked, gone = tenants.create_key(tx, tenant.id, "gone", now=now)
        tenants.revoke_key(tx, revoked.id, tenant_id=tenant.id, now=now)
        _, operator = tenants.create_key(tx, None, "operator", now=now)
    ask: dict[str, Any] = {"messages": says(tokens=1)}
    assert "revoked" in error(stage.post(gone, **ask), 401)["message"]
    # It is remembered for two seconds, but never beyond its end.
    assert stage.post(short, **ask).status_code == 200
    eventually(lambda: datetime.now(UTC) > now + timedelta(seconds=4))
    assert "expired" in error(stage.post(short, **ask), 401)["message"]
    assert error(stage.post(operator, **ask), 403)["code"] == "operator_key"
    for name in ("x-api-key", "api-key"):
        listed = httpx.get(f"{stage.url}/v1/models", headers={name: key})
        assert listed.status_code == 200


def test_a_key_in_use_is_refused_soon_after_it_was_revoked(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    now = datetime.now(UTC)
    ask: dict[str, Any] = {"messages": says(tokens=1)}
    with stage.db.transaction() as tx:
        made, key = tenants.create_key(tx, tenant.id, "gone", now=now)
    assert stage.post(key, **ask).status_code == 200
    with stage.db.transaction() as tx:
        tenants.revoke_key(tx, made.id, tenant_id=tenant.id, now=datetime.now(UTC))
    # It is asked for all the time, so it is never looked up: it must be told.
    eventually(lambda: stage.post(key, **ask).status_code == 401)
    assert "revoked" in error(stage.post(key, **ask), 401)["message"]


# ── requests ─────────────────────────────────────────────────────────────────────────────


def test_paths_and_methods_that_are_not_there(stage: Stage) -> None:
    assert error(httpx.get(f"{stage.url}/v2/models"), 404)["code"] == "unknown_url"
    refused = httpx.get(f"{stage.url}/v1/chat/completions")
    assert error(refused, 405)["code"] == "method_not_allowed"
    assert refused.headers["allow"] == "POST, OPTIONS"
    assert httpx.options(f"{stage.url}/v1/models").status_code == 204
    assert httpx.head(f"{stage.url}/healthz").status_code == 200
    assert httpx.get(f"{stage.url}/healthz").json() == {"status": "ok"}


def test_an_unknown_model_is_a_404(stage: Stage) -> None:
    _, key = stage.tenant()
    refused = stage.post(key, model="gpt-\0", messages=says())
    assert error(refused, 404)["code"] == "model_not_found"


def test_a_prompt_longer_than_the_context_is_refused(stage: Stage) -> None:
    tenant, key = stage.tenant()
    refused = stage.post(key, messages=[{"role": "user", "content": "word " * 4096}])
    assert error(refused, 400)["code"] == "context_length_exceeded"
    assert stage.wallet(tenant).debits_pending == 0


def test_a_body_of_ten_megabytes_gets_its_answer(stage: Stage) -> None:
    _, key = stage.tenant()
    messages = [{"role": "user", "content": "x" * 10_000_000}]
    refused = stage.post(key, messages=messages)
    assert error(refused, 413)["code"] == "request_too_large"
    assert refused.headers["connection"] == "close"


def test_a_compressed_body_is_refused(stage: Stage) -> None:
    _, key = stage.tenant()
    refused = httpx.post(
        f"{stage.url}/v1/chat/completions",
        content=b"\x1f\x8b",
        headers={"authorization": f"Bearer {key}", "content-encoding": "gzip"},
    )
    assert error(refused, 415)["code"] == "unsupported_encoding"


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(stage: Stage) -> None:
    tenant, key = stage.tenant()
    host, port = stage.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as one:
        one.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n"
            b"authorization: Bearer " + key.encode() + b'\r\n\r\n{"model":'
        )
    assert stage.post(key, messages=says(tokens=1)).status_code == 200
    stage.check_books()
    assert len(stage.usages(tenant)) == 1


# ── replicas ─────────────────────────────────────────────────────────────────────────────


def test_a_stream_that_is_cut_ends_with_an_error_and_costs_what_came(stage: Stage) -> None:
    tenant, key = stage.tenant()
    texts: list[str | None] = []
    with stage.client(key) as client, pytest.raises(APIError) as broken:  # noqa: PT012
        stream = client.chat.completions.create(
            model=MODEL, messages=says(tokens=9, cut_after=4), stream=True
        )
        texts.extend(chunk.choices[0].delta.content for chunk in stream)
    assert "".join(text or "" for text in texts) == "tok " * 4
    assert broken.value.code == "model_failed"
    usage = stage.usage(tenant)
    assert (usage["outcome"], usage["output_tokens"]) == ("failed", 4)
    assert usage["delivered_tokens"] == 4
    stage.paid(tenant, INPUT + 4 * OUTPUT)
    stage.check_books()


@pytest.mark.parametrize("script", [{"cut_after": 4}, {"garbage_after": 2}, {"status": 500}])
def test_a_whole_answer_that_breaks_is_a_502_and_free(stage: Stage, script: dict[str, int]) -> None:
    tenant, key = stage.tenant()
    refused = stage.post(key, messages=says(tokens=9, **script))
    assert error(refused, 502)["code"] == "model_failed"
    assert refused.headers["x-should-retry"] == "true"
    stage.paid(tenant, 0)
    stage.check_books()


def test_a_stream_that_breaks_before_its_first_token_is_a_502_and_free(stage: Stage) -> None:
    tenant, key = stage.tenant()
    refused = stage.post(key, messages=says(tokens=9, cut_after=0), stream=True)
    assert error(refused, 502)["code"] == "model_failed"
    stage.paid(tenant, 0)
    stage.check_books()


def test_a_busy_replica_is_worth_a_retry(stage: Stage) -> None:
    _, key = stage.tenant()
    refused = stage.post(key, messages=says(status=503))
    assert error(refused, 503)["code"] == "model_busy"
    assert refused.headers["retry-after"] == "1"
    stage.check_books()


def test_a_reclaim_in_mid_stream_is_told_and_costs_what_came(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with stage.client(key) as client, pytest.raises(APIError) as broken:
        list(
            client.chat.completions.create(
                model=MODEL, messages=says(tokens=9, reclaim_after=2), stream=True
            )
        )
    assert broken.value.type == "model_reclaimed"
    usage = stage.usage(tenant)
    assert (usage["outcome"], usage["output_tokens"]) == ("reclaimed", 2)
    stage.paid(tenant, INPUT + 2 * OUTPUT)
    stage.check_books()


def test_a_reclaim_before_the_answer_is_a_503_and_free(stage: Stage) -> None:
    tenant, key = stage.tenant()
    refused = stage.post(key, messages=says(tokens=9, reclaim_after=2))
    assert error(refused, 503)["type"] == "model_reclaimed"
    assert refused.headers["retry-after"] == "2"
    assert refused.headers["x-should-retry"] == "true"
    stage.paid(tenant, 0)
    stage.check_books()


def test_a_model_without_a_replica_says_why(own_stage: Stage) -> None:
    own_stage.set_replica(ReplicaState.GONE, "reclaimed")
    own_stage.start()
    _, key = own_stage.tenant()
    with own_stage.client(key) as client, pytest.raises(InternalServerError) as refused:
        client.chat.completions.create(model=MODEL, messages=says())
    assert (refused.value.status_code, refused.value.type) == (503, "model_reclaimed")
    assert refused.value.response.headers["retry-after"] == "2"
    assert refused.value.response.headers["x-should-retry"] == "true"
    # The SDK's own retries carry a client over a reclaim that ends soon.
    own_stage.set_replica(ReplicaState.STARTING, "loading weights")
    eventually(
        lambda: own_stage.post(key, messages=says()).json()["error"]["type"] == "model_not_ready"
    )
    assert "loading weights" in own_stage.post(key, messages=says()).json()["error"]["message"]
    with own_stage.client(key, retries=3) as client:
        own_stage.set_replica(ReplicaState.READY)
        reply = client.chat.completions.create(model=MODEL, messages=says(tokens=1))
    assert reply.choices[0].message.content == "tok "
    own_stage.check_books()


def test_a_replica_that_nobody_answers_for_is_not_ready(own_stage: Stage) -> None:
    own_stage.replica_url = "http://127.0.0.1:1"
    with own_stage.db.transaction() as tx:
        tx.execute("UPDATE replica SET url = 'http://127.0.0.1:1'")
    own_stage.start()
    tenant, key = own_stage.tenant()
    began = time.monotonic()
    refused = own_stage.post(key, messages=says())
    assert error(refused, 503)["code"] == "model_not_ready"
    assert time.monotonic() - began < 2
    assert own_stage.wallet(tenant).debits_pending == 0


def test_a_key_over_its_limit_is_told_which_and_until_when(own_stage: Stage) -> None:
    own_stage.start(requests_per_minute=2, tokens_per_minute=50)
    _, key = own_stage.tenant()
    too_large = own_stage.post(key, messages=says(tokens=1), max_tokens=100)
    assert "limit is 50 a minute" in error(too_large, 429)["message"]
    assert too_large.headers["x-should-retry"] == "false"
    assert own_stage.post(key, messages=says(tokens=1), max_tokens=5).status_code == 200
    refused = own_stage.post(key, messages=says(tokens=1), max_tokens=5)
    assert error(refused, 429)["code"] == "rate_limit_exceeded"
    assert "limit is 2 requests a minute" in refused.json()["error"]["message"]
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert int(refused.headers["retry-after"]) <= 30
