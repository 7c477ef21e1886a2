"""Tools, JSON, logprobs and images: handed on where the model does them, refused by name elsewhere.

The seven cases of OpenResponses' compliance test are at the end.
"""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import httpx
import pytest
from anthropic import Anthropic
from openai.types.responses import Response
from tests.fakes.replica import Script
from tests.gateway.aws import signing
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage, eventually

from sublet.core.ids import new_id
from sublet.core.money import Rate
from sublet.market import store as market
from sublet.market.price import input_sku, output_sku
from sublet.models import store as models
from sublet.models.deployment import Deployment, Replica, ReplicaState

PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
ARGUMENTS: Final = {"location": "San Francisco, CA"}
PARAMETERS: Final = {
    "type": "object",
    "properties": {"location": {"type": "string", "description": "Such as San Francisco, CA"}},
    "required": ["location"],
}
ABOUT: Final = "The weather at a place, now"
FUNCTION: Final = {"name": "get_weather", "description": ABOUT, "parameters": PARAMETERS}
PLAIN: Final = "plain"  # a model that does text alone


@pytest.fixture
def caller(stage: Stage) -> Iterator[None]:
    """The replica calls a tool, whatever it is asked."""
    before = stage.fake.script
    call = {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)}
    stage.fake.script = Script(calls=[call, call | {"arguments": "{}"}])
    yield
    stage.fake.script = before


def ask(stage: Stage, path: str, **body: Any) -> httpx.Response:
    _, key = stage.tenant()
    return stage.post(key, path, **body)


# ── tools ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("caller")
@pytest.mark.parametrize("streamed", [False, True])
def test_openais_sdk_calls_tools(stage: Stage, streamed: bool) -> None:
    tenant, key = stage.tenant()
    question: list[Any] = [{"role": "user", "content": "How is the weather?"}]
    tools: list[Any] = [{"type": "function", "function": FUNCTION}]
    with stage.client(key) as client:
        if streamed:
            with client.chat.completions.stream(
                model=MODEL, messages=question, tools=tools, tool_choice="required"
            ) as stream:
                choice = stream.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(
                model=MODEL, messages=question, tools=tools, tool_choice="required"
            ).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None or choice.message.content == ""
        called = choice.message.tool_calls or []
        assert [call.id for call in called] == ["call_0x", "call_1x"]
        assert called[0].type == "function"
        assert json.loads(called[0].function.arguments) == ARGUMENTS
        assert called[1].function.arguments == "{}"
        sent = stage.fake.bodies[-1]
        assert (sent["tools"], sent["tool_choice"]) == (tools, "required")
        stage.paid(tenant, 4 * INPUT + 2 * OUTPUT)
        # The answer goes back as it came, with what the tools said.
        answer = choice.message.model_dump(exclude={"parsed"})
        for call in answer["tool_calls"]:
            call["function"].pop("parsed_arguments", None)
            call.pop("index", None)  # which the SDK leaves in what it gathered
        results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in called]
        turns: list[Any] = [*question, answer, *results]
        client.chat.completions.create(model=MODEL, messages=turns, tools=tools)
    assert stage.fake.bodies[-1]["messages"][2] == results[0]


