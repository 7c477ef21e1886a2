"""Every 402 and 429 says which limit, what is left and when it returns: on every route."""

import json
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from tests.gateway.stage import MODEL, Stage

TURN: Final = {"role": "user", "content": "hello there"}
CONVERSE: Final = {
    "messages": [{"role": "user", "content": [{"text": "hello"}]}],
    "inferenceConfig": {"maxTokens": 9},
}
MESSAGES: Final = {"model": MODEL, "max_tokens": 9, "messages": [TURN]}
MAKER: Final = {
    "anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "messages": [TURN],
}  # fmt: skip
CHAT: Final = {"model": MODEL, "max_tokens": 9, "messages": [TURN]}
# What costs money, by path.
PAID: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": CHAT,
    "/openai/v1/chat/completions": CHAT | {"stream": True},
    "/v1/completions": {"model": MODEL, "max_tokens": 9, "prompt": "hello"},
    "/v1/responses": {"model": MODEL, "max_output_tokens": 9, "input": "hello"},
    "/v1/embeddings": {"model": MODEL, "input": "hello"},
    "/v1/messages": MESSAGES,
    "/anthropic/v1/messages": MESSAGES | {"stream": True},
    f"/model/{MODEL}/converse": CONVERSE,
    f"/model/{MODEL}/converse-stream": CONVERSE,
    f"/model/{MODEL}/invoke": MAKER,
    f"/model/{MODEL}/invoke-with-response-stream": {"prompt": "hello", "max_gen_len": 9},
}
# What costs a place in the limit, and nothing else.
FREE: Final[dict[str, dict[str, Any] | None]] = {
    "/v1/messages/count_tokens": {"model": MODEL, "messages": [TURN]},
    "/v1/responses/input_tokens": {"model": MODEL, "input": "hello"},
    f"/model/{MODEL}/count-tokens": {"input": {"converse": {"messages": CONVERSE["messages"]}}},
    "/v1/models": None,
    "/anthropic/v1/models": None,
    "/foundation-models": None,
    "/inference-profiles": None,
    f"/v1/responses/resp_{'0' * 32}": None,
}


@pytest.fixture(scope="module")
def strict(stage: Stage) -> Iterator[Stage]:
    """A gateway at which one request a minute is a key's limit."""
    assert stage.gateway is not None
    stage.gateway.stop()
    stage.start(requests_per_minute=1)
    return stage


def send(stage: Stage, key: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "anthropic-version": "2023-06-01"}
    if "messages" not in path and "anthropic" not in path:
        del headers["anthropic-version"]
    method = "GET" if body is None else "POST"
    return httpx.request(method, stage.url + path, json=body, headers=headers, timeout=120)


def told(answer: httpx.Response) -> str:
    """Return the message, wherever its dialect has it."""
    value = json.loads(answer.content)
    return str(value["error"]["message"] if "error" in value else value["message"])


@pytest.mark.parametrize("path", [*PAID, *FREE])
def test_over_a_rate_it_says_which_what_is_left_and_when(strict: Stage, path: str) -> None:
    tenant, key = strict.tenant()
    body = PAID.get(path) or FREE.get(path)
    assert send(strict, key, path, body).status_code in {200, 404}
    refused = send(strict, key, path, body)
    assert refused.status_code == 429, refused.text
    message = told(refused)
    assert "this key's limit is 1 requests a minute: 0 are left" in message
    assert "retry in" in message
    assert refused.headers["x-should-retry"] == "true"
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 0 < wait_ms <= 60_000
    assert int(refused.headers["retry-after"]) == -(-wait_ms // 1000)
    if path.startswith("/model/") or path in {"/foundation-models", "/inference-profiles"}:
        assert refused.headers["x-amzn-errortype"] == "ThrottlingException"
        assert refused.json()["sublet"]["code"] == "rate_limit_exceeded"
    if "anthropic" in path or "messages" in path:
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.headers["anthropic-ratelimit-requests-remaining"] == "0"
    else:
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert tenant


@pytest.mark.parametrize("path", PAID)
def test_without_money_it_says_what_is_needed_and_left_and_is_not_asked_again(
    strict: Stage, path: str
) -> None:
    tenant, key = strict.tenant(1)
    refused = send(strict, key, path, PAID[path])
    bedrock = path.startswith("/model/")
    assert refused.status_code == (403 if bedrock else 402), refused.text
    message = told(refused)
    assert "need" in message and "the wallet has" in message and "available" in message
    assert "add credit" in message
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers, "it does not return by itself"
    value = refused.json()
    code = value["sublet"]["code"] if bedrock else value["error"]["code"]
    assert code == "payment_required"
    if bedrock:
        assert refused.headers["x-amzn-errortype"] == "AccessDeniedException"
    strict.paid(tenant, 0)
