"""Bedrock's words, read and written: nothing is lost, nothing crashes, every frame is whole."""

import base64
import json
from itertools import pairwise
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.bodies import JSON
from tests.gateway.test_messages import GRANT

from sublet.core.money import Money
from sublet.gateway import anthropic, bedrock, converse, eventstream, foundation, invoke, openai
from sublet.gateway.ask import Api, Ask
from sublet.gateway.bedrock import Operation, Verb, find, name_of
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.request import parse as parse_openai
from sublet.gateway.table import Table
from sublet.gateway.tariff import Counts

TEXT = st.text(max_size=8).map(lambda text: text.replace("\0", ""))
BLOCKS = st.lists(st.builds(lambda text: {"text": text}, TEXT), min_size=1, max_size=3)
TURNS = st.lists(
    st.builds(
        lambda role, blocks: {"role": role, "content": blocks},
        st.sampled_from(["user", "assistant"]),
        BLOCKS,
    ),
    max_size=4,
)
LAST = {"role": "user", "content": [{"text": "so"}]}
CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "maxTokens": st.integers(1, 1000),
        "temperature": st.floats(0, 1),
        "topP": st.floats(0, 1),
        "stopSequences": st.lists(st.sampled_from(["a", "END"]), max_size=4),
    },
)
COUNTS = st.builds(
    Counts,
    input_tokens=st.integers(0, 10**6),
    cache_read_tokens=st.integers(0, 10**6),
    cache_write_tokens=st.integers(0, 10**6),
    output_tokens=st.integers(0, 10**6),
    reasoning_tokens=st.integers(0, 10**6),
)
FINISHED = st.sampled_from(["stop", "length", "content_filter"])


def read(value: object, *, stream: bool = False) -> Ask:
    return converse.parse(json.dumps(value).encode(), model="m", stream=stream)


def invoked(value: object, *, stream: bool = False) -> Ask:
    return invoke.dialect("m", stream=stream).parse(json.dumps(value).encode())


def frames(data: bytes) -> list[tuple[str, Any]]:
    """Return (event, payload) of each frame, as botocore's reader takes them apart."""
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    assert len(buffer._data) <= len(data)
    return [(frame.headers.get(":event-type"), json.loads(frame.payload)) for frame in list(buffer)]


# ── there and back ───────────────────────────────────────────────────────────────────────


@given(TURNS, CONFIG, st.lists(TEXT, min_size=1, max_size=2) | st.none(), st.booleans())
def test_what_is_asked_in_converse_is_asked_of_the_replica(
    turns: list[Any], config: dict[str, Any], system: list[str] | None, stream: bool
) -> None:
    body: dict[str, Any] = {"messages": [*turns, LAST], "inferenceConfig": config}
    if system is not None:
        body["system"] = [{"text": text} for text in system]
    ask = read(body, stream=stream)
    assert (ask.api, ask.model, ask.stream) == (Api.CHAT, "m", stream)
    assert ask.max_tokens == config.get("maxTokens")
    said = {"temperature": "temperature", "top_p": "topP", "stop": "stopSequences"}
    for ours, theirs in said.items():
        assert ask.payload.get(ours) == (
            config.get(theirs) or None if ours == "stop" else config.get(theirs)
        )
    messages: Any = ask.payload["messages"]
    # Each text is there, in its place, whoever said it; and roles alternate.
    told = "".join(message["content"] for message in messages)
    texts = [*(system or []), *(b["text"] for t in [*turns, LAST] for b in t["content"])]
    assert told.replace("\n", "") == "".join(texts).replace("\n", "")
    roles = [message["role"] for message in messages]
    assert all(before != after for before, after in pairwise(roles))
    assert ask.prompt_bytes == sum(len(message["content"].encode()) for message in messages)


