"""What TGI's published Grafana board asks Prometheus: every expression of its panels.

Read from assets/tgi_grafana.json of huggingface/text-generation-inference at commit
db931fcf42da018a3657580c64bf2720f167f9ab (57 expressions, 54 different ones) and put together here
from the metrics they name; the file itself is not here. `$service` is the board's variable.
"""

from collections.abc import Iterator

SERVICE = 'container="$service"'
DECODE, PREFILL = f'method="decode", {SERVICE}', f'method="prefill", {SERVICE}'

# Histograms of which the board shows p50, p90 and p99, over ten minutes.
QUANTILES = [
    ("tgi_request_input_length", SERVICE),
    ("tgi_request_generated_tokens", SERVICE),
    ("tgi_request_mean_time_per_token_duration", SERVICE),
    ("tgi_request_skipped_tokens", SERVICE),
    ("tgi_request_duration", SERVICE),
    ("tgi_request_queue_duration", SERVICE),
    ("tgi_batch_inference_duration", PREFILL),
    ("tgi_batch_inference_duration", DECODE),
    ("tgi_batch_forward_duration", DECODE),
    ("tgi_batch_decode_duration", DECODE),
    ("tgi_batch_filter_duration", DECODE),
    ("tgi_batch_concat_duration", DECODE),
]
# Those that are heat maps besides.
HEATMAPS = [
    ("tgi_request_mean_time_per_token_duration", SERVICE),
    ("tgi_batch_inference_duration", PREFILL),
    *QUANTILES[7:],
]


def quantile(share: float, name: str, labels: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({name}_bucket{{{labels}}}[10m])))"


def expressions() -> Iterator[str]:
    """Each once, as the board writes it."""
    yield f"({quantile(0.5, 'tgi_request_queue_duration', SERVICE)} * 1000) > 0"
    yield f"({quantile(0.5, 'tgi_batch_inference_duration', PREFILL)} * 1000) > 0"
    yield f"({quantile(0.5, 'tgi_batch_forward_duration', DECODE)} * 1000)>0"
    sums = [
        f"rate(tgi_request_generated_tokens_{part}{{{SERVICE}}}[10m])" for part in ("sum", "count")
    ]
    yield f"sum(({' / '.join(sums)})>0)"
    for name, labels in QUANTILES:
        yield from (quantile(share, name, labels) for share in (0.5, 0.9, 0.99))
    for name, labels in HEATMAPS:
        yield f"sum(increase({name}_bucket{{{labels}}}[5m])) by (le)"
    yield f"sum(increase(tgi_request_success{{{SERVICE}}}[1m]))"
    yield f"sum(increase(tgi_request_failure{{{SERVICE}}}[1m])) by (err)"
    yield f"sum(increase(tgi_batch_concat{{{SERVICE}}}[1m])) by (reason)"
    yield f"count(tgi_request_count{{{SERVICE}}})"
    yield f"sum(tgi_queue_size{{{SERVICE}}})"
    yield f"avg(tgi_batch_current_max_tokens{{{SERVICE}}})"
    yield f"avg(tgi_batch_current_size{{{SERVICE}}})"
