"""The HTTP edge's slice of the settings. Frozen; made once the engine has told its limits."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EdgeOptions:
    """What the routes may know. Names are TGI's launcher flags where there is one."""

    model_id: str  # as users know the model: the hub name or the folder given
    model_sha: str | None = None
    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_client_batch_size: int = 4
    max_input_tokens: int = 1023  # per request, after truncation; final once the engine is ready
    max_total_tokens: int = 1024  # per request: input and new tokens
    max_batch_size: int | None = None
    max_batch_total_tokens: int = 0
    max_batch_prefill_tokens: int = 0
    waiting_served_ratio: float = 0.3  # reported by /info only
    max_waiting_tokens: int = 20  # reported by /info only
    payload_limit: int = 2_000_000  # bytes of one request body
    validation_workers: int = 2  # tokenizer threads
    enable_prefill_logprobs: bool = False
    grammar_support: bool = True
    cors_allow_origin: tuple[str, ...] = ()  # empty: any origin
    protect_metrics: bool = False  # /metrics and /info need an admin key
    compute_type: str = "1-cpu"
    model_dtype: str = "float32"
    quantize: str | None = None  # how the linear layers are stored; None: as numbers of model_dtype
    model_device_type: str = "cpu"
    vocab_size: int = 0  # width of the logits
    keep_alive_s: float = 15.0  # a comment line on a silent stream
    send_timeout_s: float = 30.0
    docs: bool = True  # /docs and the OpenAPI description
    playground: bool = True
    health_route: str | None = None  # Vertex AI's own paths, beside /health and /vertex
    predict_route: str | None = None
    docker_label: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
