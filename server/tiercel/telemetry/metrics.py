"""What `/metrics` says: TGI's `tgi_*` families under their exact names, and our own `tiercel_*`.

Values live in prometheus_client objects; the text is written here, because that library would add
`_total` and `_created`. Never fed: `tgi_batch_concat` (batches are never merged),
`tgi_batch_filter_duration` and `tgi_batch_concat_duration` (no such steps exist here).
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from tiercel.wire.messages import EngineStats, EngineStep

CONTENT_TYPE = "text/plain; charset=utf-8"
DURATION_BOUNDS = tuple(0.0001 * 1.5**k for k in range(1, 36))  # seconds
BATCH_BOUNDS = tuple(range(1, 1025))  # requests
MAX_NEW_TOKENS_CAP = 1024  # TGI observes requested new tokens up to here


def hundredths(limit: int) -> tuple[float, ...]:
    """100 equal bounds up to `limit` tokens."""
    return tuple(limit / 100 * k for k in range(1, 101))


class RequestMetrics:
    """Families that the edge feeds, one observation per request or per delta."""

    def __init__(
        self, registry: CollectorRegistry, max_input_tokens: int, max_total_tokens: int
    ) -> None:
        def duration(name: str, text: str) -> Histogram:
            return Histogram(name, text, buckets=DURATION_BOUNDS, registry=registry)

        def tokens(name: str, text: str, limit: int) -> Histogram:
            return Histogram(name, text, buckets=hundredths(limit), registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.count = counter("tgi_request_count", "Requests")
        self.success = counter("tgi_request_success", "Finished generations")
        self.failure = counter("tgi_request_failure", "Failed requests by reason", "err")
        self.duration = duration("tgi_request_duration", "Seconds of a whole request")
        self.validation = duration(
            "tgi_request_validation_duration", "Seconds from arrival until queued"
        )
        self.queue = duration("tgi_request_queue_duration", "Seconds from queued until in a batch")
        self.inference = duration(
            "tgi_request_inference_duration", "Seconds from in a batch until done"
        )
        self.mean_time_per_token = duration(
            "tgi_request_mean_time_per_token_duration", "Seconds of inference per generated token"
        )
        self.generated_tokens = tokens(
            "tgi_request_generated_tokens", "Generated tokens per request", max_total_tokens
        )
        self.input_length = tokens(
            "tgi_request_input_length", "Input tokens after truncation", max_input_tokens
        )
        self.max_new_tokens = tokens(
            "tgi_request_max_new_tokens", "Requested new tokens, at most 1024", max_total_tokens
        )
        self.time_to_first_token = duration(
            "tiercel_time_to_first_token_seconds", "Seconds from arrival until the first token"
        )
        self.inter_token = duration(
            "tiercel_inter_token_seconds", "Seconds between two deltas of one request"
        )
        self.cancelled = counter(
            "tiercel_requests_cancelled", "Requests that nobody waited for any more"
        )


class EngineMetrics:
    """Families that follow from the engine's messages."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def duration(name: str, text: str) -> Histogram:
            return Histogram(name, text, ("method",), buckets=DURATION_BOUNDS, registry=registry)

        self.queue_size = gauge("tgi_queue_size", "Waiting requests")
        self.batch_size = gauge("tgi_batch_current_size", "Running requests")
        self.batch_max_tokens = gauge(
            "tgi_batch_current_max_tokens", "KV slots held by running requests"
        )
        self.next_size = Histogram(
            "tgi_batch_next_size",
            "Requests that were admitted together",
            buckets=BATCH_BOUNDS,
            registry=registry,
        )
        self.concat = counter("tgi_batch_concat", "Merged batches by reason", "reason")
        self.inference_count = counter("tgi_batch_inference_count", "Steps", "method")
        self.inference_success = counter("tgi_batch_inference_success", "Steps that ran", "method")
        self.inference_failure = counter(
            "tgi_batch_inference_failure", "Steps in which a request failed", "method"
        )
        self.inference_duration = duration(
            "tgi_batch_inference_duration", "Seconds of a whole step"
        )
        self.forward_duration = duration(
            "tgi_batch_forward_duration", "Seconds of forward pass and sampling"
        )
        self.decode_duration = duration(
            "tgi_batch_decode_duration", "Seconds of a step besides forward pass and sampling"
        )
        self.filter_duration = duration("tgi_batch_filter_duration", "Seconds of batch filtering")
        self.concat_duration = duration("tgi_batch_concat_duration", "Seconds of batch merging")
        self.skipped_tokens = Summary(
            "tgi_request_skipped_tokens", "Accepted speculated tokens per step", registry=registry
        )
        self.blocks_free = gauge("tiercel_kv_blocks_free", "KV blocks that can be handed out")
        self.blocks_total = gauge("tiercel_kv_blocks_total", "KV blocks of the pool")
        self.preemptions = counter("tiercel_preemptions", "Sequences preempted and recomputed")
        self.prefix_hit = counter(
            "tiercel_prefix_cache_hit_tokens", "Prompt tokens answered by the prefix cache"
        )
        self.prefix_query = counter(
            "tiercel_prefix_cache_query_tokens", "Prompt tokens looked up in the prefix cache"
        )


