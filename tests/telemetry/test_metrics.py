"""The exposition: exact names, exact bounds, valid text; and what a step does to it."""

import re
import time
from dataclasses import dataclass

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tiercel.telemetry.exposition import Format, wanted_format
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
    waiting_tokens=77,
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
        plan_s=0.0005,
        apply_s=0.001,
    )
    return EngineStep(1, deltas, STATS, timing)


def _samples(metrics: Metrics) -> dict[str, float]:
    """Every line of the exposition as name{labels} → value."""
    lines = metrics.render().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def _written(metrics: Metrics, family: str) -> list[str]:
    """The values of `le`, as they are written."""
    prefix = f'{family}_bucket{{le="'
    names = [name for name in _samples(metrics) if name.startswith(prefix)]
    bounds = [name[len(prefix) : -2] for name in names]
    assert bounds[-1] == "+Inf"
    return bounds[:-1]


def _bounds(metrics: Metrics, family: str) -> list[float]:
    return [float(bound) for bound in _written(metrics, family)]


TGI = {
    "counter": {
        "tgi_request_count", "tgi_request_success", "tgi_request_failure", "tgi_batch_concat",
        "tgi_batch_inference_count", "tgi_batch_inference_success", "tgi_batch_inference_failure",
    },
    "gauge": {"tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens"},
    "histogram": {
        "tgi_request_duration", "tgi_request_validation_duration", "tgi_request_queue_duration",
        "tgi_request_inference_duration", "tgi_request_mean_time_per_token_duration",
        "tgi_request_generated_tokens", "tgi_request_input_length", "tgi_request_max_new_tokens",
        "tgi_batch_next_size", "tgi_batch_inference_duration", "tgi_batch_forward_duration",
        "tgi_batch_decode_duration", "tgi_batch_filter_duration", "tgi_batch_concat_duration",
    },
    "summary": {"tgi_request_skipped_tokens"},
    "untyped": {"tgi_request_skipped_tokens_bucket"},  # TGI's dashboard asks for it
}  # fmt: skip


def test_names_are_tgis(metrics: Metrics) -> None:
    for name in ("count", "success"):
        getattr(metrics.requests, name).inc()
    metrics.requests.failure.labels("dropped").inc()
    metrics.observe_step(_step(prefill_tokens=5, new_rows=2))
    text = metrics.render().decode()
    assert "_created" not in text
    types = {
        line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")
    }
    theirs = {name: kind for name, kind in types.items() if name.startswith("tgi_")}
    assert theirs == {name: kind for kind, names in TGI.items() for name in names}
    ours = {name: kind for name, kind in types.items() if name not in theirs}
    # The last two are prometheus_client's own.
    assert all(name.startswith(("tiercel_", "process_", "python_")) for name in ours)
    assert {name.endswith("_total") for name, kind in ours.items() if kind == "counter"} == {True}
    assert not any(name.endswith("_total") for name, kind in types.items() if kind != "counter")
    samples = _samples(metrics)
    assert not any(name.startswith("tgi_") and "_total" in name for name in samples)
    assert samples["tgi_request_count"] == 1
    assert samples['tgi_request_failure{err="dropped"}'] == 1


@pytest.mark.parametrize("kind", ["text", "openmetrics"])
def test_the_process_is_described_as_everywhere(metrics: Metrics, kind: Format) -> None:
    text = metrics.render(kind).decode()
    for name in ("process_resident_memory_bytes", "process_open_fds", "python_info{"):
        assert f"\n{name}" in text
    assert text.count("# EOF") == (kind == "openmetrics")


def test_the_text_is_valid(metrics: Metrics) -> None:
    metrics.requests.duration.observe(0.2)
    metrics.observe_step(_step(prefill_tokens=5, new_rows=2))
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert len({family.name for family in families}) == len(families) > 25
    assert all(family.documentation for family in families)


# What a Rust program prints that does what TGI's router does: `value *= 1.5`, 35 times from 0.0001,
# each value by its Display.
DURATIONS = """
0.00015000000000000001 0.00022500000000000002 0.0003375 0.00050625 0.000759375
0.0011390624999999999 0.0017085937499999998 0.0025628906249999996 0.0038443359374999994
0.00576650390625 0.008649755859375 0.0129746337890625 0.01946195068359375 0.029192926025390625
0.043789389038085935 0.0656840835571289 0.09852612533569335 0.14778918800354002
0.22168378200531003 0.33252567300796504 0.49878850951194753 0.7481827642679213 1.122274146401882
1.683411219602823 2.5251168294042348 3.787675244106352 5.681512866159528 8.52226929923929
12.783403948858936 19.175105923288406 28.76265888493261 43.143988327398915 64.71598249109837
97.07397373664756 145.61096060497135
"""