@given(st.lists(TEXT, max_size=5), FINISHED, COUNTS, st.integers(0, 10**12))
def test_what_was_answered_is_read_back_from_a_stream(
    texts: list[str], reason: str, counts: Counts, nanos: int
) -> None:
    reply = converse.Reply(read({"messages": [LAST]}), GRANT, "0" * 32, 0)
    stream = reply.first(counts) + b"".join(map(reply.text, texts))
    events = frames(stream + reply.last(reason, counts, Money(nanos)))
    whole = json.loads(reply.whole("".join(texts), reason, counts, Money(nanos)))
    deltas = [payload["delta"]["text"] for name, payload in events if name == "contentBlockDelta"]
    assert deltas == texts
    blocks = whole["output"]["message"]["content"]
    assert "".join(block["text"] for block in blocks) == "".join(texts)
    by_name = dict(events)
    assert by_name["messageStop"]["stopReason"] == whole["stopReason"]
    for metadata in (by_name["metadata"], whole):
        used = metadata["usage"]
        assert used["inputTokens"] == counts.input_tokens
        assert used["cacheReadInputTokens"] == counts.cache_read_tokens
        assert used["totalTokens"] == sum(used.values()) - used["totalTokens"] == counts.total
        assert metadata["sublet"]["charge_nanos"] == nanos


@given(
    st.lists(TEXT, max_size=4), FINISHED, COUNTS, st.sampled_from(["anthropic", "openai", "llama"])
)
def test_an_invocation_s_stream_is_what_the_maker_s_would_be_in_frames(
    texts: list[str], reason: str, counts: Counts, words: str
) -> None:
    body: dict[str, Any] = {
        "anthropic": {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 5, "messages": [
            {"role": "user", "content": "hi"}]},
        "openai": {"messages": [{"role": "user", "content": "hi"}]},
        "llama": {"prompt": "hi"},
    }[words]  # fmt: skip
    dialect = invoke.dialect("m", stream=True)
    ask = dialect.parse(json.dumps(body).encode())
    reply = dialect.reply(ask, GRANT, "0" * 32, 0)
    stream = reply.first(counts) + b"".join(map(reply.text, texts))
    events = frames(stream + reply.last(reason, counts, Money(7)))
    assert {name for name, _ in events} == {"chunk"}
    chunks = [json.loads(base64.b64decode(payload["bytes"])) for _, payload in events]
    metrics = chunks[-1].pop("amazon-bedrock-invocationMetrics")
    assert metrics["inputTokenCount"] == counts.prompt_tokens
    assert metrics["outputTokenCount"] == counts.completion_tokens
    match words:
        case "anthropic":
            told = [c["delta"]["text"] for c in chunks if c["type"] == "content_block_delta"]
            assert [chunks[0]["type"], chunks[-1]["type"]] == ["message_start", "message_stop"]
        case "openai":
            told = [c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]]
            assert chunks[-1]["usage"]["completion_tokens"] == counts.completion_tokens
        case _:
            told = [c["generation"] for c in chunks]
            assert chunks[-1]["stop_reason"] == reason
            assert chunks[-1]["generation_token_count"] == counts.completion_tokens
    assert "".join(told) == "".join(texts)


def test_an_invocation_is_asked_as_its_maker_s_own_call_is() -> None:
    turn = {"role": "user", "content": "hi"}
    theirs = {"max_tokens": 5, "messages": [turn], "top_k": 3, "stop_sequences": ["x"]}
    asked = invoked(theirs | {"anthropic_version": "bedrock-2023-05-31"})
    assert asked == anthropic.parse(json.dumps(theirs | {"model": "m"}).encode())
    ours = {"messages": [turn], "seed": 3, "max_completion_tokens": 4}
    assert invoked(ours | {"model": "other"}) == parse_openai(
        Api.CHAT, json.dumps(ours | {"model": "m"}).encode()
    )
    llama = invoked({"prompt": "hi", "temperature": 0.5, "top_p": 1, "max_gen_len": 9})
    assert (llama.api, llama.max_tokens) == (Api.COMPLETION, 9)
    assert llama.payload == {"prompt": "hi", "temperature": 0.5, "top_p": 1.0}
    assert invoked({"prompt": "hi"}).max_tokens == 512


def test_a_count_reads_either_call_s_prompt() -> None:
    turn = {"role": "user", "content": [{"text": "hi"}]}
    inner = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 1, "messages": [turn]}
    inner["messages"] = [{"role": "user", "content": "hi"}]
    encoded = base64.b64encode(json.dumps(inner).encode()).decode()
    for given_input in ({"converse": {"messages": [turn]}}, {"invokeModel": {"body": encoded}}):
        body = json.dumps({"input": given_input}).encode()
        ask = invoke.parse_count(body, model="m")
        assert ask.payload["messages"] == [{"role": "user", "content": "hi"}]
    with pytest.raises(Failure, match="one field"):
        invoke.parse_count(b'{"input": {}}', model="m")


