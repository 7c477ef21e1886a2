"""Whatever is sent as a body is either understood whole or refused with a reason."""

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.bodies import JSON, understood

from sublet.gateway import openai
from sublet.gateway.ask import Api
from sublet.gateway.failures import TABLE, Failure, Kind
from sublet.gateway.request import ChatBody, parse

USER = {"role": "user", "content": "hello"}
CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FAR = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/secret.png"}}
CHAT: dict[str, Any] = {"model": "m", "messages": [USER]}

FIELDS = st.sampled_from([*ChatBody.__struct_fields__, "prompt", "echo", "best_of", "suffix"])


def refusal(body: bytes | dict[str, Any], api: Api = Api.CHAT) -> Failure:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Failure) as refused:
        parse(api, raw)
    assert refused.value.status == 400
    json.loads(openai.CHAT.refuse(refused.value, "req_1")[1])
    return refused.value


def taken(api: Api, value: object) -> bool:
    return understood(partial(parse, api), value, dialect=openai.CHAT)


@given(st.sampled_from(Api), JSON | st.dictionaries(FIELDS, JSON))
def test_arbitrary_json_is_understood_or_refused(api: Api, value: object) -> None:
    taken(api, value)


@given(st.sampled_from(Api), st.binary())
def test_arbitrary_bytes_are_refused(api: Api, body: bytes) -> None:
    refusal(body, api)


@given(FIELDS, JSON)
def test_one_strange_field_never_breaks_the_parser(name: str, value: object) -> None:
    taken(Api.CHAT, CHAT | {name: value})


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER | {"tool_call_id": "c"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [USER | {"tool_calls": [CALLED]}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "user", "content": [FAR]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "\0"}, "stop"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
        ({"seed": 2**63}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"model": 5}, "model"),
    ],
)
def test_a_bad_value_is_refused_and_named(more: dict[str, Any], param: str) -> None:
    failure = refusal(CHAT | more)
    assert (failure.kind, failure.param) == (Kind.INVALID, param)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"store": True}, "store"),
        ({"service_tier": "scale"}, "service_tier"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"top_k": 5}, "top_k"),
        ({"messages": [USER | {"name": "joe"}]}, "messages[0].name"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ],
)
def test_what_we_do_not_honour_is_refused_by_name(more: dict[str, Any], param: str) -> None:
    failure = refusal(CHAT | more)
    assert (failure.kind, failure.param) == (Kind.UNSUPPORTED, param)


def test_what_asks_for_nothing_is_taken() -> None:
    empty = {
        "n": 1, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"},
        "logprobs": False, "store": False, "service_tier": "auto", "modalities": ["text"],
        "stop": None, "max_tokens": None, "parallel_tool_calls": True, "user": "u",
        "metadata": {"a": "b"}, "stream_options": None,
    }  # fmt: skip
    ask = parse(Api.CHAT, json.dumps(CHAT | empty).encode())
    assert ask.payload == {"messages": [USER]}
    assert (ask.max_tokens, ask.stream, ask.service_tier) == (None, False, "default")


def test_our_own_answer_may_be_sent_back_as_it_came() -> None:
    answer: dict[str, Any] = {
        "role": "assistant", "content": "hi", "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": None,
    }  # fmt: skip
    ask = parse(Api.CHAT, json.dumps(CHAT | {"messages": [USER, answer]}).encode())
    assert ask.payload["messages"] == [USER, {"role": "assistant", "content": "hi"}]


def test_text_parts_and_developer_messages_become_what_templates_know() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": parts}]
    ask = parse(Api.CHAT, json.dumps(CHAT | {"messages": messages}).encode())
    assert ask.payload["messages"] == [{"role": "system", "content": "a\nb"}]


@pytest.mark.parametrize("prompt", ["", [], ["a", "b"], [[1, 2]], [5], None])
def test_only_one_prompt_of_text_is_taken(prompt: object) -> None:
    failure = refusal({"model": "m", "prompt": prompt}, Api.COMPLETION)
    assert failure.param is not None
    assert failure.param.startswith("prompt")
    assert parse(Api.COMPLETION, b'{"model":"m","prompt":["a"]}').payload == {"prompt": "a"}


@pytest.mark.parametrize("body", [b"", b"{", b"[1", b"\xff", b"\xef\xbb\xbf{}", b"[" * 100_000])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    assert refusal(body).message


def test_every_kind_of_failure_is_in_the_table() -> None:
    assert set(TABLE) == set(Kind)
    for kind in Kind:
        failure = Failure(kind, "why")
        assert failure.status >= 400
        # A 402 without this header is retried by some SDKs, and must not be by any.
        assert (failure.status == 402) <= (failure.row.retry is not None)
