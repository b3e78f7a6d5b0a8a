"""Spans over OTLP: one per request, child of the caller's W3C trace context.

Off unless there is a collector: then nothing of OpenTelemetry is imported, and NO_SPAN stands for
every span. A collector that is slow or gone costs spans, never a request or the shutdown.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import tiercel
from tiercel.telemetry.genai import SCHEMA_URL
from tiercel.telemetry.otlp import make_exporter

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

# What is still queued at the end gets this long to leave.
SHUTDOWN_S = 1.0
# The SDK's threads end within milliseconds of being told to; nobody waits longer for them.
ABANDON_S = 0.3

SERVICE_NAME = "text-generation-inference.router"  # TGI's, where nobody says otherwise
_NAME = "service.name"

Attribute = str | int | float | Sequence[str]


class Stopwatch:
    """A context that may be entered again and again; `total_s` is the time inside."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self._entered_s = 0.0

    def __enter__(self) -> "Stopwatch":
        self._entered_s = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.total_s += time.perf_counter() - self._entered_s


class Span(Protocol):
    """What the edge notes about one request. Not to be used after `end`."""

    @property
    def recording(self) -> bool:
        """False where attributes would be lost, so that nobody computes them."""

    @property
    def trace_id(self) -> str:
        """In hexadecimal; empty where there is no trace."""

    @property
    def span_id(self) -> str:
        """In hexadecimal; empty where there is no span."""

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """Note attributes; later values replace earlier ones."""

    def child(
        self,
        name: str,
        start_s: float,
        end_s: float,
        attributes: Mapping[str, Attribute] | None = None,
        *,
        failure: str = "",
    ) -> None:
        """A whole span below this one, told afterwards; monotonic seconds.

        `failure`: what ended it early, in a word.
        """

    def fail(self, sentence: str) -> None:
        """The request did not succeed."""

    def end(self) -> None:
        """The answer has been sent to its end."""


class NoSpan:
    """A span that notes nothing."""

    recording = False
    trace_id = ""
    span_id = ""

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """Nothing."""

    def child(
        self,
        name: str,
        start_s: float,
        end_s: float,
        attributes: Mapping[str, Attribute] | None = None,
        *,
        failure: str = "",
    ) -> None:
        """Nothing."""

    def fail(self, sentence: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


NO_SPAN: Span = NoSpan()


class OtlpTraces:
    """Sends spans to a collector from a thread of its own, out of a bounded queue."""

    def __init__(self, endpoint: str, protocol: str, service_name: str | None = None) -> None:
        """`protocol` is grpc or http/protobuf. The SDK reads further OTEL_* variables itself.

        Among them the service's name, unless it is given here.
        """
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # The SDK would log every failed batch and every dropped span.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        resource = Resource.create({} if service_name is None else {_NAME: service_name})
        if str(resource.attributes[_NAME]).startswith("unknown_service"):  # the SDK's default
            resource = resource.merge(Resource({_NAME: SERVICE_NAME}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter, self._exporter = make_exporter(endpoint, protocol)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tiercel", tiercel.__version__, SCHEMA_URL)
        self._propagator = TraceContextTextMapPropagator()
        self._counts = _Counts()

    def start(self, name: str, headers: Mapping[str, str]) -> Span:
        """A span below the one in `traceparent`; a root where that is missing or malformed."""
        from opentelemetry.trace import SpanKind

        context = self._propagator.extract(headers)
        span = self._tracer.start_span(name, context, SpanKind.SERVER)
        return _OtlpSpan(span, self._tracer, self._counts)

    @property
    def spans_ended(self) -> int:
        """Sampled ones."""
        return self._counts.ended

    @property
    def spans_exported(self) -> int:
        """Those that the collector has taken: all that have ended, but for queued and lost ones."""
        return self._exporter.exported

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


class _Counts:
    """Of one OtlpTraces; its spans end on the event loop only."""

    ended = 0


def _epoch_ns() -> int:
    """The wall clock's lead over the monotonic one.

    A process that is put aside between two reads would be wrong by all that time, and phases would
    begin before their request: the closest of three comparisons counts.
    """
    found = []
    for _ in range(3):
        before = time.monotonic_ns()
        wall = time.time_ns()
        apart = time.monotonic_ns() - before
        found.append((apart, wall - before - apart // 2))
    return min(found)[1]


class _OtlpSpan:
    def __init__(self, span: "OtelSpan", tracer: "Tracer", counts: _Counts) -> None:
        self._span = span
        self._tracer = tracer
        self._counts = counts
        # Clocks are compared once per span: the wall clock may be set meanwhile.
        self._epoch_ns = _epoch_ns()
        context = span.get_span_context()
        self._sampled = context.trace_flags.sampled
        self.trace_id = f"{context.trace_id:032x}"
        self.span_id = f"{context.span_id:016x}"

    @property
    def recording(self) -> bool:
        return self._span.is_recording()

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        self._span.set_attributes(attributes)

    def child(
        self,
        name: str,
        start_s: float,
        end_s: float,
        attributes: Mapping[str, Attribute] | None = None,
        *,
        failure: str = "",
    ) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        child = self._tracer.start_span(
            name,
            set_span_in_context(self._span),
            start_time=self._wall_ns(start_s),
            attributes=attributes,
        )
        if failure:
            child.set_status(Status(StatusCode.ERROR, failure))
        child.end(self._wall_ns(end_s))
        self._counts.ended += self._sampled

    def _wall_ns(self, monotonic_s: float) -> int:
        return self._epoch_ns + int(monotonic_s * 1e9)

    def fail(self, sentence: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, sentence))

    def end(self) -> None:
        self._span.end()
        self._counts.ended += self._sampled