def test_a_tier_is_asked_of_the_replica_and_said_again() -> None:
    body = {"messages": [LAST], "serviceTier": {"type": "flex"}}
    ask = read(body)
    assert ask.service_tier == "flex"
    reply = converse.Reply(ask, GRANT, "0" * 32, 0)
    counts = Counts(input_tokens=1, cache_read_tokens=0, output_tokens=1)
    assert json.loads(reply.whole("", "stop", counts, Money(1)))["serviceTier"] == {"type": "flex"}
    invoked_at = invoke.dialect("m", stream=False, tier="priority")
    asked = invoked_at.parse(b'{"prompt": "hi"}')
    assert asked.service_tier == "priority"
    headers = invoked_at.reply(asked, GRANT, "0" * 32, 0).headers
    assert (invoke.TIER, b"priority") in headers


# ── refused by name ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"toolConfig": {"tools": [{"systemTool": {}}]}}, "toolConfig.tools[0].systemTool"),
        ({"guardrailConfig": {"guardrailIdentifier": "g"}}, "guardrailConfig"),
        ({"outputConfig": {"effort": "low"}}, "outputConfig"),
        ({"promptVariables": {"a": {"text": "b"}}}, "promptVariables"),
        ({"serviceTier": {"type": "reserved"}}, "serviceTier.type"),
        ({"performanceConfig": {"latency": "optimized"}}, "performanceConfig.latency"),
        ({"additionalModelRequestFields": {"thinking": {}}}, "additionalModelRequestFields.thinking"),
        ({"messages": [{"role": "user", "content": [{"video": {}}]}]}, "messages[0].content[0].video"),
        ({"somethingNew": 1}, "somethingNew"),
    ],
)  # fmt: skip
def test_what_is_not_done_here_is_refused_by_name(more: dict[str, Any], param: str) -> None:
    with pytest.raises(Failure) as refused:
        read({"messages": [LAST]} | more)
    assert refused.value.kind is Kind.UNSUPPORTED
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0]"),
        ({"messages": []}, "messages"),
        ({"messages": [LAST], "inferenceConfig": {"maxTokens": 0}}, "inferenceConfig.maxTokens"),
        (
            {"messages": [LAST], "inferenceConfig": {"temperature": 2}},
            "inferenceConfig.temperature",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Failure) as refused:
        read(body)
    assert (refused.value.kind, refused.value.param) == (Kind.INVALID, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"anthropic_version": "new", "messages": []}, "anthropic_version"),
        ({"anthropic_version": "bedrock-2023-05-31", "anthropic_beta": ["x"]}, "anthropic_beta"),
        ({"anthropic_version": "bedrock-2023-05-31", "model": "m"}, "model"),
        ({"prompt": "hi", "max_tokens": 3}, "max_tokens"),
        ({"prompt": "hi", "images": ["x"]}, "images[0]"),
    ],
)
def test_what_an_invocation_cannot_be_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Failure) as refused:
        invoked(body)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-amzn-bedrock-guardrailidentifier", b"g"),
        (b"x-amzn-bedrock-trace", b"ENABLED"),
        (b"x-amzn-bedrock-service-tier", b"reserved"),
        (b"x-amzn-bedrock-performanceconfig-latency", b"optimized"),
    ],
)
def test_a_header_that_asks_for_more_is_refused_by_name(name: bytes, value: bytes) -> None:
    invoke.check_headers([(b"x-amzn-bedrock-trace", b"DISABLED"), (b"accept", b"*/*")])
    with pytest.raises(Failure) as refused:
        invoke.check_headers([(name, value)])
    assert refused.value.param == name.decode()


# ── nothing crashes ──────────────────────────────────────────────────────────────────────

_READERS = (
    lambda body: converse.parse(body, model="m", stream=False),
    lambda body: invoke.dialect("m", stream=True).parse(body),
    lambda body: invoke.parse_count(body, model="m"),
)


