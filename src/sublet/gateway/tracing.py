"""Traces of model calls, by OpenTelemetry's conventions for generative AI, to an OTLP collector.

Two spans a call: the client's request, as it came to the gateway, and the model's work inside it.
What was asked and answered is in neither, nor is any word of a refusal: only names, counts and
times. Without a collector nothing here is loaded.
"""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sublet.core.errors import Misconfigured
from sublet.core.money import Money
from sublet.gateway.ask import Api, Ask
from sublet.gateway.failures import Failure
from sublet.gateway.tariff import Counts
from sublet.metering.usage import Outcome

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_OPERATIONS: Final[Mapping[Api, str]] = MappingProxyType(
    {Api.CHAT: "chat", Api.COMPLETION: "text_completion", Api.EMBEDDING: "embeddings"}
)
# What of a request a span may say: numbers, none of them a word of the caller's.
_NUMBERS: Final = (
    "temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty",
)  # fmt: skip
_EXPORT_SECONDS: Final = 3.0  # for one try; a collector that is away holds nobody up


class Tracer:
    """Sends spans in the background; what a collector does not take in time is dropped."""

    def __init__(self, endpoint: str, *, share: float, gateway: str, version: str) -> None:
        """Begin to send to `endpoint`, such as http://127.0.0.1:4318/v1/traces.

        Args:
            endpoint: where an OTLP collector listens.
            share: of the traces that begin here; one that a caller began, the caller decides on.
            gateway: its name.
            version: Sublet's.

        Raises:
            Misconfigured: OpenTelemetry is not installed.
        """
        try:
            # Loaded where traces are wanted, and nowhere else.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
                OTLPSpanExporter,
            )
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
            from opentelemetry.sdk.trace.sampling import (  # noqa: PLC0415
                ParentBased,
                TraceIdRatioBased,
            )
            from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
                TraceContextTextMapPropagator,
            )
        except ImportError as error:
            raise Misconfigured(
                "SUBLET_GATEWAY_TRACES needs OpenTelemetry: pip install 'sublet[traces]'"
            ) from error
        # It tells every batch that a collector did not take; that it is away is said once, by us.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create(
                {
                    "service.name": "sublet-gateway",
                    "service.instance.id": gateway,
                    "service.version": version,
                }
            ),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=1000, export_timeout_millis=3000)
        )
        self._tracer = self._provider.get_tracer("sublet.gateway", version)
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, *, method: str, route: str, request_id: str, traceparent: str | None
    ) -> "Trace | None":
        """Begin the trace of a call; None: it is none of the share that is traced."""
        from opentelemetry.trace import SpanKind  # noqa: PLC0415 - loaded by now

        carrier = {} if traceparent is None else {"traceparent": traceparent}
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "http.route": route,
                "sublet.request_id": request_id,
            },
        )
        return Trace(self, span) if span.is_recording() else None

    def child(self, parent: "Span", name: str, attributes: dict[str, str | int | float]) -> "Span":
        from opentelemetry.trace import SpanKind, set_span_in_context  # noqa: PLC0415 - as above

        return self._tracer.start_span(
            name,
            context=set_span_in_context(parent),
            kind=SpanKind.CLIENT,
            attributes=attributes,
        )

    def close(self) -> None:
        """Send what waits, within some seconds."""
        self._provider.shutdown()


class Trace:
    """One call's spans."""

    __slots__ = ("_call", "_request", "_tracer")

    def __init__(self, tracer: Tracer, request: "Span") -> None:
        self._tracer = tracer
        self._request = request
        self._call: Span | None = None

    def ask(self, ask: Ask, *, tenant: str) -> None:
        """The model's work begins."""
        operation = _OPERATIONS[ask.api]
        attributes: dict[str, str | int | float] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "sublet",
            "gen_ai.request.model": ask.model,
            "gen_ai.request.stream": ask.stream,
            "gen_ai.output.type": "json" if "response_format" in ask.payload else "text",
            "sublet.tenant_id": tenant,
        }
        if ask.max_tokens:
            attributes["gen_ai.request.max_tokens"] = ask.max_tokens
        if ask.service_tier is not None:
            attributes["gen_ai.openai.request.service_tier"] = ask.service_tier
        for name in _NUMBERS:
            if isinstance(value := ask.payload.get(name), int | float):
                attributes[f"gen_ai.request.{name}"] = value
        self._call = self._tracer.child(self._request, f"{operation} {ask.model}", attributes)

    def used(
        self,
        counts: Counts,
        charge: Money,
        outcome: Outcome,
        *,
        response_id: str,
        finish_reason: str | None,
        first_seconds: float | None,
    ) -> None:
        """Note what was used, and charged."""
        if self._call is None:
            return
        attributes: dict[str, str | int | float | list[str]] = {
            "gen_ai.response.id": response_id,
            # Their counts include the cached ones, and the reasoning.
            "gen_ai.usage.input_tokens": counts.prompt_tokens,
            "gen_ai.usage.output_tokens": counts.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": counts.cache_read_tokens,
            "gen_ai.usage.cache_creation.input_tokens": counts.cache_write_tokens,
            "gen_ai.usage.reasoning.output_tokens": counts.reasoning_tokens,
            "sublet.charge_nanos": charge.nanos,
            "sublet.outcome": outcome.value,
        }
        if finish_reason is not None:
            attributes["gen_ai.response.finish_reasons"] = [finish_reason]
        if first_seconds is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = first_seconds
        self._call.set_attributes(attributes)

    def asked(self, model: str, url: str) -> None:
        """Note who generates: the last one that was asked."""
        if self._call is None:
            return
        host, _, port = url.rpartition("://")[2].rpartition(":")
        self._call.set_attributes({"gen_ai.response.model": model, "server.address": host})
        if port.isdecimal():
            self._call.set_attribute("server.port", int(port))

    def end_call(self, error: str | None) -> None:
        """The model's work has ended; `error`: in a word, why not well."""
        if self._call is not None:
            _end(self._call, error)
            self._call = None

    def end(self, failure: Failure | None) -> None:
        """The client has its answer, or is gone."""
        status = 200 if failure is None else failure.status
        self._request.set_attribute("http.response.status_code", status)
        _end(self._request, None if failure is None or status < 500 else failure.row.code)


def _end(span: "Span", error: str | None) -> None:
    if error is not None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - loaded by now

        span.set_attribute("error.type", error)
        span.set_status(StatusCode.ERROR)
    span.end()
