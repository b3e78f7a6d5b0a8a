"""The engine's slice of the settings: frozen, made once by the API process, sent at start."""

import msgspec

LOCALHOST = "127.0.0.1"
DEFAULT_PREFILL_TOKENS = 4096  # of a step, where --max-batch-prefill-tokens does not say


class World(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The place of a process among those that share one model, and where they meet."""

    rank: int
    size: int
    local_rank: int  # among the ranks of its machine
    local_size: int
    address: str  # of the store they meet at: a host of rank 0's machine
    port: int
    hosted: bool = False  # somebody else (torchrun) runs the store already
    attempt: int = 0  # how often the group was started again


class EngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the engine process may know. None: derived from the model and the machine."""

    model_path: str  # a local folder; downloads happen before the engine starts
    dtype: str | None = None  # "float32" | "bfloat16" | "float16"; None is the checkpoint's
    quantize: str | None = None  # a name of --quantize; None: what the checkpoint is
    double_quant: bool = False
    cpu_offload_gb: float = 0.0  # of each rank's linear layers, 10^9 bytes; on a GPU only
    device: str = "auto"  # "cpu" | "cuda" | "auto"
    block_tokens: int = 16
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_batch_prefill_tokens: int | None = None
    max_batch_total_tokens: int | None = None
    max_batch_size: int | None = None
    max_concurrent_requests: int = 128
    prefix_caching: bool = True
    step_stretch: float = 4.25  # decode steps that a step with prefill may take; 0: no cap
    grammar_support: bool = True
    watermark_gamma: float = 0.5
    watermark_delta: float = 2.0
    memory_fraction: float = 1.0  # TGI's --cuda-memory-fraction, of the free memory
    rope_scaling: str | None = None  # "linear" | "dynamic", instead of the config's
    rope_factor: float | None = None
    cuda_graphs: bool = True  # decoding steps are captured, by sizes of the batch
    cuda_graph_sizes: tuple[int, ...] | None = None  # None: chosen by max_rows
    # On a GPU, parallel layers only; not measured yet, so off.
    joined_output: bool = False  # one output GEMM over attention's and the MLP's inputs
    fork_attention: bool = False  # attention on a stream beside the MLP; not if quantized
    overlap: bool = True  # the next step is submitted before the tokens of the last one are here
    # Ranks of this machine that share the model, unless there is a `world`; 0: one for each GPU.
    num_shard: int = 1
    rendezvous_port: int | None = None  # where those meet; None: a free one
    world: World | None = None  # ranks that somebody else (torchrun, Ray) starts
    one_shot_all_reduce: bool = False  # small sums read the other GPUs' memory; not run yet
    nccl_shared_memory: bool = True  # NCCL_SHM_DISABLE says otherwise
    rank_timeout_s: float = 10.0  # without a sign of life of a rank, the group is given up
    threads: int | None = None  # intra-op threads; None is the number of cores this process may use
    log_level: str = "info"
    log_json: bool = False