def test_bounds_are_tgis_to_the_letter(metrics: Metrics) -> None:
    metrics.observe_step(_step(prefill_tokens=5, new_rows=2))
    for family in ("tgi_request_duration", "tgi_request_queue_duration"):
        assert _written(metrics, family) == DURATIONS.split()
    value = 0.0001
    for text in DURATIONS.split():
        value *= 1.5
        assert float(text) == value
    tens, twenties = ([f"{n * k}" for k in range(1, 101)] for n in (10, 20))
    assert _written(metrics, "tgi_request_input_length") == tens
    assert _written(metrics, "tgi_request_generated_tokens") == twenties
    assert _written(metrics, "tgi_request_max_new_tokens") == twenties
    assert _written(metrics, "tgi_batch_next_size") == [f"{n}" for n in range(1, 1025)]


def test_whole_bounds_elsewhere_have_a_fraction(metrics: Metrics) -> None:
    """OpenMetrics wants it so, and our own and vLLM's names are the same in both formats."""
    aliased = Metrics(vllm_names_for="m")
    aliased.configure(_Limits())
    for page in (aliased.render("text").decode(), aliased.render("openmetrics").decode()):
        for family in ("tiercel_request_duration_seconds", "vllm:e2e_request_latency_seconds"):
            assert re.search(rf'^{family}_bucket{{[^}}]*le="1\.0"}}', page, re.M)
    assert 'tgi_request_input_length_bucket{le="10.0"}' in page
    assert 'tgi_request_input_length_bucket{le="10"}' in metrics.render().decode()


def test_bounds_that_are_no_whole_numbers() -> None:
    @dataclass(frozen=True)
    class Odd:
        max_input_tokens: int = 2047
        max_total_tokens: int = 2048

    metrics = Metrics()
    metrics.configure(Odd())
    written = _written(metrics, "tgi_request_input_length")
    assert written[:3] == ["20.47", "40.94", "61.41"] and written[-1] == "2047"
    assert [float(text) for text in written] == [2047 / 100 * k for k in range(1, 101)]


def test_a_step_feeds_gauges_and_batch_families(metrics: Metrics) -> None:
    metrics.observe_step(_step(prefill_tokens=40, new_rows=2))
    metrics.observe_step(_step())
    metrics.observe_step(_step())
    samples = _samples(metrics)
    assert samples["tgi_queue_size"] == 2
    assert samples["tgi_batch_current_size"] == 3
    assert samples["tgi_batch_current_max_tokens"] == 480
    assert samples['tiercel_kv_blocks{state="used"}'] == 30
    assert samples['tiercel_kv_blocks{state="cached"}'] == 5
    assert samples['tiercel_kv_blocks{state="free"}'] == 65
    assert samples["tiercel_kv_cache_usage_ratio"] == 0.3
    assert samples["tiercel_requests_running"] == 3
    assert samples["tiercel_requests_waiting"] == 2
    assert samples["tiercel_queue_tokens"] == 77
    assert samples['tiercel_step_duration_seconds_count{method="decode"}'] == 2
    assert samples["tiercel_step_tokens_sum"] == 40 + 3 * 3
    assert samples['tgi_batch_filter_duration_sum{method="decode"}'] == pytest.approx(0.002)
    assert samples['tgi_batch_concat{reason="chunking"}'] == 1  # two joined one that ran
    assert samples['tgi_batch_concat_duration_sum{method="decode"}'] == pytest.approx(0.0005)
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
    assert _samples(metrics)["tiercel_preemptions_total"] == 4
    metrics.observe_stats(IDLE)
    samples = _samples(metrics)
    assert samples["tiercel_preemptions_total"] == 6
    assert samples["tiercel_prefix_cache_hit_tokens_total"] == 32
    assert samples["tiercel_prefix_cache_query_tokens_total"] == 64
    assert samples["tgi_queue_size"] == samples["tgi_batch_current_size"] == 0


