"""The families themselves, grouped by who feeds them: a request's record, the engine's messages,
the process. What a family is called on the wire stands here only.
"""

from collections.abc import Callable

from tiercel.telemetry import ladders
from tiercel.telemetry.catalogue import Catalogue
from tiercel.telemetry.ladders import Buckets, batch_bounds, token_bounds

METHODS = ("prefill", "decode")
FAILURES = ("overloaded", "validation", "generation", "incomplete", "dropped", "template")
# How far a request had come when its client left.
STAGES = ("validation", "first_token", "decode")
# Why a request never reached the engine.
REJECTIONS = (
    "overloaded", "validation", "template", "body", "unauthorized", "forbidden", "draining",
)  # fmt: skip
FINISHES = ("length", "eos_token", "stop_sequence")


def _each(*values: str) -> tuple[tuple[str], ...]:
    return tuple((value,) for value in values)


class RequestMetrics:
    """One observation per request or per delta."""

    def __init__(
        self, catalogue: Catalogue, max_input_tokens: int, max_total_tokens: int, buckets: Buckets
    ) -> None:
        make = catalogue
        durations = ladders.DURATION_BOUNDS
        inputs = token_bounds(max_input_tokens, buckets)
        totals = token_bounds(max_total_tokens, buckets)
        self.count = make.counter("tgi_request_count", "Requests")
        self.success = make.counter("tgi_request_success", "Finished generations")
        self.failure = make.counter(
            "tgi_request_failure", "Failed requests by reason", "err", values=_each(*FAILURES)
        )
        self.duration = make.histogram(
            "tgi_request_duration", "Seconds of a whole request", durations
        )
        self.validation = make.histogram(
            "tgi_request_validation_duration", "Seconds from arrival until queued", durations
        )
        self.queue = make.histogram(
            "tgi_request_queue_duration", "Seconds from queued until in a batch", durations
        )
        self.inference = make.histogram(
            "tgi_request_inference_duration", "Seconds from in a batch until done", durations
        )
        self.mean_time_per_token = make.histogram(
            "tgi_request_mean_time_per_token_duration",
            "Seconds of inference per generated token",
            durations,
        )
        self.generated_tokens = make.histogram(
            "tgi_request_generated_tokens", "Generated tokens per request", totals
        )
        self.input_length = make.histogram(
            "tgi_request_input_length", "Input tokens after truncation", inputs
        )
        self.max_new_tokens = make.histogram(
            "tgi_request_max_new_tokens", "Requested new tokens, at most 1024", totals
        )
        self._add_own(make)

    def _add_own(self, make: Catalogue) -> None:
        self.time_to_first_token = make.histogram(
            "tiercel_time_to_first_token_seconds",
            "Seconds from arrival until the first token, streamed or not",
            ladders.FIRST_TOKEN_BOUNDS,
        )
        self.inter_token = make.histogram(
            "tiercel_inter_token_latency_seconds",
            "Seconds between two tokens of one sequence, one observation per token",
            ladders.TOKEN_BOUNDS,
        )
        self.request_duration = make.histogram(
            "tiercel_request_duration_seconds",
            "Seconds of a whole successful request",
            ladders.REQUEST_BOUNDS,
        )
        self.queue_time = make.histogram(
            "tiercel_queue_time_seconds",
            "Seconds from queued until first scheduled, or until the end of what never was",
            ladders.FIRST_TOKEN_BOUNDS,
        )
        self.prompt_tokens = make.counter("tiercel_prompt_tokens_total", "Prompt tokens taken in")
        self.finished = make.counter(
            "tiercel_requests_finished_total",
            "Sequences that ended well, by the reason",
            "reason",
            values=_each(*FINISHES),
        )
        self.cancelled = make.counter(
            "tiercel_requests_cancelled_total",
            "Requests whose client left or stopped reading, by how far they had come",
            "stage",
            values=_each(*STAGES),
        )
        self.rejected = make.counter(
            "tiercel_requests_rejected_total",
            "Requests refused before they reached the engine, by the reason",
            "reason",
            values=_each(*REJECTIONS),
        )
        self.slow_clients = make.counter(
            "tiercel_slow_client_aborts_total", "Streams cut off because nobody read them"
        )
        # One of them grows whenever a request begins, passes a stage or ends.
        self.signs = (
            self.count, self.success, self.failure, self.rejected, self.cancelled, self.finished,
            self.slow_clients, self.prompt_tokens,
        )  # fmt: skip


