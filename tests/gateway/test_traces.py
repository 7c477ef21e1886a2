"""Traces, as a collector gets them: what each call did, and not a word of what it said."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from gzip import decompress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from subprocess import run
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage, eventually, says

SECRET = "a-word-that-nobody-else-may-see"


@dataclass
class Collector:
    """Takes OTLP over http, and decodes it."""

    url: str = ""
    raw: list[bytes] = field(default_factory=list)
    spans: dict[str, Span] = field(default_factory=dict)  # by name
    service: dict[str, Any] = field(default_factory=dict)

    def take(self, body: bytes) -> None:
        self.raw.append(body)
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            self.service = attributes(resource.resource)
            for scope in resource.scope_spans:
                self.spans |= {span.name: span for span in scope.spans}

    def wait(self, *names: str) -> list[Span]:
        eventually(lambda: self.spans.keys() >= set(names), seconds=20)
        return [self.spans.pop(name) for name in names]


def attributes(of: Any) -> dict[str, Any]:
    values = {}
    for pair in of.attributes:
        value = getattr(pair.value, pair.value.WhichOneof("value"))
        if pair.value.HasField("array_value"):
            value = [one.string_value for one in value.values]
        values[pair.key] = value
    return values


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = decompress(body)
            collector.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def test_a_collector_is_told_what_each_call_did_and_not_what_it_said(own_stage: Stage) -> None:
    stage = own_stage
    with collecting() as collector:
        gateway = stage.start(traces=collector.url)
        tenant, key = stage.tenant()
        trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        answer = httpx.post(
            f"{stage.url}/v1/chat/completions",
            headers={
                "authorization": f"Bearer {key}",
                "traceparent": f"00-{trace_id}-{parent_id}-01",
            },
            json={
                "model": MODEL, "messages": says(tokens=3, text=SECRET), "max_tokens": 9,
                "temperature": 0.5, "stop": [f"stop-{SECRET}"], "stream": True,
            },
        )  # fmt: skip
        assert SECRET in answer.text
        request, call = collector.wait("POST /v1/chat/completions", f"chat {MODEL}")
        assert request.trace_id == call.trace_id == bytes.fromhex(trace_id)
        assert request.parent_span_id == bytes.fromhex(parent_id)
        assert call.parent_span_id == request.span_id
        assert (request.kind, call.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
        assert request.start_time_unix_nano <= call.start_time_unix_nano
        assert call.start_time_unix_nano < call.end_time_unix_nano
        assert attributes(request)["http.response.status_code"] == 200
        said = attributes(call)
        assert 0 < said.pop("gen_ai.response.time_to_first_chunk") < 20
        prompt = said["gen_ai.usage.input_tokens"]
        host, _, port = stage.replica_url.removeprefix("http://").partition(":")
        assert said == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "sublet",
            "gen_ai.request.model": MODEL,
            "gen_ai.request.stream": True,
            "gen_ai.request.max_tokens": 9,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.output.type": "text",
            "gen_ai.response.model": MODEL,
            "gen_ai.response.id": answer.headers["x-request-id"],
            "gen_ai.response.finish_reasons": ["stop"],
            "gen_ai.usage.input_tokens": prompt,
            "gen_ai.usage.output_tokens": 3,
            "gen_ai.usage.cache_read.input_tokens": 0,
            "gen_ai.usage.cache_creation.input_tokens": 0,
            "gen_ai.usage.reasoning.output_tokens": 0,
            "server.address": host,
            "server.port": int(port),
            "sublet.tenant_id": str(tenant.id),
            "sublet.outcome": "completed",
            "sublet.charge_nanos": prompt * INPUT + 3 * OUTPUT,
        }
        assert collector.service["service.name"] == "sublet-gateway"

        # Refused, broken off, and hung up on.
        _, poor_key = stage.tenant(0)
        stage.post(poor_key, messages=says(text=SECRET))
        request, call = collector.wait("POST /v1/chat/completions", f"chat {MODEL}")
        assert attributes(request)["http.response.status_code"] == 402
        assert attributes(call)["error.type"] == "payment_required"
        stage.post(key, "/v1/embeddings", input=[SECRET, '#script:{"cut_after":1}'])
        request, call = collector.wait("POST /v1/embeddings", f"embeddings {MODEL}")
        assert attributes(request)["error.type"] == "model_failed"
        assert call.status.code == call.status.STATUS_CODE_ERROR
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{stage.url}/model/{MODEL}/invoke",
                headers={"authorization": f"Bearer {key}"},
                json={"prompt": '#script:{"tokens":50,"delay_ms":100}'},
                timeout=0.5,
            )
        request, call = collector.wait("POST /model/{modelId}/invoke", f"text_completion {MODEL}")
        assert attributes(call)["error.type"] == "client_closed"
        assert attributes(call)["sublet.outcome"] == "aborted"
        assert 0 < attributes(call)["gen_ai.usage.output_tokens"] < 50

        assert gateway.stop() == 0
        for raw in collector.raw:
            assert SECRET.encode() not in raw
            assert key.encode() not in raw


def test_what_is_not_in_the_share_is_not_sent_and_a_collector_may_be_away(
    own_stage: Stage,
) -> None:
    stage = own_stage
    _, key = stage.tenant()
    with collecting() as collector:
        gateway = stage.start(traces=collector.url, traces_share=0.0)
        assert stage.post(key, messages=says(tokens=1)).status_code == 200
        assert gateway.stop() == 0
        assert not collector.spans
    gateway = stage.start(traces=collector.url)  # nobody is there any more
    for _ in range(3):
        assert stage.post(key, messages=says(tokens=1)).status_code == 200
    assert gateway.stop() == 0


def test_nothing_of_it_is_loaded_where_nothing_is_traced() -> None:
    program = "import sublet.gateway.server, sys; print('opentelemetry' in sys.modules)"
    loaded = run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "False"
