"""What Anthropic's own SDK, reading strictly, makes of our answers."""

import json
from datetime import UTC, datetime
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.bodies import JSON, understood
from tests.gateway.stage import CACHED, INPUT, MODEL, OUTPUT, Stage, eventually, says

from sublet.core.money import Money, Rate
from sublet.gateway.anthropic import MESSAGES, Body, Reply, parse, parse_prompt
from sublet.gateway.ask import Api, Ask
from sublet.gateway.failures import TABLE, Failure, Kind
from sublet.gateway.grant import Grant
from sublet.gateway.tariff import Counts, Tariff
from sublet.market.price import Price

TOOL = {"name": "f", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
TURN = {"role": "user", "content": "hello"}
BODY: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [TURN]}
ONE = Price(id=1, sku="s", rate=Rate(nanos=1, per=1), happened_at=datetime(2026, 1, 1, tzinfo=UTC))
GRANT = Grant(
    prompt_tokens=1, counted=True, most_output=5, max_tokens=5, clipped_by=None, amount=Money(9),
    tariff=Tariff(input=ONE, cache_read=ONE, cache_write=ONE, output=ONE, reasoning=ONE),
)  # fmt: skip


def client(stage: Stage, key: str, *, prefix: str = "") -> Anthropic:
    return Anthropic(
        api_key=key,
        base_url=stage.url + prefix,
        max_retries=0,
        timeout=120,
        _strict_response_validation=True,
    )


# ── the SDK ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prefix", ["", "/anthropic"])
def test_a_message_is_answered_and_charged_to_the_nano(stage: Stage, prefix: str) -> None:
    tenant, key = stage.tenant()
    with client(stage, key, prefix=prefix) as sdk:
        messages = says(tokens=3, cache_read_tokens=1)  # a prompt of three words
        raw = sdk.messages.with_raw_response.create(
            model=MODEL, max_tokens=10, messages=messages, system="Be kind."
        )
    reply = raw.parse()
    assert [block.model_dump(include={"type", "text"}) for block in reply.content] == [
        {"type": "text", "text": "tok tok tok "}
    ]
    assert (reply.role, reply.stop_reason, reply.stop_sequence) == ("assistant", "end_turn", None)
    assert reply.id == "msg_" + raw.headers["request-id"].removeprefix("req_")
    used = reply.usage
    # Disjoint: what was read from the cache is not among the input tokens.
    assert (used.input_tokens, used.cache_read_input_tokens, used.output_tokens) == (2, 1, 3)
    assert raw.headers["anthropic-ratelimit-requests-limit"] == "600"
    assert raw.headers["anthropic-ratelimit-tokens-limit"] == "1000000"
    reset = datetime.fromisoformat(raw.headers["anthropic-ratelimit-tokens-reset"])
    assert abs((reset - datetime.now(UTC)).total_seconds()) < 3600
    stage.paid(tenant, 2 * INPUT + CACHED + 3 * OUTPUT)
    assert stage.usage(tenant)["outcome"] == "completed"
    stage.check_books()


