"""The fake keeps the replica's contract, and misbehaves only where its script says so."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.fakes.replica import FakeReplica, Script
from tests.models.replica.harness import chunks_of, until

HEADERS = {"authorization": "Bearer fake-key"}


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    fake = FakeReplica()
    with (
        fake.in_thread() as url,
        httpx.Client(base_url=url, headers=HEADERS, timeout=60, trust_env=False) as client,
    ):
        yield client


def chat(script: dict[str, Any], **more: object) -> dict[str, Any]:
    text = f"three words here #script:{json.dumps(script, separators=(',', ':'))}"
    return {"messages": [{"role": "user", "content": text}], **more}


def test_it_answers_whole_and_in_a_stream_with_the_same_counts(client: httpx.Client) -> None:
    body = chat({"tokens": 3, "cache_read_tokens": 1})
    counted = client.post("/count", json=body).json()["input_tokens"]
    whole = client.post("/v1/chat/completions", json=body).json()
    assert whole["choices"][0]["message"]["content"] == "tok tok tok "
    with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
        chunks = list(chunks_of(answer))
    assert all("sublet" in chunk for chunk in chunks)
    assert chunks[-1]["usage"] == whole["usage"]
    assert whole["usage"]["prompt_tokens"] == counted == 4
    assert whole["sublet"] == {
        "input_tokens": 3,
        "cache_read_tokens": 1,
        "output_tokens": 3,
    }


def test_a_limit_ends_it_earlier(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=chat({"tokens": 9}, max_tokens=2)).json()
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["choices"][0]["finish_reason"] == "length"


def test_it_stops_when_its_client_hangs_up_and_knows_what_it_generated(
    client: httpx.Client,
) -> None:
    body = chat({"tokens": 1000, "delay_ms": 5}, stream=True)
    headers = {"x-request-id": "hung-up"}
    with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        for chunk in chunks_of(answer):
            if chunk["sublet"]["output_tokens"] == 3:
                break
    usage = client.get("/usage/hung-up?wait_ms=5000").json()
    assert usage["state"] == "aborted"
    assert 3 <= usage["output_tokens"] < 500


def test_a_cut_closes_the_connection_within_the_stream(client: httpx.Client) -> None:
    body = chat({"cut_after": 2}, stream=True)
    seen: list[dict[str, Any]] = []
    with (
        pytest.raises(httpx.RemoteProtocolError),
        client.stream(
            "POST", "/v1/chat/completions", json=body, headers={"x-request-id": "cut"}
        ) as answer,
    ):
        seen.extend(chunks_of(answer))
    usage = client.get("/usage/cut?wait_ms=5000").json()
    assert (usage["state"], usage["output_tokens"]) == ("aborted", 2)


def test_it_can_refuse_hang_talk_garbage_count_nothing_and_be_reclaimed(
    client: httpx.Client,
) -> None:
    refused = client.post("/v1/chat/completions", json=chat({"status": 429, "retry_after": 3}))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")
    assert refused.json()["error"]["type"] == "rate_limit_error"

    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=chat({"hang": True}), timeout=0.1)

    garbage = client.post("/v1/chat/completions", json=chat({"garbage_after": 1}, stream=True))
    assert "data: {this is no JSON" in garbage.text

    unknown = client.post("/v1/chat/completions", json=chat({"no_usage": True})).json()
    assert unknown.keys().isdisjoint({"usage", "sublet"})

    body = chat({"reclaim_after": 2}, stream=True)
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        *_, last = chunks_of(answer)
    assert last["error"]["type"] == "model_reclaimed"
    assert last["sublet"]["output_tokens"] == 2


def test_it_wants_its_key_and_says_when_it_does_not_serve() -> None:
    fake = FakeReplica(Script(tokens=1), key="other")
    with (
        fake.in_thread() as url,
        httpx.Client(base_url=url, headers=HEADERS, trust_env=False) as client,
    ):
        assert client.get("/health").status_code == 401
        client.headers["authorization"] = "Bearer other"
        assert client.get("/health").json()["status"] == "ok"
        for phase in ("loading", "draining"):
            fake.phase = phase
            assert client.get("/health").status_code == 503
            assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 503


def test_it_runs_as_a_process_and_drains() -> None:
    command = [sys.executable, "-m", "tests.fakes.replica", "--script", '{"delay_ms": 30}']
    environment = {**os.environ, "SUBLET_REPLICA_KEY": "fake-key", "PYTHONPATH": "src:."}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            port = json.loads(process.stdout.readline())["port"]
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, headers=HEADERS, trust_env=False) as client:
                body = {"prompt": "x", "stream": True}
                with client.stream("POST", "/v1/completions", json=body) as answer:
                    chunks = chunks_of(answer)
                    next(chunks)
                    process.send_signal(signal.SIGTERM)
                    until(lambda: client.get("/health").status_code == 503)
                    *_, last = chunks
            assert last["usage"]["completion_tokens"] == 5
            assert process.wait(60) == 0
        finally:
            process.kill()
