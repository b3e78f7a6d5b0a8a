"""The exposition: exact names, exact bounds, valid text; and what a step does to it."""

import time
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tiercel.telemetry.metrics import Metrics
from tiercel.wire.messages import EngineStats, EngineStep, StepTiming, Token, TokenDelta


@dataclass(frozen=True)
class _Limits:
    max_input_tokens: int = 1000
    max_total_tokens: int = 2000


STATS = EngineStats(
    running=3,
    waiting=2,
    free_blocks=70,
    total_blocks=100,
    cached_blocks=5,
    preemptions=4,
    prefix_hit_tokens=32,
    prefix_query_tokens=64,
    generated_tokens=9,
    aborted=1,
    running_max_tokens=480,
)
IDLE = EngineStats(0, 0, 100, 100, 5, 6, 32, 64, 9, 1, 0)


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.configure(_Limits())
    return metrics


def _step(
    *, prefill_tokens: int = 0, new_rows: int = 0, error: str | None = None, rows: int = 3
) -> EngineStep:
    deltas = [TokenDelta(row, [Token(1, -0.5)], error=error) for row in range(rows)]
    timing = StepTiming(
        prefill_tokens=prefill_tokens,
        decode_rows=rows,
        forward_s=0.01,
        total_s=0.012,
        new_rows=new_rows,
    )
    return EngineStep(1, deltas, STATS, timing)


def _samples(metrics: Metrics) -> dict[str, float]:
    """Every line of the exposition as name{labels} → value."""
    lines = metrics.render().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def _bounds(metrics: Metrics, family: str) -> list[float]:
    prefix = f'{family}_bucket{{le="'
    names = [name for name in _samples(metrics) if name.startswith(prefix)]
    bounds = [name[len(prefix) : -2] for name in names]
    assert bounds[-1] == "+Inf"
    return [float(bound) for bound in bounds[:-1]]


def test_names_are_tgis(metrics: Metrics) -> None:
    for name in ("count", "success"):
        getattr(metrics.requests, name).inc()
    metrics.requests.failure.labels("dropped").inc()
    metrics.observe_step(_step(prefill_tokens=5, new_rows=2))
    text = metrics.render().decode()
    assert "_total" not in text.replace("tiercel_kv_blocks_total", "")
    assert "_created" not in text
    counters = {
        "tgi_request_count", "tgi_request_success", "tgi_request_failure", "tgi_batch_concat",
        "tgi_batch_inference_count", "tgi_batch_inference_success", "tgi_batch_inference_failure",
        "tiercel_preemptions", "tiercel_prefix_cache_hit_tokens",
        "tiercel_prefix_cache_query_tokens", "tiercel_requests_cancelled",
    }  # fmt: skip
    gauges = {
        "tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens",
        "tiercel_kv_blocks_free", "tiercel_kv_blocks_total",
    }  # fmt: skip
    histograms = {
        "tgi_request_duration", "tgi_request_validation_duration", "tgi_request_queue_duration",
        "tgi_request_inference_duration", "tgi_request_mean_time_per_token_duration",
        "tgi_request_generated_tokens", "tgi_request_input_length", "tgi_request_max_new_tokens",
        "tgi_batch_next_size", "tgi_batch_inference_duration", "tgi_batch_forward_duration",
        "tgi_batch_decode_duration", "tgi_batch_filter_duration", "tgi_batch_concat_duration",
        "tiercel_time_to_first_token_seconds", "tiercel_inter_token_seconds",
    }  # fmt: skip
    types = {
        line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")
    }
    assert types == {
        **dict.fromkeys(counters, "counter"),
        **dict.fromkeys(gauges, "gauge"),
        **dict.fromkeys(histograms, "histogram"),
        "tgi_request_skipped_tokens": "summary",
    }
    samples = _samples(metrics)
    assert samples["tgi_request_count"] == 1
    assert samples['tgi_request_failure{err="dropped"}'] == 1


def test_the_text_is_valid(metrics: Metrics) -> None:
    metrics.requests.duration.observe(0.2)
    metrics.observe_step(_step(prefill_tokens=5, new_rows=2))
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert len({family.name for family in families}) == len(families) > 25
    assert all(family.documentation for family in families)