def test_openmetrics_is_valid_and_keeps_the_names(metrics: Metrics) -> None:
    metrics.requests.count.inc()
    metrics.requests.duration.observe(0.2, {"trace_id": "ab" * 16})
    metrics.observe_step(_step(prefill_tokens=5, new_rows=2))
    text = metrics.render("openmetrics").decode()
    families = {each.name: each for each in openmetrics.text_string_to_metric_families(text)}
    assert families["tgi_request_count"].type == "unknown"  # a counter would need `_total` there
    assert "\ntgi_request_count 1\n" in text
    assert families["tiercel_preemptions"].type == "counter"
    exemplars = [each.exemplar for each in families["tgi_request_duration"].samples]
    (exemplar,) = [each for each in exemplars if each is not None]
    assert (exemplar.labels, exemplar.value) == ({"trace_id": "ab" * 16}, 0.2)
    assert " # {" not in metrics.render().decode()  # the old format has no exemplars
    page = metrics.render().decode()
    # Whole bounds have a fraction here, and in the text format TGI's have none.
    page = re.sub(r'^(tgi_.*(?:le|quantile)="\d+)"', r'\1.0"', page, flags=re.M)
    names = {line.rpartition(" ")[0] for line in page.splitlines()}
    theirs = {line.partition(" # ")[0].rpartition(" ")[0] for line in text.splitlines()}
    samples = {name for name in names if not name.startswith("#")}
    assert samples == {name for name in theirs if not name.startswith("#")}


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text"),
        ("*/*", "text"),
        ("text/plain;version=0.0.4", "text"),
        ("application/openmetrics-text", "openmetrics"),
        (
            "application/openmetrics-text;version=1.0.0,"
            "application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "openmetrics",
        ),
        ("text/plain, application/openmetrics-text;q=0.5", "text"),
        ("application/openmetrics-text;q=x", "text"),
        ("application/openmetrics-text;q=0", "text"),
    ],
)
def test_the_format_follows_accept(accept: str, kind: str) -> None:
    assert wanted_format(accept) == kind


def test_the_summary_has_tgis_quantiles(metrics: Metrics) -> None:
    for accepted in [0] * 90 + [3] * 9 + [40]:
        metrics.batch.skipped_tokens.observe(accepted)
    samples = _samples(metrics)
    quantiles = {q: samples[f'tgi_request_skipped_tokens{{quantile="{q}"}}'] for q in _QUANTILES}
    assert quantiles == {"0": 0, "0.5": 0, "0.9": 0, "0.95": 3, "0.99": 3, "0.999": 16, "1": 16}
    assert samples["tgi_request_skipped_tokens_count"] == 100
    assert samples["tgi_request_skipped_tokens_sum"] == 67
    assert samples['tgi_request_skipped_tokens_bucket{le="3"}'] == 99


_QUANTILES = ("0", "0.5", "0.9", "0.95", "0.99", "0.999", "1")


def test_lean_buckets_are_few_and_reach_the_limit() -> None:
    metrics = Metrics("lean")
    metrics.configure(_Limits())
    metrics.observe_step(_step(prefill_tokens=5, new_rows=2))
    for family, limit in (
        ("tgi_request_input_length", 1000), ("tgi_request_generated_tokens", 2000),
        ("tgi_request_max_new_tokens", 2000), ("tgi_batch_next_size", 1024),
    ):  # fmt: skip
        bounds = _bounds(metrics, family)
        assert len(bounds) <= 20 and bounds[-1] == limit and bounds == sorted(set(bounds))
    full = Metrics()
    full.configure(_Limits())
    full.observe_step(_step(prefill_tokens=5, new_rows=2))
    assert len(_samples(full)) - len(_samples(metrics)) > 1250


def test_vllms_names() -> None:
    metrics = Metrics(vllm_names_for='a "model"')
    metrics.configure(_Limits())
    metrics.observe_step(_step(prefill_tokens=5, new_rows=2))
    for reason, count in (("eos_token", 2), ("stop_sequence", 3), ("length", 1)):
        metrics.requests.finished.labels(reason).inc(count)
    metrics.requests.time_to_first_token.observe(0.02)
    metrics.server.cache.labels("16", "100").set(1)
    samples = _samples(metrics)
    model = 'model_name="a \\"model\\""'
    assert samples[f"vllm:num_requests_waiting{{{model}}}"] == 2
    assert samples[f"vllm:num_requests_running{{{model}}}"] == 3
    assert samples[f"vllm:kv_cache_usage_perc{{{model}}}"] == 0.3
    assert samples[f'vllm:request_success_total{{{model},finished_reason="stop"}}'] == 5
    assert samples[f'vllm:request_success_total{{{model},finished_reason="length"}}'] == 1
    assert samples[f'vllm:time_to_first_token_seconds_bucket{{{model},le="0.025"}}'] == 1
    assert samples[f'vllm:cache_config_info{{{model},block_size="16",num_gpu_blocks="100"}}'] == 1
    for kind in ("text", "openmetrics"):
        text = metrics.render(kind).decode()  # type: ignore[arg-type]
        parse = text_string_to_metric_families
        families = list(
            (openmetrics.text_string_to_metric_families if kind != "text" else parse)(text)
        )
        assert sum(family.name.startswith("vllm:") for family in families) == 14
    plain = Metrics()
    plain.configure(_Limits())
    assert "vllm:" not in plain.render().decode()


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