@pytest.mark.usefixtures("caller")
@pytest.mark.parametrize("streamed", [False, True])
def test_anthropics_sdk_calls_tools(stage: Stage, streamed: bool) -> None:
    _, key = stage.tenant()
    tools: list[Any] = [
        {"name": "get_weather", "description": ABOUT, "input_schema": PARAMETERS,
         "cache_control": {"type": "ephemeral"}}
    ]  # fmt: skip
    turns: list[Any] = [{"role": "user", "content": "How is the weather?"}]
    asked: dict[str, Any] = {
        "model": MODEL, "max_tokens": 50, "tools": tools, "messages": turns,
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }  # fmt: skip
    with Anthropic(
        api_key=key, base_url=stage.url, max_retries=0, _strict_response_validation=True
    ) as client:
        if streamed:
            with client.messages.stream(**asked) as stream:
                message = stream.get_final_message()
        else:
            message = client.messages.create(**asked)
        assert message.stop_reason == "tool_use"
        uses = [block for block in message.content if block.type == "tool_use"]
        assert [(use.id, use.name) for use in uses] == [
            ("call_0x", "get_weather"), ("call_1x", "get_weather"),
        ]  # fmt: skip
        assert [use.input for use in uses] == [ARGUMENTS, {}]
        sent = stage.fake.bodies[-1]
        assert sent["tools"] == [{"type": "function", "function": FUNCTION}]
        assert (sent["tool_choice"], sent["parallel_tool_calls"]) == ("required", False)
        results = [
            {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"} for use in uses
        ]
        answer = {"role": "assistant", "content": [b.model_dump() for b in uses]}
        turns += [answer, {"role": "user", "content": [*results, {"type": "text", "text": "?"}]}]
        for block in answer["content"]:
            for extra in set(block) - {"type", "id", "name", "input"}:
                del block[extra]
        client.messages.create(**asked)
    roles = [turn["role"] for turn in stage.fake.bodies[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "tool", "user"]


def test_what_a_model_does_not_do_is_refused_by_name(stage: Stage) -> None:
    now = datetime.now(UTC)
    with stage.db.transaction() as tx:
        models.put_deployment(
            tx, Deployment(name=PLAIN, recipe="fake", context_tokens=4096, wanted=True), now=now
        )
        for sku in (input_sku(PLAIN), output_sku(PLAIN)):
            market.set_price(tx, sku, Rate(nanos=1, per=1), now=now)
        replica = Replica(
            id=new_id(), deployment=PLAIN, url=stage.replica_url, secret=stage.fake.key,
            state=ReplicaState.READY, detail=None, since=now,
        )  # fmt: skip
        models.add_replica(tx, replica)
    turn = {"role": "user", "content": "hello"}
    eventually(
        lambda: ask(stage, "/v1/chat/completions", model=PLAIN, messages=[turn]).status_code == 200
    )
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    for more, param in (
        ({"tools": [{"type": "function", "function": FUNCTION}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": [{"role": "user", "content": [image]}]}, "messages"),
    ):
        body: dict[str, Any] = {"messages": [turn]} | more
        refused = ask(stage, "/v1/chat/completions", model=PLAIN, **body)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", param)
        assert "'plain' does not do this" in error["message"]
    _, key = stage.tenant()
    listed = httpx.get(f"{stage.url}/v1/models/{MODEL}", headers={"x-api-key": key}).json()
    assert listed["sublet"]["features"] == [
        "embeddings", "images", "json", "logprobs", "tools",
    ]  # fmt: skip


def test_a_schema_goes_to_the_replica_in_every_dialect_that_has_one(stage: Stage) -> None:
    schema = {"name": "place", "schema": PARAMETERS, "strict": True}
    turn = {"role": "user", "content": "hello"}
    wanted = {"type": "json_schema", "json_schema": schema}
    answer = ask(stage, "/v1/chat/completions", messages=[turn], response_format=wanted)
    assert answer.status_code == 200, answer.text
    assert stage.fake.bodies[-1]["response_format"] == wanted
    answer = ask(
        stage, "/v1/responses", input="hello", text={"format": {"type": "json_schema"} | schema}
    )
    assert answer.status_code == 200, answer.text
    assert stage.fake.bodies[-1]["response_format"] == wanted
    assert answer.json()["text"]["format"]["name"] == "place"


@pytest.mark.parametrize("streamed", [False, True])
def test_logprobs_are_handed_on(stage: Stage, streamed: bool) -> None:
    _, key = stage.tenant()
    turns: list[Any] = [{"role": "user", "content": '#script:{"tokens":2,"logprobs":true}'}]
    with stage.client(key) as client:
        if streamed:
            with client.chat.completions.stream(
                model=MODEL, messages=turns, logprobs=True, top_logprobs=2
            ) as stream:
                choice: Any = stream.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(
                model=MODEL, messages=turns, logprobs=True, top_logprobs=2
            ).choices[0]
    assert [one.token for one in choice.logprobs.content] == ["tok ", "tok "]
    assert stage.fake.bodies[-1]["top_logprobs"] == 2


def test_images_go_on_as_they_came_and_no_address_does(stage: Stage) -> None:
    data = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    content = [{"type": "image", "source": data}, {"type": "text", "text": "What is it?"}]
    asked = {"max_tokens": 5, "messages": [{"role": "user", "content": content}]}
    assert ask(stage, "/v1/messages", **asked).status_code == 200
    parts = stage.fake.bodies[-1]["messages"][0]["content"]
    assert parts[0]["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
    content[0] = {"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/"}}
    assert ask(stage, "/v1/messages", **asked).status_code == 400


# ── OpenResponses ────────────────────────────────────────────────────────────────────────

TOOLS: Final = [{"type": "function", **FUNCTION}]


def message(role: str, content: object) -> dict[str, object]:
    return {"type": "message", "role": role, "content": content}


WEATHER: Final = {
    "input": [message("user", "What's the weather like in San Francisco?")], "tools": TOOLS,
}  # fmt: skip
SEVEN: Final[dict[str, dict[str, Any]]] = {
    "basic-response": {"input": [message("user", "Say hello in exactly 3 words.")]},
    "streaming-response": {"input": [message("user", "Count from 1 to 5.")], "stream": True},
    "system-prompt": {
        "input": [message("system", "You are a pirate."), message("user", "Say hello.")]
    },
    "tool-calling": WEATHER,
    "tool-calling-streaming": WEATHER | {"stream": True},
    "image-input": {
        "input": [
            message("user", [
                {"type": "input_text", "text": "What do you see in this image?"},
                {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"},
            ])
        ]
    },
    "multi-turn": {
        "input": [
            message("user", "My name is Alice."),
            message("assistant", "Hello Alice! Nice to meet you."),
            message("user", "What is my name?"),
        ]
    },
}  # fmt: skip
# What their schema of a response requires, and of which kinds each may be.
NULL: Final = type(None)
REQUIRED: Final[dict[str, tuple[type, ...]]] = {
    "id": (str,), "object": (str,), "created_at": (int,), "completed_at": (int, NULL),
    "status": (str,), "incomplete_details": (dict, NULL), "model": (str,),
    "previous_response_id": (str, NULL), "instructions": (str, NULL), "output": (list,),
    "error": (dict, NULL), "tools": (list,), "tool_choice": (str, dict), "truncation": (str,),
    "parallel_tool_calls": (bool,), "text": (dict,), "top_p": (int, float),
    "presence_penalty": (int, float), "frequency_penalty": (int, float), "top_logprobs": (int,),
    "temperature": (int, float), "reasoning": (dict, NULL), "usage": (dict, NULL),
    "max_output_tokens": (int, NULL), "max_tool_calls": (int, NULL), "store": (bool,),
    "background": (bool,), "service_tier": (str,), "metadata": (dict,),
    "safety_identifier": (str, NULL), "prompt_cache_key": (str, NULL),
}  # fmt: skip


@pytest.mark.parametrize("case", SEVEN)
def test_openresponses(stage: Stage, case: str, request: pytest.FixtureRequest) -> None:
    asked = SEVEN[case]
    if "tools" in asked:
        request.getfixturevalue("caller")
    answer = ask(stage, "/v1/responses", **asked)
    assert answer.status_code == 200, answer.text
    events: list[dict[str, Any]] = []
    if asked.get("stream"):
        events = [
            json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")
        ]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        response = events[-1]["response"]
    else:
        response = answer.json()
    for name, kinds in REQUIRED.items():
        assert name in response, f"{name} is missing"
        assert isinstance(response[name], kinds), (name, response[name])
    Response.model_validate(response, strict=True)
    assert response["status"] == "completed"
    assert response["output"]
    if "tools" in asked:
        called = [item for item in response["output"] if item["type"] == "function_call"]
        assert json.loads(called[0]["arguments"]) == ARGUMENTS
        assert {tool["name"] for tool in response["tools"]} == {"get_weather"}
    if case == "tool-calling-streaming":
        of_calls = [
            (event["type"], event.get("output_index"))
            for event in events
            if event.get("item", {}).get("type") == "function_call" or "arguments" in event["type"]
        ]
        kinds_of_first = [kind for kind, index in of_calls if index == 0]
        assert kinds_of_first == [
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
        ]


def test_seven_cases_are_seven() -> None:
    assert len(SEVEN) == 7


def test_a_call_and_its_result_go_back_in_responses(stage: Stage) -> None:
    call = {
        "type": "function_call", "id": "fc_1", "call_id": "c1", "name": "get_weather",
        "arguments": "{}", "status": "completed",
    }  # fmt: skip
    result = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
    turns = [message("user", "And?"), call, result]
    assert ask(stage, "/v1/responses", input=turns, tools=TOOLS).status_code == 200
    sent = stage.fake.bodies[-1]["messages"]
    assert [turn["role"] for turn in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == "c1"


def test_after_tools_the_books_are_right(stage: Stage) -> None:
    stage.check_books()


# ── in Bedrock's words ───────────────────────────────────────────────────────────────────

SPEC: Final = {
    "toolSpec": {
        "name": "get_weather", "description": ABOUT, "inputSchema": {"json": PARAMETERS},
    }
}  # fmt: skip
WEATHER: Final = {"role": "user", "content": [{"text": "How is the weather?"}]}


@pytest.mark.usefixtures("caller")
def test_boto3_calls_tools_and_gives_their_results(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    config: dict[str, Any] = {"tools": [SPEC], "toolChoice": {"any": {}}}
    with signing(stage.url, (str(made.access_key_id), secret), attempts=8) as client:
        reply = client.converse(modelId=MODEL, messages=[WEATHER], toolConfig=config)
        streamed = client.converse_stream(modelId=MODEL, messages=[WEATHER], toolConfig=config)
        events = list(streamed["stream"])
        said = reply["output"]["message"]
        first = said["content"][0]["toolUse"]
        result = {"toolUseId": first["toolUseId"], "content": [{"json": {"degrees": 18}}]}
        answer = {"role": "user", "content": [{"toolResult": result}, {"text": "And now?"}]}
        client.converse(modelId=MODEL, messages=[WEATHER, said, answer], toolConfig=config)
    assert [block["toolUse"]["input"] for block in said["content"]] == [ARGUMENTS, {}]
    assert reply["stopReason"] == "tool_use"
    asked = stage.fake.bodies[-3]
    assert asked["tools"] == [{"type": "function", "function": FUNCTION}]
    assert asked["tool_choice"] == "required"
    turns = stage.fake.bodies[-1]["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "user"]
    assert turns[1]["tool_calls"][0]["id"] == turns[2]["tool_call_id"]
    assert json.loads(turns[2]["content"]) == {"degrees": 18}
    starts = [e["contentBlockStart"] for e in events if "contentBlockStart" in e]
    assert [start["start"]["toolUse"]["name"] for start in starts] == ["get_weather"] * 2
    assert [start["contentBlockIndex"] for start in starts] == [0, 1]
    told: dict[int, str] = {}
    for event in events:
        if "contentBlockDelta" in event:
            delta = event["contentBlockDelta"]
            index = delta["contentBlockIndex"]
            told[index] = told.get(index, "") + delta["delta"]["toolUse"]["input"]
    assert [json.loads(text) for text in told.values()] == [ARGUMENTS, {}]
    assert {"messageStop": {"stopReason": "tool_use"}} in events


@pytest.mark.usefixtures("caller")
def test_an_invocation_in_anthropics_words_calls_tools(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    tool = {"name": "get_weather", "description": ABOUT, "input_schema": PARAMETERS}
    body = json.dumps(
        {
            "anthropic_version": "bedrock-2023-05-31", "max_tokens": 50, "tools": [tool],
            "messages": [{"role": "user", "content": "How is the weather?"}],
        }
    )  # fmt: skip
    with signing(stage.url, (str(made.access_key_id), secret)) as client:
        reply = client.invoke_model(modelId=MODEL, body=body)
        whole = json.loads(reply["body"].read())
        streamed = client.invoke_model_with_response_stream(modelId=MODEL, body=body)
        chunks = [json.loads(event["chunk"]["bytes"]) for event in streamed["body"]]
    assert [block["input"] for block in whole["content"]] == [ARGUMENTS, {}]
    pieces = [
        c["delta"].get("partial_json", "") for c in chunks if c["type"] == "content_block_delta"
    ]
    assert json.loads("".join(pieces).removesuffix("{}")) == ARGUMENTS
    assert chunks[-1]["type"] == "message_stop"


def test_images_are_handed_on_from_converse(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    image = {"image": {"format": "png", "source": {"bytes": base64.b64decode(PIXEL)}}}
    turn = {"role": "user", "content": [{"text": "What is this?"}, image]}
    with signing(stage.url, (str(made.access_key_id), secret)) as client:
        client.converse(modelId=MODEL, messages=[turn])
    (asked,) = stage.fake.bodies[-1]["messages"]
    assert asked["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
