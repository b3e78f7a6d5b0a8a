"""vLLM's names for what we count too: for endpoint pickers, autoscalers and boards that know them.

A view of our own families, made when somebody scrapes: nothing is counted twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from tiercel.telemetry.catalogue import Collector, Family

VLLM_NAMES = {
    "tiercel_requests_running": "vllm:num_requests_running",
    "tiercel_requests_waiting": "vllm:num_requests_waiting",
    "tiercel_kv_cache_usage_ratio": "vllm:kv_cache_usage_perc",
    "tiercel_preemptions_total": "vllm:num_preemptions_total",
    "tiercel_prefix_cache_query_tokens_total": "vllm:prefix_cache_queries_total",
    "tiercel_prefix_cache_hit_tokens_total": "vllm:prefix_cache_hits_total",
    "tiercel_prompt_tokens_total": "vllm:prompt_tokens_total",
    "tiercel_generated_tokens_total": "vllm:generation_tokens_total",
    "tiercel_requests_finished_total": "vllm:request_success_total",
    "tiercel_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "tiercel_inter_token_latency_seconds": "vllm:inter_token_latency_seconds",
    "tiercel_request_duration_seconds": "vllm:e2e_request_latency_seconds",
    "tiercel_queue_time_seconds": "vllm:request_queue_time_seconds",
    "tiercel_kv_cache_info": "vllm:cache_config_info",
}
_LABEL_NAMES = {
    "reason": "finished_reason",
    "blocks": "num_gpu_blocks",
    "block_tokens": "block_size",
}
_REASONS = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}


@dataclass(frozen=True)
class _Alias:
    """The samples of one family under another name, with the model's name beside them."""

    inner: Collector
    old: str
    new: str
    model: str

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        for metric in self.inner.collect():
            merged: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
            for sample in metric.samples:
                if sample.name.endswith("_created"):
                    continue
                labels = {"model_name": self.model, **_renamed(sample.labels)}
                name = self.new + sample.name.removeprefix(self.old.removesuffix("_total"))
                key = (name, tuple(labels.items()))
                before = merged[key].value if key in merged else 0.0
                merged[key] = sample._replace(
                    name=name, labels=labels, value=before + sample.value, exemplar=None
                )
            metric.samples = list(merged.values())
            yield metric


def _renamed(labels: dict[str, str]) -> dict[str, str]:
    return {
        _LABEL_NAMES.get(key, key): _REASONS.get(value, value) if key == "reason" else value
        for key, value in labels.items()
    }


def vllm_aliases(families: Sequence[Family], model: str) -> list[Family]:
    """The families under vLLM's names, those that have one."""
    return [
        replace(
            family,
            name=VLLM_NAMES[family.name],
            collector=_Alias(family.collector, family.name, VLLM_NAMES[family.name], model),
        )
        for family in families
        if family.name in VLLM_NAMES
    ]
