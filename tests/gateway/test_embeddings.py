"""Embeddings in OpenAI's words, and by Bedrock's InvokeModel: counted and charged exactly."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.replica import CONTEXT_TOKENS
from tests.gateway.aws import signing
from tests.gateway.bodies import JSON, understood
from tests.gateway.stage import INPUT, MODEL, Stage, eventually

from sublet.gateway.embeddings import EMBEDDINGS, parse
from sublet.models import store as models
from sublet.models.deployment import Deployment


def test_a_text_is_embedded_and_its_tokens_are_charged(stage: Stage) -> None:
    tenant, key = stage.tenant()
    answer = stage.client(key).embeddings.create(
        model=MODEL, input="three words here", encoding_format="float"
    )
    (row,) = answer.data
    assert (row.index, row.embedding) == (0, [3.0, 1.0])
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)
    assert answer.model_extra == {"sublet": {"charge_nanos": 3 * INPUT}}
    stage.paid(tenant, 3 * INPUT)
    usage = stage.usage(tenant)
    assert (usage["input_tokens"], usage["output_tokens"], usage["outcome"]) == (3, 0, "completed")
    stage.check_books()


def test_many_texts_and_tokens_come_back_in_their_order(stage: Stage) -> None:
    tenant, key = stage.tenant()
    # The SDK asks for base64 by itself, and unpacks it; read strictly, it takes its own for wrong.
    client = stage.client(key, strict=False)
    for inputs, sizes in (
        (["one", "two words", "and three words"], [1, 2, 3]),
        ([5, 6, 7], [3]),
        ([[5], [6, 7]], [1, 2]),
    ):
        answer = client.embeddings.create(model=MODEL, input=inputs)
        assert [row.embedding for row in answer.data] == [[float(size), 1.0] for size in sizes]
        assert [row.index for row in answer.data] == list(range(len(sizes)))
    packed = stage.post(key, "/openai/v1/embeddings", input="a b", encoding_format="base64").json()
    floats = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    assert list(floats) == [2.0, 1.0]
    stage.paid(tenant, (6 + 3 + 3 + 2) * INPUT)


def test_a_batch_may_be_larger_than_the_context_of_one_text(stage: Stage) -> None:
    tenant, key = stage.tenant(10**11)
    inputs = [[7] * 100] * 100
    answer = stage.client(key).embeddings.create(model=MODEL, input=inputs, encoding_format="float")
    assert answer.usage.prompt_tokens == 10_000 > CONTEXT_TOKENS
    stage.paid(tenant, 10_000 * INPUT)


def test_a_small_wallet_pays_for_exactly_what_it_has(stage: Stage) -> None:
    tenant, key = stage.tenant(5 * INPUT)
    client = stage.client(key, strict=False)
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(model=MODEL, input="one two three four five six")
    assert (refused.value.status_code, refused.value.code) == (402, "payment_required")
    assert "output" not in refused.value.message
    assert client.embeddings.create(model=MODEL, input="one two three four five").data
    stage.paid(tenant, 5 * INPUT)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"dimensions": 256}, "dimensions"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [-1]}, "input[0]"),
        ({"input": ["a\0b"]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"truncate": True}, "truncate"),
    ],
)
def test_what_is_not_done_is_refused_by_name(
    stage: Stage, more: dict[str, Any], param: str
) -> None:
    tenant, key = stage.tenant()
    answer = stage.post(key, "/v1/embeddings", **{"input": "a"} | more)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param.partition("[")[0]), answer.text
    stage.paid(tenant, 0)


def test_a_model_without_embeddings_is_refused_by_name(stage: Stage) -> None:
    tenant, key = stage.tenant()
    plain = Deployment(name="plain", recipe="fake", context_tokens=CONTEXT_TOKENS, wanted=True)
    with stage.db.transaction() as tx:
        models.put_deployment(tx, plain, now=datetime.now(UTC))
        tx.execute(
            "INSERT INTO price (sku, nanos, per, currency, happened_at, recorded_at)"
            " SELECT replace(sku, %s, 'plain'), nanos, per, currency, happened_at, recorded_at"
            " FROM price WHERE sku LIKE %s",
            [MODEL, f"model:{MODEL}:%"],
        )

    def refused() -> bool:
        answer = stage.post(key, "/v1/embeddings", model="plain", input="a")
        error = answer.json()["error"]
        return answer.status_code == 400 and error["param"] == "model" and "plain" in str(error)

    eventually(refused)
    stage.paid(tenant, 0)


def test_a_replica_that_counts_nothing_is_counted_for(stage: Stage) -> None:
    tenant, key = stage.tenant()
    text = 'two words#script:{"no_usage":true}'
    answer = stage.post(key, "/v1/embeddings", input=text)
    assert answer.json()["usage"]["prompt_tokens"] == 2
    stage.paid(tenant, 2 * INPUT)
    assert stage.usage(tenant)["source"].startswith("tokeniser:")


def test_a_replica_that_leaves_a_vector_out_is_not_paid(stage: Stage) -> None:
    tenant, key = stage.tenant()
    inputs = ['#script:{"cut_after":1}', "more"]
    answer = stage.post(key, "/v1/embeddings", input=inputs)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "model_failed")
    stage.paid(tenant, 0)


def test_who_hangs_up_pays_what_was_read(stage: Stage) -> None:
    tenant, key = stage.tenant()
    with pytest.raises(openai.APITimeoutError):
        stage.client(key).with_options(timeout=0.5).embeddings.create(
            model=MODEL, input=["one two three", '#script:{"hang":true}']
        )
    stage.paid(tenant, 3 * INPUT)
    assert stage.usage(tenant)["outcome"] == "aborted"


def test_boto3_embeds_in_titan_s_and_cohere_s_words(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    access, secret = stage.access_key(tenant)
    assert access.access_key_id is not None
    with signing(stage.url, (access.access_key_id, secret)) as client:

        def invoke(**body: Any) -> tuple[dict[str, Any], dict[str, str]]:
            answer = client.invoke_model(modelId=MODEL, body=json.dumps(body))
            return json.loads(answer["body"].read()), answer["ResponseMetadata"]["HTTPHeaders"]

        titan, headers = invoke(inputText="two words", normalize=True)
        assert titan["embedding"] == titan["embeddingsByType"]["float"] == [2.0, 1.0]
        assert titan["inputTextTokenCount"] == 2
        assert headers["x-amzn-bedrock-input-token-count"] == "2"
        texts = {"texts": ["a", "b c"], "input_type": "search_query"}
        cohere, _ = invoke(**texts)
        assert cohere["embeddings"] == [[1.0, 1.0], [2.0, 1.0]]
        assert (cohere["response_type"], cohere["texts"]) == ("embeddings_floats", texts["texts"])
        typed, _ = invoke(**texts, embedding_types=["float"])
        assert typed["embeddings"] == {"float": cohere["embeddings"]}
        counted = client.count_tokens(
            modelId=MODEL,
            input={"invokeModel": {"body": json.dumps({"inputText": "two words"})}},
        )
        assert counted["inputTokens"] == 2
        for body, named in (
            ({"inputText": "a", "dimensions": 256}, "dimensions"),
            ({"inputText": "a", "normalize": False}, "normalize"),
            (texts | {"truncate": "END"}, "truncate"),
            (texts | {"embedding_types": ["int8"]}, "embedding_types"),
        ):
            with pytest.raises(client.exceptions.ValidationException, match=named):
                invoke(**body)
        with pytest.raises(client.exceptions.ValidationException, match="stream"):
            client.invoke_model_with_response_stream(modelId=MODEL, body=json.dumps(texts))
    stage.paid(tenant, (2 + 3 + 3) * INPUT)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_sent_is_taken_or_refused_in_good_form(body: bytes) -> None:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    understood(parse, value, dialect=EMBEDDINGS)


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1)
    | st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1), min_size=1),
    st.sampled_from(["float", "base64"]),
)
def test_what_is_asked_reaches_the_replica_whole(inputs: list[Any], form: str) -> None:
    body = {"model": "m", "input": inputs, "encoding_format": form}
    ask = parse(json.dumps(body).encode())
    assert ask.payload == {"input": inputs, "encoding_format": form}
    assert ask.messages == len(inputs)
    assert ask.prompt_bytes >= sum(map(len, inputs))
