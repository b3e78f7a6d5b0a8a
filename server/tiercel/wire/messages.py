"""Messages between the API process and the engine process, as tagged msgspec structs.

To the engine: Submit, Abort, Shutdown. From the engine: LoadProgress while it starts, EngineReady
or EngineFailed once, then one EngineStep per step, and Heartbeats all along.
"""

import msgspec

from tiercel.wire.request import GenerationRequest


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Requests to queue, in order of arrival."""

    requests: list[GenerationRequest]


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Sequences nobody waits for any more. Unknown ids are ignored: they have ended meanwhile."""

    request_ids: list[int]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Stop now: the API process has drained."""


class RankMemory(msgspec.Struct, frozen=True, array_like=True):
    """What one rank holds all the time; bytes."""

    weights_bytes: int
    cache_bytes: int  # of its part of the pool of KV blocks


class EngineReady(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded and warm. The limits are final: the edge validates against them."""

    model_type: str
    dtype: str
    device: str
    vocab_size: int
    max_total_tokens: int
    max_input_tokens: int
    max_batch_prefill_tokens: int
    max_batch_total_tokens: int  # KV slots of the pool
    max_batch_size: int
    block_tokens: int
    total_blocks: int
    load_s: float
    warmup_s: float
    weights_bytes: int  # of this rank
    quantize: str | None = None  # as --quantize says it, with "+double-quant"; None: plain weights
    cache_bytes: int = 0  # of the pool of KV blocks, on each rank
    ranks: int = 1  # that share the model
    rank_memory: list[RankMemory] = []  # of each of them, this one first
    device_name: str = "cpu"  # in one word, as in x-compute-type: nvidia-a100-sxm4-80gb


class LoadProgress(msgspec.Struct, frozen=True, tag="progress"):
    """How much of the weights is in memory; bytes."""

    done_bytes: int
    total_bytes: int


class EngineFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine could not start, or cannot go on. It exits with `exit_code` after this."""

    message: str  # one sentence for people
    exit_code: int


class Token(msgspec.Struct, frozen=True, array_like=True):
    """One generated token as the edge needs it."""

    id: int
    logprob: float
    top_ids: list[int] = []
    top_logprobs: list[float] = []


class TokenDelta(msgspec.Struct, frozen=True, array_like=True):
    """What one step added to one sequence."""

    request_id: int
    tokens: list[Token]
    finish_reason: str | None = None  # "length" | "eos_token"; stop strings are found at the edge
    error: str | None = None  # a sentence; the sequence has ended
    error_type: str | None = None  # "generation" | "validation" | "slow_client"
    queue_s: float | None = (
        None  # with the first delta: arrival at the engine until first scheduled
    )
    cached_tokens: int = 0  # with the first delta: prompt tokens answered by the prefix cache
    prompt_logprobs: list[float | None] | None = None  # with the first delta, where asked for
    prompt_top_ids: list[list[int]] = []  # with prompt_logprobs, where prompt_top_n is set; [0]=[]
    prompt_top_logprobs: list[list[float]] = []


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """The scheduler's state after a step. Counters only grow."""

    running: int
    waiting: int
    free_blocks: int  # never written or evictable: all of them when nothing runs
    total_blocks: int
    cached_blocks: int  # free blocks whose content a prefix lookup can still find
    preemptions: int
    prefix_hit_tokens: int
    prefix_query_tokens: int
    generated_tokens: int
    aborted: int
    running_max_tokens: int  # KV slots held by running sequences
    waiting_tokens: int = 0  # known tokens of the waiting sequences


class StepTiming(msgspec.Struct, frozen=True, array_like=True):
    """How one step went; seconds."""

    prefill_tokens: int  # tokens of slices longer than one
    decode_rows: int
    forward_s: float
    total_s: float  # schedule to emit; with several steps out: since the one before was emitted
    new_rows: int  # sequences that were admitted in this step
    plan_s: float = 0.0  # of total_s: deciding what runs
    apply_s: float = 0.0  # of total_s: giving the results to the sequences


class EngineStep(msgspec.Struct, frozen=True, tag="step"):
    """One message per step, for all sequences."""

    step: int
    deltas: list[TokenDelta]
    stats: EngineStats
    timing: StepTiming | None


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """Sent every second by a thread of its own, so that a long step is not taken for a dead one."""

    step_running_s: float  # how long the step in progress has taken so far; 0 between steps
    ranks_silent_s: list[float] = []  # how long ranks 1 to N - 1 have not been heard by this one


ToEngine = Submit | Abort | Shutdown
FromEngine = LoadProgress | EngineReady | EngineFailed | EngineStep | Heartbeat

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """The message as MessagePack."""
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    """Raises msgspec.ValidationError for anything but a message to the engine."""
    return _to_engine.decode(data)


def decode_from_engine(data: bytes) -> FromEngine:
    """Raises msgspec.ValidationError for anything but a message from the engine."""
    return _from_engine.decode(data)
