"""One request's times and outcome: its metrics, spans, timing headers, and what its line says.

Never holds or logs a prompt or an answer.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from tiercel.api.identity import Identity
from tiercel.api.spans import phases, usage_attributes
from tiercel.api.summary import Summary
from tiercel.errors import RequestError, SlowClient
from tiercel.telemetry.families import REJECTIONS, RequestMetrics
from tiercel.telemetry.traces import NO_SPAN, Span, Stopwatch


class SequenceRecord:
    """One sequence of a request, from its submission to its last token."""

    def __init__(self, request: "RequestRecord", sequence_id: int) -> None:
        self.sequence_id = sequence_id
        self.arrival_s = request.arrival_s
        self.tenant = request.tenant
        self.generated_tokens = 0
        self.cached_tokens = 0
        self.queued_s: float | None = None  # when it was sent to the engine
        self.queue_s = 0.0  # in the engine's queue, with an attempt before it that was given up
        self.started_s: float | None = None  # in a batch, as far as the engine has said
        self.first_s: float | None = None
        self.done_s: float | None = None
        self.finish_reason = ""
        # Measured only where a span will tell of it.
        self.detokenizing = Stopwatch() if request.span.recording else None
        self.reading: AbstractContextManager[object] = self.detokenizing or nullcontext()
        self._request = request
        self._latest_s = request.arrival_s

    def queued(self) -> float:
        """It goes to the engine now; tells when that is."""
        self.queued_s = time.monotonic()
        return self.queued_s

    def first_delta(self, queue_s: float | None, cached_tokens: int) -> None:
        """What only the engine knows about the wait for the first token."""
        self.first_s = self._latest_s = time.monotonic()
        self.cached_tokens = cached_tokens
        metrics, exemplar = self._request.metrics, self._request.exemplar
        metrics.time_to_first_token.observe(self.first_s - self.arrival_s, exemplar)
        self.waited(queue_s or 0.0)

    def waited(self, queue_s: float) -> None:
        """The engine says how long it was queued: with its first token, or with why it has none."""
        if self.started_s is None:
            queued_s = self.arrival_s if self.queued_s is None else self.queued_s
            self.started_s = min(time.monotonic(), queued_s + queue_s)
            self._observe_queue(queue_s)

    def left(self, ended_s: float) -> None:
        """It has ended, and the engine has not said that it was ever scheduled."""
        if self.started_s is None and self.done_s is None and self.queued_s is not None:
            self._observe_queue(max(0.0, ended_s - self.queued_s))

    def _observe_queue(self, queue_s: float) -> None:
        self.queue_s += queue_s
        self._request.metrics.queue_time.observe(queue_s, self._request.exemplar)

    def next_delta(self, tokens: int) -> None:
        """Another delta has come; tokens that come together share the time since the last ones."""
        now = time.monotonic()
        for _ in range(tokens):
            self._request.metrics.inter_token.observe(
                (now - self._latest_s) / tokens, self._request.exemplar
            )
        self._latest_s = now

    def done(self, finish_reason: str) -> None:
        """The engine is rid of it; the request has succeeded with the last of its sequences."""
        self.finish_reason = finish_reason
        self.done_s = time.monotonic()
        self._request.metrics.finished.labels(finish_reason).inc()
        self._request.sequence_done()

    def inference_s(self, validated_s: float) -> float:
        """All since `validated_s` but the wait in the queue: so the three add up to the total."""
        return max(0.0, (self.done_s or time.monotonic()) - validated_s - self.queue_s)


class RequestRecord:
    """Opened on arrival, ended once: succeeded, failed or dropped. Seconds are monotonic."""

    def __init__(
        self,
        route: str,
        identity: Identity,
        metrics: RequestMetrics,
        tenant: bytes = b"",
        span: Span = NO_SPAN,
        summary: Summary | None = None,
    ) -> None:
        """`tenant` separates the prefix caches of those who must not learn of each other.

        `summary`: where it is noted what the request's line says.
        """
        self.arrival_s = time.monotonic()
        self.identity = identity
        self.tenant = tenant
        self.metrics = metrics
        self.span = span
        # On a metric's bucket, in OpenMetrics: an example of a request that fell into it.
        self.exemplar = {"trace_id": span.trace_id} if span.recording else None
        self.input_tokens = 0
        self.route = route
        self._summary = Summary() if summary is None else summary
        self._sequences: list[SequenceRecord] = []
        self._validated_s = self.arrival_s
        self._done_s: float | None = None
        metrics.count.inc()

    def validated(self, input_tokens: int, judged_new_tokens: int) -> None:
        """A prompt of the request goes to the engine now; some requests have several."""
        self._validated_s = time.monotonic()
        self.input_tokens += input_tokens
        self.metrics.input_length.observe(input_tokens)
        self.metrics.prompt_tokens.inc(input_tokens)
        self.metrics.max_new_tokens.observe(judged_new_tokens)

    def sequence(self, sequence_id: int) -> SequenceRecord:
        """One more sequence. All are made before the first one can end."""
        sequence = SequenceRecord(self, sequence_id)
        self._sequences.append(sequence)
        return sequence

    def discard(self, sequence: SequenceRecord, kept: SequenceRecord, input_tokens: int) -> None:
        """Of two attempts at one answer one no longer counts; `kept` had so many input tokens.

        What the other one has waited for was waited for this answer.
        """
        self._sequences.remove(sequence)
        kept.queue_s += sequence.queue_s
        self.input_tokens = input_tokens
        if kept.done_s is not None:
            self.sequence_done()

    def sequence_done(self) -> None:
        """With the last one the generation is complete; sending it may still take its time."""
        if any(sequence.done_s is None for sequence in self._sequences):
            return
        self._done_s = time.monotonic()
        metrics, tokens, exemplar = self.metrics, self.generated_tokens, self.exemplar
        total_s = self._done_s - self.arrival_s
        metrics.success.inc()
        metrics.duration.observe(total_s, exemplar)
        metrics.request_duration.observe(total_s, exemplar)
        metrics.validation.observe(self._validated_s - self.arrival_s)
        metrics.queue.observe(max(sequence.queue_s for sequence in self._sequences))
        metrics.inference.observe(self.inference_s)
        metrics.mean_time_per_token.observe(self.inference_s / max(1, tokens))
        metrics.generated_tokens.observe(tokens)
        reasons = ",".join(dict.fromkeys(each.finish_reason for each in self._sequences))
        self._end(logging.INFO, "done", finish_reason=reasons)

    def failed(self, error: RequestError) -> None:
        """Refused or broken. Only what the server did wrong is an error in the log."""
        if self._done_s is not None:
            return
        if isinstance(error, SlowClient):  # a client's doing, not the server's
            self.metrics.slow_clients.inc()
            self.dropped(error=str(error))
            return
        self._done_s = time.monotonic()
        self.metrics.failure.labels(error.metric).inc()
        if not self._sequences and error.metric in REJECTIONS:
            self.metrics.rejected.labels(error.metric).inc()
        level = logging.ERROR if error.status in (424, 500) else logging.INFO
        sentence = {} if error.quotes else {"error": str(error)}
        self._end(level, "failed", error_type=error.error_type, **sentence)

    def dropped(self, **more: str) -> None:
        """Nobody waits any more, or reads. Does nothing after another ending."""
        if self._done_s is not None:
            return
        self._done_s = time.monotonic()
        self.metrics.failure.labels("dropped").inc()
        stage = "validation" if not self._sequences else "first_token"
        if any(sequence.first_s is not None for sequence in self._sequences):
            stage = "decode"
        self.metrics.cancelled.labels(stage).inc()
        self._end(logging.INFO, "dropped", stage=stage, **more)

    @property
    def generated_tokens(self) -> int:
        """Of all sequences."""
        return sum(sequence.generated_tokens for sequence in self._sequences)

    @property
    def inference_s(self) -> float:
        """The longest inference of a sequence: they run side by side."""
        return max((each.inference_s(self._validated_s) for each in self._sequences), default=0.0)

    def headers(self, sequence: SequenceRecord | None = None) -> dict[str, str]:
        """The timing headers of an answer that is not streamed: of one sequence, or all summed."""
        total_s = (self._done_s or time.monotonic()) - self.arrival_s
        chosen = self._sequences if sequence is None else [sequence]
        tokens = sum(each.generated_tokens for each in chosen)
        queue_s = sum(each.queue_s for each in chosen)
        inference_s = sum(each.inference_s(self._validated_s) for each in chosen)
        return {
            "x-compute-time": f"{total_s:.6f}",
            "x-total-time": _ms(total_s),
            "x-validation-time": _ms(self._validated_s - self.arrival_s),
            "x-queue-time": _ms(queue_s),
            "x-inference-time": _ms(inference_s),
            "x-time-per-token": _ms(inference_s / max(1, tokens)),
            "x-prompt-tokens": str(self.input_tokens),
            "x-generated-tokens": str(tokens),
        }

    def _end(self, level: int, outcome: str, **more: str) -> None:
        done_s = self._done_s or time.monotonic()
        sequences = self._sequences
        for each in sequences:
            each.left(done_s)
        begun = [(each.first_s, each.started_s) for each in sequences if each.first_s]
        first_s, started_s = min(begun, default=(None, None))
        queue_s = max((each.queue_s for each in sequences), default=0.0)
        fields: dict[str, object] = {
            "route": self.route,
            "request_id": self.identity.request_id,
            **self._trace_fields(),
            **more,
            "input_tokens": self.input_tokens,
            "cached_tokens": sum(each.cached_tokens for each in sequences),
            "generated_tokens": self.generated_tokens,
            "total_ms": _tenths(done_s - self.arrival_s),
            "validation_ms": _tenths(self._validated_s - self.arrival_s),
            "queue_ms": _tenths(queue_s),
            "first_token_ms": _tenths(first_s and first_s - self.arrival_s),
            "prefill_ms": _tenths(first_s and first_s - (started_s or first_s)),
            "decode_ms": _tenths(first_s and done_s - first_s),
        }
        if len(sequences) > 1:
            fields["sequences"] = len(sequences)
        self._summary.note(level, outcome, fields)
        if self.span.recording:
            self._trace(outcome, more)

    def _trace_fields(self) -> dict[str, object]:
        """Of our own span, or at least the caller's trace."""
        if self.span.recording:
            return {"trace_id": self.span.trace_id, "span_id": self.span.span_id}
        return {"trace_id": self.identity.trace_id} if self.identity.trace_id else {}

    def _trace(self, outcome: str, more: Mapping[str, str]) -> None:
        """TGI's attributes, as text; the GenAI conventions'; and a span for each phase."""
        inference_s, done_s = self.inference_s, self._done_s or time.monotonic()
        times_s = {
            "total_time": done_s - self.arrival_s,
            "validation_time": self._validated_s - self.arrival_s,
            "queue_time": max((each.queue_s for each in self._sequences), default=0.0),
            "inference_time": inference_s,
            "time_per_token": inference_s / max(1, self.generated_tokens),
        }
        self.span.set({name: f"{seconds * 1e3:.3f}ms" for name, seconds in times_s.items()})
        # Not the sentence: it may quote what a user has written.
        self.span.set({name: text for name, text in more.items() if name != "error"})
        self.span.set(usage_attributes(self._sequences, self.input_tokens, outcome, more))
        failure = "" if outcome == "done" else more.get("error_type", outcome)
        if failure:
            self.span.fail(failure)
        for sequence in self._sequences:
            phases(self.span, sequence, done_s, failure)


def _tenths(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
