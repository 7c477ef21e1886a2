"""Nothing that a client sends is dropped in silence, in any dialect.

A field that is not known is refused by its name, wherever it stands. One that is known changes what
a replica is asked, or what the answer says, or is on the list below of what is taken and needs
nothing: labels, hints, and values that ask for nothing.
"""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.gateway import (
    anthropic,
    converse,
    embeddings,
    invoke,
    request,
    responses_body,
    vectors,
)
from sublet.gateway.ask import Api, Ask
from sublet.gateway.failures import Failure, Kind

Parse = Callable[[bytes], Ask]
SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "string"}}}
FUNCTION: Final = {"name": "look", "description": "d", "parameters": SCHEMA, "strict": True}
IMAGE: Final = "data:image/png;base64,AAAA"


def chat(body: bytes) -> Ask:
    return request.parse(Api.CHAT, body)


def completion(body: bytes) -> Ask:
    return request.parse(Api.COMPLETION, body)


def said_by_aws(body: bytes) -> Ask:
    return converse.parse(body, model="m", stream=False)


def invoked(body: bytes) -> Ask:
    return invoke.dialect("m", stream=False).parse(body)


CHAT: Final[dict[str, Any]] = {
    "model": "m", "max_tokens": 5, "temperature": 0.5, "top_p": 0.5, "presence_penalty": 1,
    "frequency_penalty": 1, "logit_bias": {"7": 1}, "seed": 3, "stop": ["x"], "stream": True,
    "stream_options": {"include_usage": True}, "service_tier": "flex", "logprobs": True,
    "top_logprobs": 2, "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "look"}},
    "parallel_tool_calls": False, "user": "u", "metadata": {"a": "b"}, "safety_identifier": "s",
    "prompt_cache_key": "k", "n": 1, "store": False, "modalities": ["text"],
    "max_completion_tokens": 5,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "messages": [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [
            {"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": IMAGE}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "c", "content": "d"},
    ],
}  # fmt: skip
COMPLETION: Final[dict[str, Any]] = {
    "model": "m", "prompt": "p", "max_tokens": 5, "temperature": 0.5, "top_p": 0.5, "seed": 3,
    "presence_penalty": 1, "frequency_penalty": 1, "logit_bias": {"7": 1}, "stop": "x",
    "stream": True, "stream_options": {"include_usage": True}, "service_tier": "flex", "user": "u",
    "n": 1, "best_of": 1, "echo": False, "metadata": {}, "safety_identifier": "s",
    "prompt_cache_key": "k",
}  # fmt: skip
RESPONSES: Final[dict[str, Any]] = {
    "model": "m", "instructions": "i", "max_output_tokens": 5, "temperature": 0.5, "top_p": 0.5,
    "stream": True, "stream_options": {"include_obfuscation": False}, "service_tier": "flex",
    "store": True, "background": False, "previous_response_id": "resp_1", "include": [],
    "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k",
    "truncation": "disabled", "top_logprobs": 0, "parallel_tool_calls": False,
    "reasoning": {"effort": "none"}, "tool_choice": {"type": "function", "name": "look"},
    "tools": [{"type": "function"} | FUNCTION],
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    "input": [
        {"role": "user", "content": [
            {"type": "input_text", "text": "b"}, {"type": "input_image", "image_url": IMAGE},
        ]},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "d"},
    ],
}  # fmt: skip
MESSAGES: Final[dict[str, Any]] = {
    "model": "m", "max_tokens": 5, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "stream": True,
    "stop_sequences": ["x"], "metadata": {"user_id": "u"}, "service_tier": "auto",
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "thinking": {"type": "disabled"}, "cache_control": {"type": "ephemeral"},
    "tools": [{"name": "look", "input_schema": SCHEMA, "description": "d"}],
    "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "c", "name": "look", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "d"}]},
        ]},
    ],
}  # fmt: skip
CONVERSE: Final[dict[str, Any]] = {
    "system": [{"text": "s"}, {"cachePoint": {"type": "default"}}],
    "inferenceConfig": {"maxTokens": 5, "temperature": 0.5, "topP": 0.5, "stopSequences": ["x"]},
    "additionalModelRequestFields": {"top_k": 3, "min_p": 0.1, "seed": 4},
    "toolConfig": {
        "tools": [{"toolSpec": {
            "name": "look", "description": "d", "inputSchema": {"json": SCHEMA},
        }}],
        "toolChoice": {"tool": {"name": "look"}},
    },
    "serviceTier": {"type": "flex"}, "performanceConfig": {"latency": "standard"},
    "requestMetadata": {"a": "b"},
    "messages": [
        {"role": "user", "content": [
            {"text": "b"}, {"image": {"format": "png", "source": {"bytes": "AAAA"}}},
        ]},
        {"role": "assistant", "content": [
            {"toolUse": {"toolUseId": "c", "name": "look", "input": {}}},
        ]},
        {"role": "user", "content": [
            {"toolResult": {"toolUseId": "c", "content": [{"text": "d"}], "status": "success"}},
        ]},
    ],
}  # fmt: skip
EMBEDDINGS: Final[dict[str, Any]] = {
    "model": "m", "input": ["a"], "encoding_format": "base64", "user": "u",
}  # fmt: skip
LLAMA: Final[dict[str, Any]] = {
    "prompt": "p", "max_gen_len": 5, "temperature": 0.5, "top_p": 0.5, "images": [],
}  # fmt: skip
TITAN: Final[dict[str, Any]] = {"inputText": "a", "normalize": True, "embeddingTypes": ["float"]}
COHERE: Final[dict[str, Any]] = {
    "texts": ["a"], "input_type": "clustering", "embedding_types": ["float"], "truncate": "NONE",
}  # fmt: skip
_MAKERS = {name: value for name, value in MESSAGES.items() if name not in {"model", "stream"}}
DIALECTS: Final[dict[str, tuple[Parse, dict[str, Any]]]] = {
    "chat": (chat, CHAT),
    "completion": (completion, COMPLETION),
    "responses": (responses_body.parse, RESPONSES),
    "messages": (anthropic.parse, MESSAGES),
    "converse": (said_by_aws, CONVERSE),
    "embeddings": (embeddings.parse, EMBEDDINGS),
    "invoke chat": (invoked, {k: v for k, v in CHAT.items() if "stream" not in k}),
    "invoke messages": (invoked, _MAKERS | {"anthropic_version": "bedrock-2023-05-31"}),
    "invoke llama": (invoked, LLAMA),
    "invoke titan": (invoked, TITAN),
    "invoke cohere": (invoked, COHERE),
}
# What is the caller's own, and may have any names.
FREE: Final = {"parameters", "schema", "input_schema", "metadata", "logit_bias", "requestMetadata"}
# Taken, and nothing is asked of a replica by it: labels, hints, and what asks for nothing.
NEEDS_NOTHING: Final = {
    "chat": {
        "user", "metadata", "safety_identifier", "prompt_cache_key", "n", "store", "modalities",
        "max_completion_tokens", "max_tokens",  # the one says what the other does
    },
    "completion": {
        "user", "metadata", "safety_identifier", "prompt_cache_key", "n", "best_of", "echo",
    },
    "responses": {
        "stream_options", "background", "include", "truncation", "top_logprobs", "reasoning",
    },
    "messages": {"metadata", "service_tier", "thinking", "cache_control"},
    "converse": {"performanceConfig", "requestMetadata"},
    "embeddings": {"user"},
    "invoke chat": {
        "user", "metadata", "safety_identifier", "prompt_cache_key", "n", "store", "modalities",
        "max_completion_tokens", "max_tokens", "model",  # the path names it
    },
    "invoke messages": {"metadata", "service_tier", "thinking", "cache_control"},
    "invoke llama": {"images"},
    "invoke titan": {"normalize", "embeddingTypes"},
    "invoke cohere": {"truncate", "embedding_types"},  # the latter is how the answer is written
}  # fmt: skip


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield where an object of the dialect's own stands."""
    if isinstance(value, dict):
        if path and (path[-1] in FREE or (path[-1] in {"json", "input"} and path[0] != "input")):
            return
        yield path
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


