"""One request's times and outcome: its metrics, its summary line and its timing headers.

Never holds or logs a prompt or an answer.
"""

import logging
import time

from tiercel.errors import RequestError
from tiercel.telemetry.metrics import RequestMetrics

logger = logging.getLogger(__name__)


class RequestRecord:
    """Opened on arrival, ended once: succeeded, failed or dropped. Seconds are monotonic."""

    def __init__(self, route: str, request_id: int, metrics: RequestMetrics) -> None:
        self.arrival_s = time.monotonic()
        self.request_id = request_id
        self.input_tokens = 0
        self.generated_tokens = 0
        self._route = route
        self._metrics = metrics
        self._validated_s = self.arrival_s
        self._queue_s = 0.0
        self._cached_tokens = 0
        self._latest_s: float | None = None
        self._first_s: float | None = None
        self._done_s: float | None = None
        metrics.count.inc()

    def validated(self, input_tokens: int, judged_new_tokens: int) -> None:
        """The request goes to the engine now."""
        self._validated_s = time.monotonic()
        self.input_tokens = input_tokens
        self._metrics.input_length.observe(input_tokens)
        self._metrics.max_new_tokens.observe(judged_new_tokens)

    def first_delta(self, queue_s: float | None, cached_tokens: int) -> None:
        """What only the engine knows about the wait for the first token."""
        self._first_s = self._latest_s = time.monotonic()
        self._queue_s = queue_s or 0.0
        self._cached_tokens = cached_tokens
        self._metrics.time_to_first_token.observe(self._first_s - self.arrival_s)

    def next_delta(self) -> None:
        """Another delta has come."""
        now = time.monotonic()
        if self._latest_s is not None:
            self._metrics.inter_token.observe(now - self._latest_s)
        self._latest_s = now

    def succeeded(self, finish_reason: str, generated_tokens: int) -> None:
        """The generation is complete; sending it may still take its time."""
        self.generated_tokens = generated_tokens
        self._done_s = time.monotonic()
        metrics = self._metrics
        metrics.success.inc()
        metrics.duration.observe(self._done_s - self.arrival_s)
        metrics.validation.observe(self._validated_s - self.arrival_s)
        metrics.queue.observe(self._queue_s)
        metrics.inference.observe(self.inference_s)
        metrics.mean_time_per_token.observe(self.inference_s / max(1, generated_tokens))
        metrics.generated_tokens.observe(generated_tokens)
        self._log(logging.INFO, "done", finish_reason=finish_reason)

    def failed(self, error: RequestError) -> None:
        """Refused or broken. Only what the server did wrong is an error in the log."""
        if self._done_s is not None:
            return
        self._done_s = time.monotonic()
        self._metrics.failure.labels(error.metric).inc()
        level = logging.ERROR if error.status in (424, 500) else logging.INFO
        self._log(level, "failed", error_type=error.error_type, error=str(error))

    def dropped(self) -> None:
        """Nobody waits any more. Does nothing after another ending."""
        if self._done_s is not None:
            return
        self._done_s = time.monotonic()
        self._metrics.failure.labels("dropped").inc()
        self._metrics.cancelled.inc()
        self._log(logging.INFO, "dropped")

    @property
    def inference_s(self) -> float:
        """From in a batch until done."""
        done_s = self._done_s or time.monotonic()
        return max(0.0, done_s - self._validated_s - self._queue_s)

    def headers(self) -> dict[str, str]:
        """The timing headers of an answer that is not streamed."""
        total_s = (self._done_s or time.monotonic()) - self.arrival_s
        per_token_s = self.inference_s / max(1, self.generated_tokens)
        return {
            "x-compute-time": f"{total_s:.6f}",
            "x-total-time": _ms(total_s),
            "x-validation-time": _ms(self._validated_s - self.arrival_s),
            "x-queue-time": _ms(self._queue_s),
            "x-inference-time": _ms(self.inference_s),
            "x-time-per-token": _ms(per_token_s),
            "x-prompt-tokens": str(self.input_tokens),
            "x-generated-tokens": str(self.generated_tokens),
        }

    def _log(self, level: int, outcome: str, **more: str) -> None:
        done_s = self._done_s or time.monotonic()
        first_s = self._first_s
        fields: dict[str, object] = {
            "route": self._route,
            "request_id": self.request_id,
            **more,
            "input_tokens": self.input_tokens,
            "cached_tokens": self._cached_tokens,
            "generated_tokens": self.generated_tokens,
            "total_ms": round((done_s - self.arrival_s) * 1e3, 1),
            "validation_ms": round((self._validated_s - self.arrival_s) * 1e3, 1),
            "queue_ms": round(self._queue_s * 1e3, 1),
            "first_token_ms": None
            if first_s is None
            else round((first_s - self.arrival_s) * 1e3, 1),
        }
        logger.log(level, "request %s", outcome, extra={"fields": fields})


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