class _Method:
    """The children of the batch families for one `method`, looked up once."""

    def __init__(self, engine: EngineMetrics, method: str) -> None:
        self.count = engine.inference_count.labels(method)
        self.success = engine.inference_success.labels(method)
        self.failure = engine.inference_failure.labels(method)
        self.inference = engine.inference_duration.labels(method)
        self.forward = engine.forward_duration.labels(method)
        self.decode = engine.decode_duration.labels(method)


class Limits(Protocol):
    """The bounds of some histograms are hundredths of these."""

    @property
    def max_input_tokens(self) -> int: ...

    @property
    def max_total_tokens(self) -> int: ...


class Metrics:
    """All families of one server. `observe_*` is cheap enough for every step; render is not."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests: RequestMetrics | None = None
        self.engine = EngineMetrics(self._registry)
        self._methods: dict[str, _Method] = {}
        self._preemptions = _Growth(self.engine.preemptions.inc)
        self._prefix_hit = _Growth(self.engine.prefix_hit.inc)
        self._prefix_query = _Growth(self.engine.prefix_query.inc)

    def configure(self, limits: Limits) -> None:
        """Once, when the engine has told its limits and before the first request."""
        self._requests = RequestMetrics(
            self._registry, limits.max_input_tokens, limits.max_total_tokens
        )

    def describe_model(self, dtype: str, device: str, quantize: str | None) -> None:
        """Once: what the model computes in and how its layers are stored, as labels of a 1."""
        labels = ("dtype", "device", "quantize")
        info = Gauge("tiercel_model_info", "The model", labels, registry=self._registry)
        info.labels(dtype, device, quantize or "none").set(1)

    @property
    def requests(self) -> RequestMetrics:
        """What the edge feeds. Raises RuntimeError before `configure`."""
        if self._requests is None:
            raise RuntimeError("Metrics.configure has not been called")
        return self._requests

    def observe_stats(self, stats: EngineStats) -> None:
        """The scheduler's state: gauges, and counters by how much they grew."""
        engine = self.engine
        engine.queue_size.set(stats.waiting)
        engine.batch_size.set(stats.running)
        engine.batch_max_tokens.set(stats.running_max_tokens)
        engine.blocks_free.set(stats.free_blocks)
        engine.blocks_total.set(stats.total_blocks)
        self._preemptions.reach(stats.preemptions)
        self._prefix_hit.reach(stats.prefix_hit_tokens)
        self._prefix_query.reach(stats.prefix_query_tokens)

    def observe_step(self, step: EngineStep) -> None:
        """One step. A step that prefills anything counts as method `prefill`, else as `decode`."""
        self.observe_stats(step.stats)
        timing = step.timing
        if timing is None:
            return
        method = self._method("prefill" if timing.prefill_tokens else "decode")
        method.count.inc()
        failed = any(delta.error is not None for delta in step.deltas)
        (method.failure if failed else method.success).inc()
        method.inference.observe(timing.total_s)
        method.forward.observe(timing.forward_s)
        method.decode.observe(max(0.0, timing.total_s - timing.forward_s))
        self.engine.skipped_tokens.observe(0.0)
        if timing.new_rows:
            self.engine.next_size.observe(timing.new_rows)

    def render(self) -> bytes:
        """The text exposition of everything; milliseconds, so call it off the event loop."""
        return "".join(_exposition(self._registry)).encode()

    def _method(self, name: str) -> _Method:
        method = self._methods.get(name)
        if method is None:
            method = self._methods[name] = _Method(self.engine, name)
        return method


class _Growth:
    """Feeds a counter from totals that somebody else keeps."""

    def __init__(self, inc: Callable[[float], None]) -> None:
        self._inc = inc
        self._total = 0

    def reach(self, total: int) -> None:
        if total > self._total:
            self._inc(total - self._total)
            self._total = total


def _number(value: float) -> str:
    """Whole numbers without a fraction; the format knows no infinity among our values."""
    return str(int(value)) if value.is_integer() else repr(value)


def _exposition(registry: CollectorRegistry) -> Iterable[str]:
    for family in registry.collect():
        yield f"# HELP {family.name} {family.documentation}\n"
        yield f"# TYPE {family.name} {family.type}\n"
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue
            name = family.name if family.type == "counter" else sample.name
            labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
            braced = f"{{{labels}}}" if labels else ""
            yield f"{name}{braced} {_number(sample.value)}\n"
