"""The wall: sixteen ways in which what is behind the gateway fails, in every dialect.

Each is answered in the words of the dialect, once, and billed for what was delivered: nothing
less, nothing more, and nothing that was not. A request that may have been at work is never sent
a second time; one that was refused before it began is, where there is another replica.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from tests.core.databases import fresh_url
from tests.fakes.upstream import FAULTS, TOKENS, Upstream
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage, free_port, raised

from sublet.core.ids import new_id
from sublet.core.money import Rate
from sublet.market import store as market
from sublet.market.price import input_sku, output_sku
from sublet.models import store as models
from sublet.models.deployment import Deployment, Replica, ReplicaState
from sublet.tenants.tenant import Tenant

PROMPT_TOKENS: Final = 1  # words of the prompt
TEXT: Final = "tok " * TOKENS
REFUSED: Final = "refused"  # a model of which one of two replicas does not listen
ALONE: Final = "alone"  # … and of which the only one does not


@dataclass(frozen=True, slots=True)
class Dialect:
    path: str

    def body(self, prompt: str, **more: Any) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 50}
        match self.path:
            case "/v1/responses":
                asked = {"model": MODEL, "max_output_tokens": 50, "input": prompt}
            case "/v1/completions":
                asked["prompt"] = prompt
            case _:
                asked["messages"] = [{"role": "user", "content": prompt}]
        return asked | more

    def text(self, body: dict[str, Any]) -> str:
        match self.path:
            case "/v1/responses":
                return str(body["output"][0]["content"][0]["text"])
            case "/v1/completions":
                return str(body["choices"][0]["text"])
            case "/v1/messages":
                return str(body["content"][0]["text"])
            case _:
                return str(body["choices"][0]["message"]["content"])

    def ended(self, body: dict[str, Any]) -> str:
        """Why a whole answer ended, in OpenAI's words."""
        match self.path:
            case "/v1/responses":
                details = body["incomplete_details"]
                return details["reason"] if details else "stop"
            case "/v1/messages":
                return {"end_turn": "stop", "refusal": "content_filter"}[body["stop_reason"]]
            case _:
                return str(body["choices"][0]["finish_reason"])

    def status(self, status: int) -> int:
        if self.path == "/v1/messages":  # Anthropic has no 502, and says 529 for 503
            return {502: 500, 503: 529}.get(status, status)
        return status

    def streamed(self, events: list[dict[str, Any]]) -> str:
        texts = []
        for event in events:
            match self.path:
                case "/v1/responses":
                    if event["type"] == "response.output_text.delta":
                        texts.append(event["delta"])
                case "/v1/messages":
                    if event["type"] == "content_block_delta":
                        texts.append(event["delta"]["text"])
                case "/v1/completions":
                    texts += [choice["text"] for choice in event.get("choices", ())]
                case _:
                    for choice in event.get("choices", ()):
                        texts.append(choice["delta"].get("content") or "")
        return "".join(texts)

    def end_of(self, events: list[dict[str, Any]], *, done: bool) -> str | None:
        """Why a stream ended; None if it does not look whole."""
        last = events[-1]
        match self.path:
            case "/v1/responses":
                if last["type"] not in {"response.completed", "response.incomplete"}:
                    return None
                return self.ended(last["response"])
            case "/v1/messages":
                return self.ended(events[-2]["delta"]) if last["type"] == "message_stop" else None
            case _:
                if not done:
                    return None
                reasons = [c["finish_reason"] for event in events for c in event["choices"]]
                found = [reason for reason in reasons if reason is not None]
                assert len(found) == 1, "it ended more than once"
                return str(found[0])

    def error(self, body: dict[str, Any]) -> str:
        if self.path == "/v1/responses" and body.get("type") == "error":
            return str(body["code"])  # as an event it has no envelope
        if self.path == "/v1/messages":
            assert body["type"] == "error"
        return str(body["error"]["code"])