class BatchMetrics:
    """TGI's families that follow from the engine's messages."""

    def __init__(self, make: Catalogue, buckets: Buckets) -> None:
        self.queue_size = make.gauge("tgi_queue_size", "Waiting requests")
        self.batch_size = make.gauge("tgi_batch_current_size", "Running requests")
        self.batch_max_tokens = make.gauge(
            "tgi_batch_current_max_tokens", "KV slots held by running requests"
        )
        self.next_size = make.histogram(
            "tgi_batch_next_size", "Requests that were admitted together", batch_bounds(buckets)
        )
        self.skipped_tokens = make.summary(
            "tgi_request_skipped_tokens", "Accepted speculated tokens per step",
            ladders.SKIPPED_BOUNDS,
        )  # fmt: skip
        self._add_steps(make)
        self._add_durations(make)

    def _add_steps(self, make: Catalogue) -> None:
        self.concat = make.counter(
            "tgi_batch_concat",
            "Steps in which new requests joined running ones; always because of chunking",
            "reason",
            values=_each("backpressure", "wait_exceeded", "chunking"),
        )
        self.inference_count = make.counter("tgi_batch_inference_count", "Steps", "method")
        self.inference_success = make.counter(
            "tgi_batch_inference_success", "Steps that ran", "method"
        )
        self.inference_failure = make.counter(
            "tgi_batch_inference_failure", "Steps in which a request failed", "method",
            values=_each(*METHODS),
        )  # fmt: skip

    def _add_durations(self, make: Catalogue) -> None:
        durations = ladders.DURATION_BOUNDS
        self.inference_duration = make.histogram(
            "tgi_batch_inference_duration", "Seconds of a whole step", durations, "method"
        )
        self.forward_duration = make.histogram(
            "tgi_batch_forward_duration", "Seconds of forward pass and sampling", durations,
            "method",
        )  # fmt: skip
        self.decode_duration = make.histogram(
            "tgi_batch_decode_duration", "Seconds of a step besides forward pass and sampling",
            durations, "method",
        )  # fmt: skip
        self.filter_duration = make.histogram(
            "tgi_batch_filter_duration",
            "Seconds in which a step's results went to their requests and ended ones left",
            durations,
            "method",
        )
        self.concat_duration = make.histogram(
            "tgi_batch_concat_duration",
            "Seconds of planning a step in which new requests joined running ones",
            durations,
            "method",
            values=_each("decode"),
        )


class EngineMetrics:
    """Our own families that follow from the engine's messages."""

    def __init__(self, make: Catalogue) -> None:
        self.running = make.gauge("tiercel_requests_running", "Sequences that hold a row")
        self.waiting = make.gauge("tiercel_requests_waiting", "Sequences that wait for a row")
        self.queue_tokens = make.gauge(
            "tiercel_queue_tokens", "Known tokens of the sequences that wait"
        )
        blocks = make.gauge("tiercel_kv_blocks", "KV blocks by state; their sum is the pool",
                            "state", values=_each("used", "cached", "free"))  # fmt: skip
        self.blocks_used = blocks.labels("used")
        self.blocks_cached = blocks.labels("cached")
        self.blocks_free = blocks.labels("free")
        self.kv_usage = make.gauge(
            "tiercel_kv_cache_usage_ratio", "Share of the KV blocks that running sequences hold"
        )
        self.preemptions = make.counter(
            "tiercel_preemptions_total", "Sequences preempted and recomputed"
        )
        self.prefix_hit = make.counter(
            "tiercel_prefix_cache_hit_tokens_total", "Prompt tokens answered by the prefix cache"
        )
        self.prefix_query = make.counter(
            "tiercel_prefix_cache_query_tokens_total",
            "Prompt tokens looked up in the prefix cache",
        )
        self.generated = make.counter("tiercel_generated_tokens_total", "Tokens generated")
        self.aborted = make.counter(
            "tiercel_sequences_aborted_total", "Sequences that the engine was told to drop"
        )
        self.step_seconds = make.histogram(
            "tiercel_step_duration_seconds",
            "Seconds of a whole step: plan, forward, sampling, results",
            ladders.TOKEN_BOUNDS,
            "method",
            values=_each(*METHODS),
        )
        self.step_tokens = make.histogram(
            "tiercel_step_tokens", "Tokens computed in one step", ladders.STEP_TOKENS_BOUNDS
        )