def taken(body: bytes) -> None:
    """Each reader takes a body, or refuses it in good form."""
    for reader in _READERS:
        try:
            ask = reader(body)
        except Failure as failure:
            status, told, headers = bedrock.refuse(failure, "req_1")
            assert status == 400
            assert dict(headers)[b"x-amzn-errortype"] == b"ValidationException"
            assert json.loads(told)["message"]
        else:
            assert ask.model == "m" and ask.messages >= 1


@given(st.binary())
def test_no_bytes_break_a_reader(body: bytes) -> None:
    taken(body)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "messages", "system", "inferenceConfig", "toolConfig", "serviceTier", "input",
                "anthropic_version", "anthropic_beta", "max_tokens", "prompt", "max_gen_len",
                "model", "stream", "additionalModelRequestFields", "requestMetadata",
            ]
        ),
        JSON | st.just("bedrock-2023-05-31") | st.just([LAST]) | st.just({"converse": {"messages": [LAST]}}),
    )
)  # fmt: skip
def test_no_json_breaks_a_reader(value: dict[str, object]) -> None:
    taken(json.dumps(value).encode())


@given(st.binary(max_size=300), st.sampled_from(["chunk", "contentBlockDelta"]))
def test_a_frame_is_what_botocore_reads_whatever_is_in_it(payload: bytes, name: str) -> None:
    for made, kind in ((eventstream.event, "event"), (eventstream.exception, "exception")):
        buffer = EventStreamBuffer()
        twice = made(name, payload) * 2
        for index in range(len(twice)):  # as slowly as a network can be
            buffer.add_data(twice[index : index + 1])
        read_back = list(buffer)
        assert [frame.payload for frame in read_back] == [payload, payload]
        assert read_back[0].headers == {
            ":message-type": kind, ":content-type": "application/json", f":{kind}-type": name,
        }  # fmt: skip


@given(st.text(), st.text())
def test_no_path_and_no_query_break_the_control_plane(path: str, query: str) -> None:
    for front in ("/foundation-models", "/inference-profiles"):
        assert foundation.has(front)
        with pytest.raises(Failure) as refused:
            foundation.answer(f"{front}/{path}", query.encode(), Table())
        assert refused.value.status in {400, 404}


# ── which model, which call ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("m", "m"),
        ("us.m", "m"),
        ("global.m-v1:0", "m"),
        ("m:0", "m"),
        ("m-v2:0:28k", "m"),
        ("us.exact", "us.exact"),
        ("exact:0", "exact:0"),
        ("arn:aws:bedrock:us-east-1::foundation-model/m", "m"),
        ("arn:aws:bedrock:us-east-1::foundation-model/m-v1:0", "m"),
        ("arn:aws-us-gov:bedrock:r:000000000000:inference-profile/us-gov.m", "m"),
        ("arn:aws:s3:::m", "arn:aws:s3:::m"),
        ("mars.m", "mars.m"),
        ("nobody", "nobody"),
        ("us.nobody", "us.nobody"),
    ],
)
def test_a_model_has_all_the_names_that_aws_gives_one(identifier: str, name: str) -> None:
    assert name_of(identifier, {"m", "us.exact", "exact:0", "exact"}.__contains__) == name


@given(st.text())
def test_any_identifier_names_one_model_or_none(identifier: str) -> None:
    known = {"m", "us.m"}
    name = name_of(identifier, known.__contains__)
    assert name in known or name == identifier


def test_a_path_is_a_call_of_a_model_whatever_is_in_its_name() -> None:
    arn = "arn:aws:bedrock:r::foundation-model/m"
    assert find(f"/model/{arn}/converse") == Operation(arn, Verb.CONVERSE)
    assert find("/model/a/converse/invoke") == Operation("a/converse", Verb.INVOKE)
    for path in ("/model//converse", "/model/converse", "/model/m/other", "/v1/model/m/invoke"):
        assert find(path) is None


def test_a_chat_s_own_dialect_is_not_changed_by_its_use_here() -> None:
    assert openai.CHAT.stream_kind.startswith(b"text/event-stream")
    assert bedrock.RUNTIME.stream_kind == eventstream.CONTENT_TYPE