def test_a_stream_has_every_event_in_its_order(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with (
        client(stage, key) as sdk,
        sdk.messages.stream(model=MODEL, max_tokens=3, messages=says(tokens=9)) as stream,
    ):
        kinds = [event.type for event in stream]
        whole = stream.get_final_message()
    sent = [kind for kind in kinds if kind not in {"text", "content_block_delta"}]
    assert sent == [
        "message_start", "content_block_start", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    assert kinds.count("content_block_delta") == 3
    assert stream.get_final_text() == "tok tok tok "
    assert whole.stop_reason == "max_tokens"
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (1, 3)
    stage.paid(tenant, INPUT + 3 * OUTPUT)


def test_who_hangs_up_pays_what_was_generated(stage: Stage) -> None:
    tenant, key = stage.tenant()
    before = stage.generated()
    with client(stage, key) as sdk:
        messages = says(tokens=500, delay_ms=20)
        with sdk.messages.stream(model=MODEL, max_tokens=500, messages=messages) as stream:
            for _, _text in zip(range(3), stream.text_stream, strict=False):
                pass
    eventually(lambda: bool(stage.usages(tenant)))
    usage = stage.usage(tenant)
    assert usage["outcome"] == "aborted"
    assert usage["output_tokens"] == stage.generated() - before
    stage.paid(tenant, INPUT + usage["output_tokens"] * OUTPUT)


def test_tokens_are_counted_for_nothing(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with client(stage, key) as sdk:
        messages: list[Any] = [{"role": "user", "content": "one two three"}]
        assert sdk.messages.count_tokens(model=MODEL, messages=messages).input_tokens == 3
        with pytest.raises(anthropic.NotFoundError):
            sdk.messages.count_tokens(model="none", messages=messages)
    stage.paid(tenant, 0)


def test_models_are_listed_in_the_words_that_the_client_speaks(stage: Stage) -> None:
    _, key = stage.tenant()
    with client(stage, key) as sdk:
        assert [model.id for model in sdk.models.list()] == [MODEL]
        assert sdk.models.retrieve(MODEL).display_name == MODEL
        with pytest.raises(anthropic.NotFoundError):
            sdk.models.retrieve("none")
    listed = httpx.get(f"{stage.url}/openai/v1/models", headers={"x-api-key": key}).json()
    assert listed["object"] == "list"


def test_errors_are_the_sdks_own(stage: Stage) -> None:
    tenant, key = stage.tenant()
    _, poor = stage.tenant(10)
    ask: dict[str, Any] = {"model": MODEL, "max_tokens": 5, "messages": says(tokens=1)}

    def refusal(key: str, kind: type[anthropic.APIStatusError], **more: Any) -> dict[str, Any]:
        with client(stage, key) as sdk, pytest.raises(kind) as refused:
            sdk.messages.create(**(ask | more))
        assert isinstance(refused.value.body, dict)
        assert refused.value.body["type"] == "error"
        assert refused.value.body["request_id"] == refused.value.request_id
        error: dict[str, Any] = refused.value.body["error"]
        return error | {"retry": refused.value.response.headers.get("x-should-retry")}

    assert refusal("sk-nobody", anthropic.AuthenticationError)["type"] == "authentication_error"
    assert refusal(key, anthropic.NotFoundError, model="x")["type"] == "not_found_error"
    told = refusal(key, anthropic.BadRequestError, extra_body={"top_k": -1})
    assert (told["type"], told["param"]) == ("invalid_request_error", "top_k")
    told = refusal(key, anthropic.BadRequestError, extra_body={"mcp_servers": []})
    assert "mcp_servers" in told["message"]
    empty = refusal(poor, anthropic.APIStatusError)
    assert (empty["type"], empty["retry"]) == ("billing_error", "false")
    for script, status in (({"status": 500}, 500), ({"status": 503}, 529), ({"hang": False, "cut_after": 0}, 500)):  # fmt: skip
        broken = httpx.post(
            f"{stage.url}/v1/messages",
            json=ask | {"messages": says(**script)},
            headers={"x-api-key": key},
            timeout=120,
        )
        assert (broken.status_code, broken.json()["type"]) == (status, "error"), script
    stage.paid(tenant, 0)


def test_a_stream_that_breaks_ends_with_an_error_and_costs_what_came(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with client(stage, key) as sdk:
        texts = []
        messages = says(tokens=9, cut_after=2)
        with (
            pytest.raises(anthropic.APIError) as broken,
            sdk.messages.stream(model=MODEL, max_tokens=9, messages=messages) as stream,
        ):
            texts += list(stream.text_stream)
    assert "broke off" in str(broken.value)
    stage.paid(tenant, INPUT + 2 * OUTPUT)
    assert stage.usage(tenant)["outcome"] == "failed"


# ── its words and ours ───────────────────────────────────────────────────────────────────


def refusal(body: bytes | dict[str, Any]) -> Failure:
    with pytest.raises(Failure) as refused:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert refused.value.status == 400
    return refused.value


@given(
    JSON
    | st.dictionaries(st.sampled_from(Body.__struct_fields__), JSON)
    | st.dictionaries(st.sampled_from(Body.__struct_fields__), JSON).map(lambda more: BODY | more)
)
def test_arbitrary_json_is_understood_or_refused(value: object) -> None:
    for read in (parse, parse_prompt):
        understood(read, value, dialect=MESSAGES)


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)


@given(
    system=st.none() | TEXT,
    turns=st.lists(TEXT, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1),
    max_tokens=st.integers(1, 2**31 - 1),
    top_k=st.none() | st.integers(0, 100),
    stops=st.lists(TEXT.filter(bool), max_size=4),
    stream=st.booleans(),
    blocks=st.booleans(),
)
def test_nothing_of_a_request_is_lost(
    system: str | None, turns: list[str], max_tokens: int, top_k: int | None, stops: list[str],
    stream: bool, blocks: bool,
) -> None:  # fmt: skip
    def content(text: str) -> object:
        block = {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}
        return [block] if blocks else text

    roles = ["user", "assistant"]
    body: dict[str, Any] = BODY | {
        "messages": [
            {"role": roles[index % 2], "content": content(text)} for index, text in enumerate(turns)
        ],
        "max_tokens": max_tokens, "stream": stream, "stop_sequences": stops,
    }  # fmt: skip
    if system is not None:
        body["system"] = content(system)
    if top_k is not None:
        body["top_k"] = top_k
    ask = parse(json.dumps(body).encode())
    has_system = bool(system) or (blocks and system is not None)
    said = [("system", system)] if has_system else []
    said += [(roles[index % 2], text) for index, text in enumerate(turns)]
    assert isinstance(ask.payload["messages"], list)
    assert [(m["role"], m["content"]) for m in ask.payload["messages"]] == said
    assert (ask.max_tokens, ask.stream) == (max_tokens, stream)
    assert ask.payload.get("top_k") == top_k
    assert ask.payload.get("stop", []) == stops
    assert ask.prompt_bytes == sum(len((text or "").encode()) for _, text in said)


def test_turns_in_a_row_are_one_and_an_answer_is_not_continued() -> None:
    ask = parse(json.dumps(BODY | {"messages": [TURN, TURN]}).encode())
    assert ask.payload["messages"] == [{"role": "user", "content": "hello\n\nhello"}]
    begun = BODY | {"messages": [TURN, {"role": "assistant", "content": "I"}]}
    assert refusal(begun).kind is Kind.UNSUPPORTED


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}, "tools": [TOOL]}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [USE]}]}, "messages"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages"),
        ({"temperature": 1.5}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_is_not_done_is_refused_by_name(more: dict[str, Any], param: str) -> None:
    assert (refusal(BODY | more).param or "").startswith(param)


def test_max_tokens_must_be_there() -> None:
    assert "max_tokens" in refusal({"model": "m", "messages": [TURN]}).message


@pytest.mark.parametrize("kind", Kind)
def test_every_refusal_has_a_type_of_theirs(kind: Kind) -> None:
    status, body, _ = MESSAGES.refuse(Failure(kind, "so"), "req_1")
    assert json.loads(body)["error"]["code"] == TABLE[kind].code
    assert (status >= 500) == (TABLE[kind].status >= 500)


@given(text=TEXT, counts=st.lists(st.integers(0, 10**6), min_size=5, max_size=5))
def test_an_answer_in_parts_says_what_it_says_whole(text: str, counts: list[int]) -> None:
    names = (
        "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens",
        "reasoning_tokens",
    )  # fmt: skip
    used = Counts(**dict(zip(names, counts, strict=True)))
    ask = Ask(
        api=Api.CHAT, model="m", payload={}, max_tokens=5, stream=True, include_usage=True,
        service_tier=None, prompt_bytes=1, messages=1,
    )  # fmt: skip
    reply = Reply(ask, GRANT, "0" * 32, 0)
    whole = json.loads(reply.whole(text, "stop", used, Money(7)))
    events = [
        json.loads(line.removeprefix(b"data: "))
        for part in (reply.first(used), reply.text(text), reply.last("stop", used, Money(7)))
        for line in part.split(b"\n")
        if line.startswith(b"data: ")
    ]
    said = "".join(event["delta"]["text"] for event in events if "delta" in event and "text" in event["delta"])  # fmt: skip
    assert said == text == "".join(block["text"] for block in whole["content"])
    (end,) = [event for event in events if event["type"] == "message_delta"]
    assert end["usage"].items() <= whole["usage"].items()
    assert sum(value for name, value in end["usage"].items()) == used.total
    assert end["sublet"] == whole["sublet"]
