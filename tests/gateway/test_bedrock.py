"""What boto3 makes of our answers in Bedrock's words."""

import json
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse, HeadersDict
from botocore.eventstream import EventStreamBuffer, EventStreamMessage
from botocore.exceptions import ClientError
from botocore.parsers import create_parser
from tests.gateway.aws import REGION, signing
from tests.gateway.stage import CACHED, INPUT, MODEL, OUTPUT, Stage, says

from sublet.gateway.bedrock import break_off, refuse
from sublet.gateway.failures import TABLE, Failure, Kind


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
