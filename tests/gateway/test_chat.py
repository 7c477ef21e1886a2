"""What customers' own SDK makes of our answers."""

from typing import Any

import pytest
from openai import BadRequestError, NotFoundError
from tests.gateway.stage import CACHED, INPUT, MODEL, OUTPUT, Stage, says


def test_a_chat_is_answered_and_charged_to_the_nano(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with stage.client(key) as client:
        reply = client.chat.completions.create(
            model=MODEL, messages=says(tokens=3, input_tokens=1), max_tokens=10
        )
    assert reply.choices[0].message.content == "tok tok tok "
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (1, 3)
    stage.paid(tenant, INPUT + 3 * OUTPUT)
    assert stage.usage(tenant)["outcome"] == "completed"
    stage.check_books()


def test_cache_read_has_its_own_price_and_is_part_of_the_prompt(stage: Stage) -> None:
    tenant, key = stage.tenant()
    messages = says(tokens=1, cache_read_tokens=2)
    messages[0]["content"] += " two more"
    with stage.client(key) as client:
        reply = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=5)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 3
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 2
    stage.paid(tenant, INPUT + 2 * CACHED + OUTPUT)


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_says_its_usage_only_to_who_asked(stage: Stage, include_usage: bool) -> None:
    tenant, key = stage.tenant()
    with (
        stage.client(key) as client,
        client.chat.completions.create(
            model=MODEL,
            messages=says(tokens=4),
            stream=True,
            stream_options={"include_usage": include_usage},
        ) as stream,
    ):
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].model_extra is not None
    assert chunks[0].model_extra["sublet"] == {"max_tokens": None, "clipped_by": None}
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "tok " * 4
    if include_usage:
        *rest, last = chunks
        assert (last.choices, all(chunk.usage is None for chunk in rest)) == ([], True)
        assert last.usage is not None
        assert last.usage.completion_tokens == 4
        assert last.model_extra is not None
        assert last.model_extra["sublet"]["charge_nanos"] == INPUT + 4 * OUTPUT
    else:
        assert all(chunk.usage is None for chunk in chunks)
        assert all("usage" not in chunk.model_fields_set for chunk in chunks)
    assert chunks[-1 - include_usage].choices[0].finish_reason == "stop"
    stage.paid(tenant, INPUT + 4 * OUTPUT)


def test_a_plain_completion_works_both_ways(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with stage.client(key) as client:
        reply = client.completions.create(model=MODEL, prompt="one two", max_tokens=2)
        assert reply.choices[0].text == "tok tok "
        assert reply.choices[0].finish_reason == "length"
    # OpenAI's own streams send `finish_reason: null` here, which its strict mode refuses.
    with stage.client(key, strict=False) as client:
        stream = client.completions.create(model=MODEL, prompt="one two", stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == "tok " * 5
    stage.paid(tenant, 4 * INPUT + 7 * OUTPUT)


def test_nothing_of_the_replica_leaks_into_an_answer(stage: Stage) -> None:
    _, key = stage.tenant()
    response = stage.post(key, messages=says(tokens=1), service_tier="auto")
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {
        "id", "object", "created", "model", "choices", "usage", "service_tier", "sublet",
    }  # fmt: skip
    assert body["id"] == "chatcmpl-" + response.headers["x-request-id"].removeprefix("req_")
    assert stage.replica_url.rpartition(":")[2] not in response.text
    assert stage.fake.key not in response.text
    assert response.headers["x-ratelimit-limit-requests"] == "600"
    # Ten come back in a second: this one may be back already.
    assert response.headers["x-ratelimit-remaining-requests"] in {"599", "600"}
    assert response.headers["x-ratelimit-remaining-tokens"].isdecimal()
    assert "server" not in response.headers


def test_the_models_are_listed_and_one_can_be_read(stage: Stage) -> None:
    _, key = stage.tenant()
    with stage.client(key) as client:
        (model,) = client.models.list().data
        assert model.id == MODEL
        assert client.models.retrieve(MODEL).id == MODEL
        with pytest.raises(NotFoundError) as refused:
            client.models.retrieve("no/such")
    assert refused.value.code == "model_not_found"


def test_sampling_parameters_reach_the_replica_as_they_were_sent(stage: Stage) -> None:
    _, key = stage.tenant()
    sampling: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["x"], "presence_penalty": 1.0,
        "frequency_penalty": -1.0, "logit_bias": {"5": -100.0},
    }  # fmt: skip
    with stage.client(key) as client:
        client.chat.completions.create(
            model=MODEL, messages=says(tokens=1), max_completion_tokens=3, n=1, store=False,
            metadata={"a": "b"}, user="me", **sampling,
        )  # fmt: skip
    sent = stage.fake.bodies[-1]
    assert {name: sent[name] for name in sampling} == sampling
    assert sent["max_tokens"] == 3
    assert not {"store", "metadata", "user", "n"} & set(sent)


def test_an_unknown_parameter_is_refused_by_name(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with stage.client(key) as client, pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(
            model=MODEL, messages=says(), extra_body={"thinking": {"budget": 1}}
        )
    assert (refused.value.param, refused.value.code) == ("thinking", "unsupported_parameter")
    assert refused.value.request_id is not None
    assert stage.usages(tenant) == []
