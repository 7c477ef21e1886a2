"""What OpenAI's SDK, reading strictly, makes of our Responses."""

import json
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseErrorEvent,
    ResponseTextDeltaEvent,
)
from tests.gateway.bodies import JSON, understood
from tests.gateway.stage import CACHED, INPUT, MODEL, OUTPUT, Stage, eventually, says

from sublet.gateway.failures import Failure, Kind
from sublet.gateway.responses import RESPONSES
from sublet.gateway.responses_body import Body, parse, parse_prompt

BODY: dict[str, Any] = {"model": "m", "input": "hello"}


def told(**script: Any) -> str:
    return str(says(**script)[0]["content"])


# ── the SDK ──────────────────────────────────────────────────────────────────────────────


def test_a_response_is_answered_and_charged_to_the_nano(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with stage.client(key) as client:
        reply = client.responses.create(
            model=MODEL, input=told(tokens=3, cache_read_tokens=1), instructions="Be kind.",
            max_output_tokens=10, metadata={"of": "mine"},
        )  # fmt: skip
    assert (reply.status, reply.output_text) == ("completed", "tok tok tok ")
    assert (reply.instructions, reply.metadata) == ("Be kind.", {"of": "mine"})
    assert reply.usage is not None
    # Three words, of which one was read from the cache: in these words it is among them.
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (3, 3)
    assert reply.usage.input_tokens_details.cached_tokens == 1
    stage.paid(tenant, 2 * INPUT + CACHED + 3 * OUTPUT)
    assert stage.usage(tenant)["request_id"] == "req_" + reply.id.removeprefix("resp_")
    stage.check_books()


def test_a_stream_has_every_event_in_its_order(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with stage.client(key) as client:
        events = list(client.responses.create(model=MODEL, input=told(tokens=2), stream=True))
        with client.responses.stream(model=MODEL, input=told(tokens=2)) as stream:
            whole = stream.get_final_response()
    assert [event.type for event in events] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", "response.output_text.delta", "response.output_text.delta",
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent))
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent)
    assert said == last.response.output_text == whole.output_text == "tok tok "
    assert last.response.usage is not None
    assert last.response.usage.total_tokens == 3
    stage.paid(tenant, 2 * (INPUT + 2 * OUTPUT))


def test_an_answer_at_its_limit_is_incomplete_and_says_why(stage: Stage) -> None:
    _, key = stage.tenant()
    with stage.client(key) as client:
        reply = client.responses.create(model=MODEL, input=told(tokens=9), max_output_tokens=2)
    assert reply.status == "incomplete"
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"


def test_a_conversation_is_sent_back_as_it_came(stage: Stage) -> None:
    _, key = stage.tenant()
    with stage.client(key) as client:
        first = client.responses.create(model=MODEL, input=told(tokens=1))
        said: list[Any] = [{"role": "user", "content": "one"}]
        said += [item.model_dump(mode="json", exclude_none=True) for item in first.output]
        said += [{"role": "user", "content": [{"type": "input_text", "text": "two three"}]}]
        assert client.responses.create(model=MODEL, input=said).status == "completed"
        counted = client.responses.input_tokens.count(model=MODEL, input=said)
    assert counted.input_tokens == 4


def test_nothing_is_kept_unless_that_is_asked_for(stage: Stage) -> None:
    _, key = stage.tenant()
    with stage.client(key) as client:
        made = client.responses.create(model=MODEL, input=told(tokens=1))
        assert made.store is False
        for call in (client.responses.retrieve, client.responses.cancel, client.responses.delete):
            with pytest.raises(openai.NotFoundError, match="store: true"):
                call(made.id)
        with pytest.raises(openai.NotFoundError, match="store: true"):
            client.responses.create(model=MODEL, input="x", previous_response_id=made.id)
    refused = httpx.put(f"{stage.url}/v1/responses/{made.id}", headers={"x-api-key": key})
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, DELETE, OPTIONS")


def test_a_stream_that_breaks_ends_with_an_error_and_costs_what_came(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with stage.client(key) as client:
        *_, last = client.responses.create(
            model=MODEL, input=told(tokens=9, cut_after=2), stream=True
        )
    assert isinstance(last, ResponseErrorEvent)
    assert (last.code, "broke off" in last.message) == ("model_failed", True)
    eventually(lambda: bool(stage.usages(tenant)))
    stage.paid(tenant, INPUT + 2 * OUTPUT)


# ── their words and ours ─────────────────────────────────────────────────────────────────


@given(
    JSON
    | st.dictionaries(st.sampled_from(Body.__struct_fields__), JSON)
    | st.dictionaries(st.sampled_from(Body.__struct_fields__), JSON).map(lambda more: BODY | more)
)
def test_arbitrary_json_is_understood_or_refused(value: object) -> None:
    for read in (parse, parse_prompt):
        understood(read, value, dialect=RESPONSES)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"text": {"format": {"type": "xml"}}}, "text"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        ({"input": "a\0b"}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_is_not_done_is_refused_by_name(more: dict[str, Any], param: str) -> None:
    with pytest.raises(Failure) as refused:
        parse(json.dumps(BODY | more).encode())
    assert refused.value.kind in {Kind.INVALID, Kind.UNSUPPORTED}
    assert (refused.value.param or "").startswith(param)


def test_instructions_and_developers_are_the_systems() -> None:
    body = BODY | {"instructions": "a", "input": [{"role": "developer", "content": "b"}]}
    assert parse(json.dumps(body).encode()).payload["messages"] == [
        {"role": "system", "content": "a"},
        {"role": "system", "content": "b"},
    ]