class ServerMetrics:
    """Families about the API process and the engine as a whole."""

    def __init__(self, make: Catalogue) -> None:
        self._make = make
        self._states: list[Callable[[], float]] = []
        self.streams_open = make.gauge("tiercel_sse_streams_open", "Event streams being sent")
        self.loop_lag = make.histogram(
            "tiercel_event_loop_lag_seconds",
            "How late the event loop was, asked twice a second",
            ladders.LAG_BOUNDS,
        )
        self.startup = make.gauge(
            "tiercel_startup_phase_seconds",
            "How long a phase of the start took: find the model, load its tokenizer, start the "
            "engine, load weights, warm up, and all until requests are taken",
            "phase",
        )
        self.start_time = make.gauge(
            "tiercel_start_time_seconds", "When this process began, in seconds since 1970"
        )
        self.memory = make.gauge(
            "tiercel_memory_bytes",
            "Memory by kind: the weights and the KV cache of the first rank, and what the server's "
            "two processes have resident",
            "kind",
        )
        self._add_ranks(make)
        self.build = make.gauge(
            "tiercel_build_info", "1; the versions are its labels", "version", "python", "torch"
        )
        self.config = make.gauge(
            "tiercel_config_info",
            "1; what is served and how are its labels",
            "model", "dtype", "quantize", "device", "max_input_tokens", "max_total_tokens",
            "max_batch_prefill_tokens", "max_concurrent_requests",
        )  # fmt: skip
        self.cache = make.gauge(
            "tiercel_kv_cache_info", "1; the pool's shape is its labels", "block_tokens", "blocks"
        )

    def _add_ranks(self, make: Catalogue) -> None:
        self.ranks = make.gauge("tiercel_ranks", "Ranks that share the model")
        self.rank_memory = make.gauge(
            "tiercel_rank_memory_bytes",
            "What a rank holds all the time, by kind: its part of the weights and of the KV cache",
            "rank",
            "kind",
        )
        self.rank_heartbeat = make.gauge(
            "tiercel_rank_heartbeat_age_seconds",
            "Seconds since anything was heard from a rank: by the API process from the first, and "
            "by that from the others",
            "rank",
        )

    def signs(self) -> tuple[float, ...]:
        """What a probe would notice at once."""
        return (self.streams_open.value, *(state() for state in self._states))

    def add_spans(self, ended: Callable[[], float], exported: Callable[[], float]) -> None:
        """Where there are traces. Their difference is queued or lost."""
        name = "tiercel_trace_spans_ended_total"
        self._make.computed(name, "Sampled spans that have ended", ended, "counter")
        name = "tiercel_trace_spans_exported_total"
        self._make.computed(name, "Spans that the collector has taken", exported, "counter")

    def add_health(
        self,
        up: Callable[[], float],
        heartbeat_age_s: Callable[[], float],
        step_running_s: Callable[[], float],
    ) -> None:
        """What the supervisor knows of the engine."""
        self._states.append(up)
        self._make.computed("tiercel_engine_up", "1 while the engine can take requests", up)
        self._make.computed(
            "tiercel_engine_heartbeat_age_seconds",
            "Seconds since anything was heard from the engine",
            heartbeat_age_s,
        )
        self._make.computed(
            "tiercel_engine_step_running_seconds",
            "How long the step in progress had taken at the last heartbeat",
            step_running_s,
        )

    def add_edge(self, draining: Callable[[], float], in_flight: Callable[[], float]) -> None:
        """What the edge knows of itself."""
        self._states.append(draining)
        self._make.computed(
            "tiercel_draining", "1 while the server finishes and takes nothing new", draining
        )
        self._make.computed(
            "tiercel_http_requests_in_flight",
            "HTTP requests whose answer is not sent to its end, scrapes included",
            in_flight,
        )