def test_bounds(metrics: Metrics) -> None:
    durations = [0.0001 * 1.5**k for k in range(1, 36)]
    for family in ("tgi_request_duration", "tgi_request_queue_duration"):
        assert _bounds(metrics, family) == pytest.approx(durations)
    assert durations[0] == pytest.approx(0.00015) and durations[-1] == pytest.approx(145.61, 1e-4)
    assert _bounds(metrics, "tgi_request_input_length") == [10.0 * k for k in range(1, 101)]
    assert _bounds(metrics, "tgi_request_generated_tokens") == [20.0 * k for k in range(1, 101)]
    assert _bounds(metrics, "tgi_request_max_new_tokens") == [20.0 * k for k in range(1, 101)]
    assert _bounds(metrics, "tgi_batch_next_size") == [float(n) for n in range(1, 1025)]


def test_a_step_feeds_gauges_and_batch_families(metrics: Metrics) -> None:
    metrics.observe_step(_step(prefill_tokens=40, new_rows=2))
    metrics.observe_step(_step())
    metrics.observe_step(_step())
    samples = _samples(metrics)
    assert samples["tgi_queue_size"] == 2
    assert samples["tgi_batch_current_size"] == 3
    assert samples["tgi_batch_current_max_tokens"] == 480
    assert samples["tiercel_kv_blocks_free"] == 70
    assert samples["tiercel_kv_blocks_total"] == 100
    assert samples['tgi_batch_inference_count{method="prefill"}'] == 1
    assert samples['tgi_batch_inference_count{method="decode"}'] == 2
    assert samples['tgi_batch_inference_success{method="decode"}'] == 2
    assert samples['tgi_batch_forward_duration_sum{method="decode"}'] == pytest.approx(0.02)
    assert samples['tgi_batch_inference_duration_sum{method="decode"}'] == pytest.approx(0.024)
    assert samples['tgi_batch_decode_duration_sum{method="prefill"}'] == pytest.approx(0.002)
    assert samples["tgi_batch_next_size_sum"] == 2
    assert samples["tgi_batch_next_size_count"] == 1
    assert samples["tgi_request_skipped_tokens_count"] == 3


def test_totals_of_the_engine_become_counters(metrics: Metrics) -> None:
    metrics.observe_step(_step())
    metrics.observe_step(_step())
    assert _samples(metrics)["tiercel_preemptions"] == 4
    metrics.observe_stats(IDLE)
    samples = _samples(metrics)
    assert samples["tiercel_preemptions"] == 6
    assert samples["tiercel_prefix_cache_hit_tokens"] == 32
    assert samples["tiercel_prefix_cache_query_tokens"] == 64
    assert samples["tgi_queue_size"] == samples["tgi_batch_current_size"] == 0


def test_a_step_with_a_failed_request_is_no_success(metrics: Metrics) -> None:
    metrics.observe_step(_step(error="bad row"))
    samples = _samples(metrics)
    assert samples['tgi_batch_inference_failure{method="decode"}'] == 1
    assert samples['tgi_batch_inference_success{method="decode"}'] == 0


def test_steps_count_before_the_limits_are_known() -> None:
    metrics = Metrics()
    metrics.observe_step(_step())
    assert _samples(metrics)["tgi_batch_current_size"] == 3
    with pytest.raises(RuntimeError):
        _ = metrics.requests


def test_a_step_costs_little(metrics: Metrics) -> None:
    """Meant to stay under 20 us; ten times that is a change of kind, not noise."""
    step = _step(rows=64, new_rows=1)
    best_s = min(_timed(metrics, step) for _ in range(200))
    assert best_s < 200e-6


def _timed(metrics: Metrics, step: EngineStep) -> float:
    start_s = time.perf_counter()
    metrics.observe_step(step)
    return time.perf_counter() - start_s


@pytest.mark.parametrize(("quantize", "label"), [(None, "none"), ("bitsandbytes-nf4",) * 2])
def test_the_model_is_described(metrics: Metrics, quantize: str | None, label: str) -> None:
    metrics.describe_model("bfloat16", "cpu", quantize)
    line = f'tiercel_model_info{{dtype="bfloat16",device="cpu",quantize="{label}"}} 1\n'
    assert line in metrics.render().decode()
