"""vLLM's names for what we count too: for endpoint pickers, autoscalers and boards that know them.

A view of our own families, made when somebody scrapes: nothing is counted twice.
"""

from tiercel.telemetry.catalogue import Family
from tiercel.telemetry.exposition import FamilyText, Labels
from tiercel.telemetry.genai import FINISH_REASONS as _ENDS

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
_LABELS = {
    "reason": "finished_reason",
    "blocks": "num_gpu_blocks",
    "block_tokens": "block_size",
}


class VllmText(FamilyText):
    """One of our families under vLLM's name, with the model's name beside its labels."""

    def __init__(self, family: Family, model: str) -> None:
        super().__init__(family)
        self._model = model

    def name(self) -> str:
        """vLLM's."""
        return VLLM_NAMES[self.family.name]

    def labels(self, values: tuple[str, ...]) -> Labels:
        """vLLM's, and its words for why a request ended."""
        ours = super().labels(values)
        theirs = (
            (_LABELS.get(name, name), _ENDS.get(value, value) if name == "reason" else value)
            for name, value in ours
        )
        return (("model_name", self._model), *theirs)