EVERYWHERE: Final = [(name, path) for name, (_, body) in DIALECTS.items() for path in places(body)]


@pytest.mark.parametrize("name", DIALECTS)
def test_these_bodies_are_taken(name: str) -> None:
    parse, body = DIALECTS[name]
    assert parse(json.dumps(body).encode()).messages >= 1


@given(st.sampled_from(EVERYWHERE), st.from_regex(r"[a-z][A-Za-z0-9_]{5,20}", fullmatch=True))
def test_a_field_that_is_not_known_is_refused_by_name(
    place: tuple[str, tuple[str | int, ...]], field: str
) -> None:
    name, path = place
    parse, body = DIALECTS[name]
    body = copy.deepcopy(body)
    inner: Any = body
    for step in path:
        inner = inner[step]
    unknown = f"zz_{field}"
    inner[unknown] = 1
    with pytest.raises(Failure) as refused:
        parse(json.dumps(body).encode())
    assert refused.value.kind in {Kind.UNSUPPORTED, Kind.INVALID}
    assert unknown in refused.value.message
    assert unknown in (refused.value.param or "")


@pytest.mark.parametrize("name", DIALECTS)
def test_a_field_that_is_known_does_something_or_is_listed(name: str) -> None:
    parse, body = DIALECTS[name]
    whole = _without_ids(parse(json.dumps(body).encode()))
    needs_nothing = set()
    for field in body:
        less = {key: value for key, value in body.items() if key != field}
        if field == "stream":
            less.pop("stream_options", None)
        try:
            if _without_ids(parse(json.dumps(less).encode())) == whole:
                needs_nothing.add(field)
        except Failure:
            continue  # another needs it, or all do
    assert needs_nothing == NEEDS_NOTHING[name] & set(body)


def _without_ids(ask: Ask) -> object:
    """Two that ask the same are the same, but for the ids that we give to items."""
    keep = ask.keep and ask.keep._replace(items=[])
    fields = {name: getattr(ask, name) for name in Ask.__slots__}
    return fields | {"keep": keep}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (request.ChatBody, "chat"),
        (request.CompletionBody, "completion"),
        (responses_body.Body, "responses"),
        (anthropic.Body, "messages"),
        (converse.Body, "converse"),
        (embeddings.Body, "embeddings"),
        (invoke.Llama, "invoke llama"),
        (vectors.Titan, "invoke titan"),
        (vectors.Cohere, "invoke cohere"),
    ],
)
def test_every_field_of_a_dialect_is_looked_at_here(kind: Any, name: str) -> None:
    """What is not in the bodies above can only be null or empty."""
    _, body = DIALECTS[name]
    never = {
        "conversation", "max_tool_calls", "prompt", "dimensions", "suffix", "logprobs", "images",
        "output_dimension", "guardrailConfig", "promptVariables", "outputConfig",
        "additionalModelResponseFieldPaths",
    }  # fmt: skip
    assert set(kind.__struct_encode_fields__) - set(body) <= never