DIALECTS: Final = {
    "chat": Dialect("/v1/chat/completions"),
    "completions": Dialect("/v1/completions"),
    "responses": Dialect("/v1/responses"),
    "messages": Dialect("/v1/messages"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Good:
    """It is answered in full."""

    ended: str = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """It is refused, or breaks off after so many tokens, which are billed."""

    code: str
    status: int = 502
    retry_after: str | None = None
    tokens: int = 0
    patience: str = "patient"  # the gateway that is not willing to wait so long


def failed(tokens: int = 0) -> Bad:
    return Bad(code="model_failed", tokens=tokens)


BUSY: Final = Bad(code="model_busy", status=503, retry_after="1")
# The answer to each: (not streamed, streamed). "refused" has tests of its own below, as it is
# nothing that a server does.
WALL: Final[dict[str, tuple[Good | Bad | None, Good | Bad]]] = {
    "reset_before_headers": (failed(), failed()),
    "reset_after_headers": (failed(), failed()),
    "hang_before_first_token": (
        None,  # without a stream there is no first token to wait for
        Bad(code="first_token_timeout", status=504, retry_after="1", patience="hasty"),
    ),
    "stall": (None, Bad(code="model_stalled", status=504, tokens=2, patience="nervous")),
    "cut_stream": (failed(), failed(3)),
    "truncated_json": (failed(), failed(2)),
    "wrong_length": (failed(), failed(3)),
    "busy_429": (BUSY, BUSY),
    "busy_429_retry_after": (
        Bad(code="model_busy", status=503, retry_after="7"),
        Bad(code="model_busy", status=503, retry_after="7"),
    ),
    "failing_500": (failed(), failed()),
    "busy_503": (BUSY, BUSY),
    "trickle": (Good(), Good()),
    "garbage": (failed(), failed(2)),
    "duplicate_finish": (Good(), Good()),
    "missing_usage": (Good(), Good()),
    "content_filter": (Good(ended="content_filter"), Good(ended="content_filter")),
}
CASES: Final = [
    pytest.param(fault, dialect, stream, id=f"{fault}-{dialect}-{'stream' if stream else 'whole'}")
    for fault, expected in WALL.items()
    for dialect in DIALECTS
    for stream in (False, True)
    if expected[stream] is not None
]


@dataclass(slots=True, kw_only=True)
class Wall:
    stage: Stage
    upstream: Upstream
    urls: dict[str, str]  # of gateways, by how patient they are
    client: httpx.Client
    unbilled: list[Tenant] = field(default_factory=list)  # looked at in the end, all together

    def ask(
        self, key: str, dialect: Dialect, body: dict[str, Any], *, patience: str = "patient"
    ) -> httpx.Response:
        headers = {"x-api-key": key}
        return self.client.post(
            self.urls[patience] + dialect.path, json=body, headers=headers, timeout=180
        )


@pytest.fixture(scope="module")
def wall(postgres_url: str, template: str) -> Iterator[Wall]:
    folder = Path(tempfile.mkdtemp(prefix="sublet-test-"))
    upstream, other = Upstream(), Upstream()
    with (
        fresh_url(postgres_url, template) as url,
        raised(url, folder) as stage,
        upstream.in_thread() as one,
        other.in_thread() as two,
    ):
        other.asked = upstream.asked
        with stage.db.transaction() as tx:
            tx.execute("UPDATE replica SET url = %s", [one])
        _add(stage, MODEL, two)
        for name in (REFUSED, ALONE):
            _deploy(stage, name)
            _add(stage, name, f"http://127.0.0.1:{free_port()}")
        _add(stage, REFUSED, two)
        urls = {}
        gateways = []
        settings: dict[str, dict[str, float]] = {
            "patient": {},
            "hasty": {"first_token_seconds": 0.2},
            "nervous": {"stall_seconds": 0.2},
        }
        for name, given in settings.items():
            gateway = stage.start(name=name, **given)
            gateways.append(gateway)
            urls[name] = gateway.url
        try:
            with httpx.Client() as client:
                yield Wall(stage=stage, upstream=upstream, urls=urls, client=client)
        finally:
            for gateway in gateways:
                gateway.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _deploy(stage: Stage, name: str) -> None:
    now = datetime.now(UTC)
    with stage.db.transaction() as tx:
        models.put_deployment(
            tx, Deployment(name=name, recipe="fake", context_tokens=4096, wanted=True), now=now
        )
        for sku, nanos in ((input_sku(name), INPUT), (output_sku(name), OUTPUT)):
            market.set_price(tx, sku, Rate(nanos=nanos, per=1), now=now)


def _add(stage: Stage, deployment: str, url: str) -> None:
    with stage.db.transaction() as tx:
        replica = Replica(
            id=new_id(), deployment=deployment, url=url, secret="fake-key",
            state=ReplicaState.READY, detail=None, since=datetime.now(UTC),
        )  # fmt: skip
        models.add_replica(tx, replica)


def events_of(answer: httpx.Response) -> tuple[list[dict[str, Any]], bool]:
    """Return what was sent as data, and whether it ended with OpenAI's [DONE]."""
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    done = data[-1] == "[DONE]"
    return [json.loads(one) for one in data if one != "[DONE]"], done


def test_the_wall_is_whole() -> None:
    assert len(WALL) == len(FAULTS) == 16
    assert set(WALL) == set(FAULTS)


@pytest.mark.parametrize(("fault", "name", "stream"), CASES)
def test_a_fault_is_answered_and_billed_rightly(
    wall: Wall, fault: str, name: str, stream: bool
) -> None:
    dialect, expected = DIALECTS[name], WALL[fault][stream]
    assert expected is not None
    tenant, key = wall.stage.tenant()
    patience = expected.patience if isinstance(expected, Bad) else "patient"
    body = dialect.body(f"#fault:{fault}", stream=stream)
    answer = wall.ask(key, dialect, body, patience=patience)
    tokens = TOKENS
    if isinstance(expected, Good):
        assert answer.status_code == 200, answer.text
        if stream:
            events, done = events_of(answer)
            assert dialect.streamed(events) == TEXT
            assert dialect.end_of(events, done=done) == expected.ended
        else:
            assert dialect.text(answer.json()) == TEXT
            assert dialect.ended(answer.json()) == expected.ended
    elif expected.tokens:
        tokens = expected.tokens
        assert answer.status_code == 200
        events, done = events_of(answer)
        assert dialect.error(events[-1]) == expected.code
        assert dialect.streamed(events[:-1]) == "tok " * tokens
        assert dialect.end_of(events, done=done) is None, "it looks whole"
    else:
        tokens = 0
        assert answer.status_code == dialect.status(expected.status), answer.text
        assert dialect.error(answer.json()) == expected.code
        assert answer.headers["x-should-retry"] == "true"
        assert answer.headers.get("retry-after") == expected.retry_after
    if tokens:
        wall.stage.paid(tenant, PROMPT_TOKENS * INPUT + tokens * OUTPUT)
    else:
        wall.unbilled.append(tenant)
    request_id = answer.headers["request-id" if name == "messages" else "x-request-id"]
    # Only what was refused before it began is asked of the other replica, too.
    refused = isinstance(expected, Bad) and expected.code == "model_busy"
    assert wall.upstream.asked[request_id] == (2 if refused else 1)
    if tokens:
        usage = wall.stage.usage(tenant)
        assert usage["output_tokens"] == usage["delivered_tokens"] == tokens
        assert usage["outcome"] == ("completed" if isinstance(expected, Good) else "failed")
        whose = "tokeniser:" if fault == "missing_usage" else "gateway:"
        assert usage["source"].startswith(whose)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", DIALECTS)
def test_a_replica_that_does_not_listen_is_passed_over(wall: Wall, name: str, stream: bool) -> None:
    dialect = DIALECTS[name]
    tenant, key = wall.stage.tenant()
    body = dialect.body("hello", stream=stream)
    for _ in range(2):
        answer = wall.ask(key, dialect, body | {"model": REFUSED})
        assert answer.status_code == 200, answer.text
    refused = wall.ask(key, dialect, body | {"model": ALONE})
    assert refused.status_code == dialect.status(503)
    assert dialect.error(refused.json()) == "model_not_ready"
    assert refused.headers["x-should-retry"] == "true"
    wall.stage.paid(tenant, 2 * (INPUT + TOKENS * OUTPUT))


def test_what_nobody_counted_is_bounded_by_what_was_granted(wall: Wall) -> None:
    dialect = DIALECTS["chat"]
    tenant, key = wall.stage.tenant()
    body = dialect.body("#fault:missing_usage", stream=True) | {"max_tokens": 2}
    wall.ask(key, dialect, body)  # it sends five all the same
    wall.stage.paid(tenant, INPUT + 2 * OUTPUT)
    assert wall.stage.usage(tenant)["source"].startswith("tokeniser:")


def test_what_nobody_counted_and_was_cut_is_counted_from_its_text(wall: Wall) -> None:
    dialect = DIALECTS["chat"]
    tenant, key = wall.stage.tenant()
    answer = wall.ask(key, dialect, dialect.body("#fault:missing_usage_cut", stream=True))
    assert dialect.error(events_of(answer)[0][-1]) == "model_failed"
    wall.stage.paid(tenant, INPUT + 3 * OUTPUT)
    assert wall.stage.usage(tenant)["source"].startswith("tokeniser:")


@pytest.mark.parametrize("stream", [False, True])
def test_counts_in_openais_words_are_taken(wall: Wall, stream: bool) -> None:
    dialect = DIALECTS["chat"]
    tenant, key = wall.stage.tenant()
    wall.ask(key, dialect, dialect.body("#fault:their_usage and more", stream=stream))
    usage = wall.stage.usage(tenant)
    assert (usage["input_tokens"], usage["cache_read_tokens"], usage["output_tokens"]) == (2, 1, 5)
    assert usage["source"].startswith("gateway:")


def test_after_the_wall_the_books_are_right(wall: Wall) -> None:
    for url in wall.urls.values():
        assert wall.client.get(f"{url}/healthz").status_code == 200
    wall.stage.check_books()
    for tenant in wall.unbilled:
        assert wall.stage.wallet(tenant).debits_posted == 0
        assert wall.stage.usages(tenant) == []
