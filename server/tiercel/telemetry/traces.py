"""Spans over OTLP: one per request, child of the caller's W3C trace context.

Off unless there is a collector: then nothing of OpenTelemetry is imported, and NO_SPAN stands for
every span. A collector that is slow or gone costs spans, never a request or the shutdown.
"""

import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from tiercel.telemetry.otlp import make_exporter

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan

logger = logging.getLogger(__name__)

# What is still queued at the end gets this long to leave.
SHUTDOWN_S = 1.0
# The SDK's threads end within milliseconds of being told to; nobody waits longer for them.
ABANDON_S = 0.3


class Span(Protocol):
    """What the edge notes about one request. Not to be used after `end`."""

    @property
    def recording(self) -> bool:
        """False where attributes would be lost, so that nobody computes them."""

    def set(self, attributes: Mapping[str, str | int]) -> None:
        """Note attributes; later values replace earlier ones."""

    def fail(self, sentence: str) -> None:
        """The request did not succeed."""

    def end(self) -> None:
        """The answer has been sent to its end."""


class NoSpan:
    """A span that notes nothing."""

    recording = False

    def set(self, attributes: Mapping[str, str | int]) -> None:
        """Nothing."""

    def fail(self, sentence: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


NO_SPAN: Span = NoSpan()


class OtlpTraces:
    """Sends spans to a collector from a thread of its own, out of a bounded queue."""

    def __init__(self, endpoint: str, protocol: str, service_name: str) -> None:
        """`protocol` is grpc or http/protobuf. The SDK reads further OTEL_* variables itself."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # The SDK would log every failed batch and every dropped span.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        resource = Resource.create({"service.name": service_name})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter, self._exporter = make_exporter(endpoint, protocol)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tiercel")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, name: str, headers: Mapping[str, str]) -> Span:
        """A span below the one in `traceparent`; a root where that is missing or malformed."""
        from opentelemetry.trace import SpanKind

        context = self._propagator.extract(headers)
        return _OtlpSpan(self._tracer.start_span(name, context, SpanKind.SERVER))

    def close(self) -> None:
        """Send what is queued; returns after SHUTDOWN_S + ABANDON_S at the latest.

        No thread stays behind, but for what `otlp.py` says about a connect under way.
        """
        thread = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        thread.start()
        thread.join(SHUTDOWN_S)
        if thread.is_alive():
            logger.warning("the collector does not take traces; the last ones are lost")
            self._exporter.abandon()
            thread.join(ABANDON_S)


class _OtlpSpan:
    def __init__(self, span: "OtelSpan") -> None:
        self._span = span

    @property
    def recording(self) -> bool:
        return self._span.is_recording()

    def set(self, attributes: Mapping[str, str | int]) -> None:
        self._span.set_attributes(attributes)

    def fail(self, sentence: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, sentence))

    def end(self) -> None:
        self._span.end()
