"""What boto3 makes of our answers in Bedrock's words."""

import itertools
import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import boto3
import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse, HeadersDict
from botocore.credentials import Credentials
from botocore.eventstream import EventStreamBuffer, EventStreamMessage
from botocore.exceptions import ClientError, EventStreamError
from botocore.parsers import create_parser
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.aws import REGION, signing
from tests.gateway.stage import CACHED, INPUT, MODEL, OUTPUT, Stage, _healthy, eventually, says

from sublet.core.vault import Vault
from sublet.gateway.bedrock import Verb, break_off, refuse
from sublet.gateway.failures import TABLE, Failure, Kind
from sublet.tenants import store as tenants


def frames(data: bytes) -> list[EventStreamMessage]:
    """Return the frames of a stream, as boto3's reader sees them."""
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    return list(buffer)


def turns(**script: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": says(**script)[0]["content"]}]}]


def test_a_signed_converse_is_answered_and_charged_to_the_nano(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    with signing(stage.url, (str(made.access_key_id), secret)) as client:
        reply = client.converse(
            modelId=MODEL,
            messages=turns(tokens=3, cache_read_tokens=1),
            system=[{"text": "Be kind."}, {"cachePoint": {"type": "default"}}],
            inferenceConfig={"maxTokens": 10, "temperature": 0.5},
            requestMetadata={"team": "blue"},
            serviceTier={"type": "default"},
        )
    assert reply["output"]["message"] == {
        "role": "assistant",
        "content": [{"text": "tok tok tok "}],
    }
    assert reply["stopReason"] == "end_turn"
    assert reply["usage"] == {
        "inputTokens": 2, "cacheReadInputTokens": 1, "cacheWriteInputTokens": 0,
        "outputTokens": 3, "totalTokens": 6,
    }  # fmt: skip
    assert reply["metrics"]["latencyMs"] >= 0
    assert reply["serviceTier"] == {"type": "default"}
    assert reply["ResponseMetadata"]["RequestId"].startswith("req_")
    stage.paid(tenant, 2 * INPUT + CACHED + 3 * OUTPUT)
    assert stage.usage(tenant)["api_key_id"] == made.id
    stage.check_books()


def test_a_converse_stream_has_every_event_in_its_order(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    with signing(stage.url, (str(made.access_key_id), secret)) as client:
        reply = client.converse_stream(
            modelId=MODEL, messages=turns(tokens=9), inferenceConfig={"maxTokens": 3}
        )
        events = list(reply["stream"])
    assert [next(iter(event)) for event in events] == [
        "messageStart", *["contentBlockDelta"] * 3, "contentBlockStop", "messageStop", "metadata",
    ]  # fmt: skip
    text = "".join(
        event["contentBlockDelta"]["delta"]["text"]
        for event in events
        if "contentBlockDelta" in event
    )
    assert text == "tok tok tok "
    assert events[-2]["messageStop"] == {"stopReason": "max_tokens"}
    assert events[-1]["metadata"]["usage"]["outputTokens"] == 3
    stage.paid(tenant, INPUT + 3 * OUTPUT)


def test_a_wrong_secret_is_refused_with_aws_s_code(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    made, _ = stage.access_key(tenant)
    with (
        signing(stage.url, (str(made.access_key_id), "x" * 40)) as client,
        pytest.raises(ClientError) as refused,
    ):
        client.converse(modelId=MODEL, messages=turns())
    assert refused.value.response["Error"]["Code"] == "InvalidSignatureException"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


# ── refusals ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["standard", "legacy", "adaptive"])
def test_boto3_repeats_what_waiting_helps_against_and_nothing_else(mode: str) -> None:
    """By boto3's own rules, on our answers as it reads them."""
    with signing("http://127.0.0.1:9", ("i", "s"), attempts=5, mode=mode) as client:
        operation = client.meta.service_model.operation_model("Converse")
        for kind, row in TABLE.items():
            status, body, headers = refuse(Failure(kind, "why"), "req_1")
            told = {name.decode(): value.decode() for name, value in headers}
            parsed = create_parser("rest-json").parse(
                {"status_code": status, "headers": HeadersDict(told), "body": body},
                operation.output_shape,
            )
            assert parsed["Error"]["Message"] == "why"
            answers = client.meta.events.emit(
                "needs-retry.bedrock-runtime.Converse",
                response=(AWSResponse("http://h/", status, told, None), parsed),
                endpoint=None,
                operation=operation,
                attempts=1,
                caught_exception=None,
                request_dict={"context": {"retries": {}}},
            )
            waits = row.retry if row.retry is not None else row.status >= 500
            if kind is Kind.TOO_SLOW:  # boto3's older rules do not repeat it, the newer do
                waits = mode != "legacy"
            assert any(answer is not None for _, answer in answers) == waits, kind


def test_every_kind_of_refusal_has_its_exception_and_none_in_a_stream_is_unknown() -> None:
    runtime = boto3.Session(region_name=REGION).client("bedrock-runtime").meta.service_model
    known = {shape.name for shape in runtime.error_shapes}
    streamed = set(runtime.shape_for("ConverseStreamOutput").members)
    for kind in Kind:
        status, _, headers = refuse(Failure(kind, "why"), "req_1")
        name = dict(headers)[b"x-amzn-errortype"].decode()
        if name in known:
            shape = runtime.shape_for(name)
            assert status in {shape.metadata["error"]["httpStatusCode"], 413, 415}
        else:
            assert name in {
                "UnrecognizedClientException", "UnknownOperationException",
                "RequestTimeoutException",
            }  # fmt: skip
        (frame,) = frames(break_off(Failure(kind, "why"), "req_1"))
        assert frame.headers[":exception-type"] in streamed
        assert json.loads(frame.payload)["message"] == "why"


@pytest.mark.parametrize(
    "scripted", [{"cut_after": 2}, {"garbage_after": 2}, {"reclaim_after": 2}], ids=str
)
def test_a_stream_that_breaks_ends_with_an_exception_and_a_bill(
    stage: Stage, scripted: dict[str, int]
) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    with signing(stage.url, (str(made.access_key_id), secret)) as client:
        reply = client.converse_stream(modelId=MODEL, messages=turns(tokens=9, **scripted))
        with pytest.raises(EventStreamError) as broken, closing(reply["stream"]) as stream:
            list(stream)
    name = broken.value.response["Error"]["Code"]
    reclaimed = "reclaim_after" in scripted
    assert name == ("serviceUnavailableException" if reclaimed else "modelStreamErrorException")
    stage.paid(tenant, INPUT + 2 * OUTPUT)


def test_who_hangs_up_pays_what_was_generated(stage: Stage) -> None:
    tenant, key = stage.tenant()
    before = stage.generated()
    with httpx.stream(
        "POST",
        f"{stage.url}/model/{MODEL}/converse-stream",
        json={"messages": turns(tokens=500, delay_ms=20)},
        headers={"authorization": f"Bearer {key}"},
    ) as answer:
        assert answer.headers["content-type"] == "application/vnd.amazon.eventstream"
        for _, _bytes in zip(range(3), answer.iter_bytes(), strict=False):
            pass
    usage = stage.usage(tenant)
    assert usage["outcome"] == "aborted"
    assert usage["output_tokens"] == stage.generated() - before
    stage.paid(tenant, INPUT + usage["output_tokens"] * OUTPUT)


@pytest.mark.parametrize("words", ["anthropic", "openai", "llama"])
def test_an_invocation_answers_in_the_words_of_its_body(stage: Stage, words: str) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    script = says(tokens=3, cache_read_tokens=1)
    body = {
        "anthropic": {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9},
        "openai": {"max_completion_tokens": 9},
        "llama": {"prompt": "one two " + script[0]["content"], "max_gen_len": 9},
    }[words]
    if words != "llama":
        body |= {"messages": [{"role": "user", "content": "one two " + script[0]["content"]}]}
    with signing(stage.url, (str(made.access_key_id), secret)) as client:
        reply = client.invoke_model(modelId=f"us.{MODEL}-v1:0", body=json.dumps(body))
        whole = json.loads(reply["body"].read())
        headers = reply["ResponseMetadata"]["HTTPHeaders"]
        streamed = client.invoke_model_with_response_stream(
            modelId=f"arn:aws:bedrock:us-east-1::foundation-model/{MODEL}",
            body=json.dumps(body),
            trace="DISABLED",
        )
        chunks = [json.loads(event["chunk"]["bytes"]) for event in streamed["body"]]
    assert reply["contentType"] == streamed["contentType"] == "application/json"
    assert headers["x-amzn-bedrock-input-token-count"] == "3"
    assert headers["x-amzn-bedrock-output-token-count"] == "3"
    assert chunks[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] == 3
    said = "tok tok tok "
    match words:
        case "anthropic":
            assert whole["content"][0]["text"] == said
            assert whole["usage"]["input_tokens"] == 2
            told = [chunk.get("delta", {}).get("text", "") for chunk in chunks]
        case "openai":
            assert whole["choices"][0]["message"]["content"] == said
            assert whole["usage"]["prompt_tokens"] == 3
            told = [c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]]
        case _:
            assert whole["generation"] == said
            assert (whole["prompt_token_count"], whole["stop_reason"]) == (3, "stop")
            told = [chunk["generation"] for chunk in chunks]
    assert "".join(told) == said
    stage.paid(tenant, 2 * (2 * INPUT + CACHED + 3 * OUTPUT))


def test_tokens_are_counted_for_nothing(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    messages = [{"role": "user", "content": [{"text": "one two three"}]}]
    with signing(stage.url, (str(made.access_key_id), secret)) as client:
        reply = client.count_tokens(modelId=MODEL, input={"converse": {"messages": messages}})
        inner = {"messages": [{"role": "user", "content": "one two three"}]}
        also = client.count_tokens(
            modelId=MODEL, input={"invokeModel": {"body": json.dumps(inner).encode()}}
        )
    assert reply["inputTokens"] == also["inputTokens"] == 3
    stage.paid(tenant, 0)


def test_what_is_sold_is_listed_as_foundation_models_and_profiles(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    with signing(stage.url, (str(made.access_key_id), secret), service="bedrock") as client:
        (model,) = client.list_foundation_models(byOutputModality="TEXT")["modelSummaries"]
        assert (model["modelId"], model["modelLifecycle"]) == (MODEL, {"status": "ACTIVE"})
        assert model["inferenceTypesSupported"] == ["ON_DEMAND"]
        for asked in (MODEL, model["modelArn"], f"us.{MODEL}"):
            reply = client.get_foundation_model(modelIdentifier=asked)
            assert reply["modelDetails"] == model
        for nobody in (
            {"byOutputModality": "IMAGE"}, {"byInferenceType": "PROVISIONED"},
            {"byCustomizationType": "FINE_TUNING"}, {"byProvider": "somebody"},
        ):  # fmt: skip
            assert client.list_foundation_models(**nobody)["modelSummaries"] == []
        pages = client.get_paginator("list_inference_profiles").paginate(
            PaginationConfig={"PageSize": 1}
        )
        (profile,) = [found for page in pages for found in page["inferenceProfileSummaries"]]
        assert profile["models"] == [{"modelArn": model["modelArn"]}]
        for asked in (profile["inferenceProfileId"], profile["inferenceProfileArn"]):
            reply = client.get_inference_profile(inferenceProfileIdentifier=asked)
            assert reply["inferenceProfileArn"] == profile["inferenceProfileArn"]
        assert client.list_inference_profiles(typeEquals="APPLICATION") == {
            "inferenceProfileSummaries": []
        } | {"ResponseMetadata": mock.ANY}
        with pytest.raises(ClientError) as refused:
            client.get_foundation_model(modelIdentifier="nobody")
    assert refused.value.response["Error"]["Code"] == "ResourceNotFoundException"


def test_an_empty_wallet_is_denied_and_not_asked_again(stage: Stage) -> None:
    tenant, _ = stage.tenant(nanos=0)
    made, secret = stage.access_key(tenant)
    with (
        signing(stage.url, (str(made.access_key_id), secret), attempts=5) as client,
        pytest.raises(ClientError) as refused,
    ):
        client.converse(modelId=MODEL, messages=turns())
    assert refused.value.response["Error"]["Code"] == "AccessDeniedException"
    assert refused.value.response["ResponseMetadata"]["RetryAttempts"] == 0


# ── signatures, on the wire ──────────────────────────────────────────────────────────────


def signed_headers(
    stage: Stage, key: tuple[str, str], body: bytes, *, at: datetime | None = None
) -> dict[str, str]:
    request = AWSRequest("POST", f"{stage.url}/model/{MODEL}/converse", data=body)
    now = (at or datetime.now(UTC)).replace(tzinfo=None)
    with mock.patch("botocore.auth.get_current_datetime", return_value=now):
        SigV4Auth(Credentials(*key), "bedrock", REGION).add_auth(request)
    return dict(request.headers)


def posted(stage: Stage, headers: dict[str, str], body: bytes) -> tuple[int, str]:
    answer = httpx.post(f"{stage.url}/model/{MODEL}/converse", content=body, headers=headers)
    return answer.status_code, answer.headers.get("x-amzn-errortype", "")


def test_a_signed_request_is_served_once_as_it_was_signed_and_soon(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    key = str(made.access_key_id), secret
    body = json.dumps({"messages": turns(tokens=2)}).encode()
    headers = signed_headers(stage, key, body)
    assert posted(stage, headers, body + b" ") == (403, "InvalidSignatureException")
    assert posted(stage, headers, body) == (200, "")
    assert posted(stage, headers, body) == (429, "ThrottlingException")
    for minutes in (-6, 6):
        then = datetime.now(UTC) + timedelta(minutes=minutes)
        old = signed_headers(stage, key, body, at=then)
        assert posted(stage, old, body) == (403, "InvalidSignatureException")
    unknown = signed_headers(stage, ("SLAKNOBODY", secret), body)
    assert posted(stage, unknown, body) == (403, "UnrecognizedClientException")
    assert posted(stage, {}, body) == (403, "MissingAuthenticationTokenException")
    shown = {"authorization": f"Bearer {secret}"}
    assert posted(stage, shown, body) == (403, "UnrecognizedClientException")
    stage.paid(tenant, INPUT + 2 * OUTPUT)  # once


def test_a_signature_that_one_gateway_served_is_refused_by_all(
    own_stage: Stage,
) -> None:
    tenant, _ = own_stage.tenant()
    made, secret = own_stage.access_key(tenant)
    first = own_stage.start()
    second = own_stage.start(name="second", wait=False)
    eventually(lambda: _healthy(second))
    body = json.dumps({"messages": turns(tokens=1)}).encode()
    key = str(made.access_key_id), secret
    own_stage.gateway = first
    # Both are one to a client, behind one name.
    request = AWSRequest("POST", f"http://gateway/model/{MODEL}/converse", data=body)
    SigV4Auth(Credentials(*key), "bedrock", REGION).add_auth(request)
    headers = dict(request.headers) | {"host": "gateway"}
    assert posted(own_stage, headers, body) == (200, "")
    own_stage.gateway = second
    assert posted(own_stage, headers, body) == (429, "ThrottlingException")
    assert first.stop() == 0
    own_stage.paid(tenant, INPUT + OUTPUT)


def test_boto3_signs_anew_what_is_the_same_as_before(stage: Stage) -> None:
    """Two requests alike within one second have one signature: the second comes a second later."""
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    with signing(stage.url, (str(made.access_key_id), secret), attempts=8) as client:
        for _ in range(3):
            reply = client.converse(modelId=MODEL, messages=turns(tokens=1))
            assert reply["stopReason"] == "end_turn"
    stage.paid(tenant, 3 * (INPUT + OUTPUT))


def test_a_revoked_access_key_is_refused_within_two_seconds(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    key = str(made.access_key_id), secret
    body = json.dumps({"messages": turns(tokens=1)}).encode()
    assert posted(stage, signed_headers(stage, key, body), body) == (200, "")
    with stage.db.transaction() as tx:
        tenants.revoke_key(tx, made.id, tenant_id=tenant.id, now=datetime.now(UTC))
    number = itertools.count()

    def refused() -> bool:
        text = json.dumps(
            {"messages": turns(tokens=1), "requestMetadata": {"n": str(next(number))}}
        )
        headers = signed_headers(stage, key, text.encode())
        return posted(stage, headers, text.encode())[1] == "UnrecognizedClientException"

    eventually(refused)


def test_openai_s_paths_take_a_signature_too(stage: Stage) -> None:
    tenant, _ = stage.tenant()
    made, secret = stage.access_key(tenant)
    url = f"{stage.url}/openai/v1/chat/completions"
    body = json.dumps({"model": MODEL, "messages": says(tokens=1)}).encode()
    request = AWSRequest("POST", url, data=body)
    SigV4Auth(Credentials(str(made.access_key_id), secret), "bedrock", REGION).add_auth(request)
    assert httpx.post(url, content=body, headers=dict(request.headers)).status_code == 200
    wrong = httpx.post(url, content=body + b" ", headers=dict(request.headers))
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
    stage.paid(tenant, INPUT + OUTPUT)


def test_a_gateway_without_the_vault_s_key_refuses_who_signs_and_serves_the_others(
    own_stage: Stage,
) -> None:
    tenant, key = own_stage.tenant()
    made, secret = own_stage.access_key(tenant)
    elsewhere = own_stage.folder / "elsewhere.key"
    Vault(elsewhere).prepare()
    own_stage.start(vault=str(elsewhere))
    body = json.dumps({"messages": turns(tokens=1)}).encode()
    headers = signed_headers(own_stage, (str(made.access_key_id), secret), body)
    assert posted(own_stage, headers, body) == (500, "InternalServerException")
    assert own_stage.post(key, messages=says(tokens=1)).status_code == 200


# ── nothing crashes ──────────────────────────────────────────────────────────────────────


@settings(max_examples=60)
@given(
    st.sampled_from([MODEL, f"us.{MODEL}:0", "%00", "..%2F..", "\u00fc", "a/b"]),
    st.sampled_from([*Verb, "other"]),
    st.binary(max_size=60)
    | st.sampled_from([{"messages": []}, {"input": {"converse": {}}}, {"prompt": 1}]).map(
        lambda value: json.dumps(value).encode()
    ),
    st.sampled_from(["", "AWS4-HMAC-SHA256 Credential=a/b", "Bearer", "AWS4-HMAC-SHA256"]),
)
def test_nothing_that_is_sent_is_our_fault(
    stage: Stage, any_key: str, model: str, verb: str, body: bytes, authorization: str
) -> None:
    shown = authorization or f"Bearer {any_key}"
    answer = httpx.post(
        f"{stage.url}/model/{model}/{verb}", content=body, headers={"authorization": shown}
    )
    assert 400 <= answer.status_code < 500
    assert answer.json()["message" if verb != "other" else "error"]


@pytest.fixture(scope="module")
def any_key(stage: Stage) -> str:
    return stage.tenant()[1]
