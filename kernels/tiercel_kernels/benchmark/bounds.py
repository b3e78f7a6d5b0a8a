"""The least time that memory and arithmetic allow: shapes of the Falcon family and formulas.

Pure numbers, no torch. A fraction of the bound means something only where bandwidth and peak were
measured on the same card in the same run.
"""

from dataclasses import dataclass, replace

# Bytes of a number of the blocks' weights. nf4 has a float32 scale per 64 numbers, "nf4-double" a
# quantised one; int8 a float32 scale per row.
WEIGHT_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "int8": 1.001,
    "nf4": 0.5625,
    "nf4-double": 0.5159,
}
# What an engine leaves free, and what workspace and graphs take, when the KV cache is sized.
USABLE = 0.92
WORKSPACE_BYTES = 1.25e9


@dataclass(frozen=True, slots=True)
class FalconShape:
    """What the bounds need to know of a model."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    norms: int = 1  # layer norms that read the same residual stream
    parallel: bool = True  # attention and MLP side by side
    alibi: bool = False

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    @property
    def qkv_size(self) -> int:
        """Rows of the fused QKV weight."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def block_params(self) -> int:
        """Numbers in the linear weights of all layers."""
        attention = self.qkv_size + self.heads * self.head_dim
        return self.layers * self.hidden * (attention + 2 * self.ffn)

    @property
    def head_params(self) -> int:
        """Numbers in the output head, and as many in the embedding."""
        return self.vocab * self.hidden

    def with_layers(self, layers: int) -> "FalconShape":
        """The same model with fewer or more layers."""
        return replace(self, layers=layers)


SHAPES = {
    each.name: each
    for each in (
        FalconShape("falcon-7b", 32, 4544, 71, 1, 64, 18176, 65024, True),
        FalconShape("falcon-40b", 60, 8192, 128, 8, 64, 32768, 65024, True, norms=2),
        FalconShape("falcon-180b", 80, 14848, 232, 8, 64, 59392, 65024, True, norms=2),
        FalconShape("falcon-11b", 60, 4096, 32, 8, 128, 16384, 65024, False),
        FalconShape(
            "falcon-rw-1b", 24, 2048, 32, 32, 64, 8192, 50304, True, parallel=False, alibi=True
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one card can do, as measured."""

    bandwidth: float  # bytes per second, of whatever moves most: a copy, or reading alone
    peak: float  # dense 16-bit FLOP per second


@dataclass(frozen=True, slots=True)
class DecodeBound:
    """Of one decode step, in seconds."""

    memory_s: float
    arithmetic_s: float
    serial_s: float  # where GEMMs and attention never run at the same time

    @property
    def overlap_s(self) -> float:
        """Nothing can be faster: all bytes moved and all numbers multiplied, at the same time."""
        return max(self.memory_s, self.arithmetic_s)


def _head_bytes(dtype: str) -> float:
    """Of a number of the head and the embedding: quantised models keep them in 16 bits."""
    return max(2.0, WEIGHT_BYTES[dtype])


def step_bytes(shape: FalconShape, dtype: str = "bfloat16") -> float:
    """Weights that one step reads: the blocks and the head. Rows of the embedding do not count."""
    return shape.block_params * WEIGHT_BYTES[dtype] + shape.head_params * _head_bytes(dtype)


def resident_bytes(shape: FalconShape, dtype: str = "bfloat16") -> float:
    """Weights in memory: also the embedding, where it is not the head's own weight."""
    ends = 1 if shape.tied else 2
    blocks = shape.block_params * WEIGHT_BYTES[dtype]
    return blocks + ends * shape.head_params * _head_bytes(dtype)


def kv_bytes(shape: FalconShape, item_bytes: int = 2) -> int:
    """Keys and values of one token in all layers."""
    return 2 * shape.kv_heads * shape.head_dim * item_bytes * shape.layers


def decode(
    shape: FalconShape,
    limits: Limits,
    batch: int,
    context: float,
    *,
    dtype: str = "bfloat16",
    ranks: int = 1,
) -> DecodeBound:
    """One token for each of `batch` rows that have `context` keys, the new one among them.

    On several ranks, without the all-reduces; KV heads are spread as far as there are any.
    """
    item = 4 if dtype == "float32" else 2
    weights_s = step_bytes(shape, dtype) / ranks / limits.bandwidth
    cached = batch * context * kv_bytes(shape, item) / min(ranks, shape.kv_heads)
    cache_s = cached / limits.bandwidth
    gemm_s = 2 * (shape.block_params + shape.head_params) * batch / ranks / limits.peak
    products = 4 * shape.heads * shape.head_dim * shape.layers * batch * context
    attention_s = products / ranks / limits.peak
    return DecodeBound(
        weights_s + cache_s,
        gemm_s + attention_s,
        max(weights_s, gemm_s) + max(cache_s, attention_s),
    )


def prefill_s(
    shape: FalconShape,
    limits: Limits,
    tokens: int,
    past: int = 0,
    *,
    dtype: str = "bfloat16",
    ranks: int = 1,
) -> float:
    """Seconds for `tokens` of a prompt behind `past` cached ones, with logits of the last one."""
    pairs = tokens * past + tokens * tokens / 2
    flops = 2.0 * shape.block_params * tokens + 2 * shape.head_params
    flops += 4 * shape.heads * shape.head_dim * shape.layers * pairs
    return max(flops / limits.peak, step_bytes(shape, dtype) / limits.bandwidth) / ranks


def kv_tokens(
    shape: FalconShape, card_bytes: float, *, dtype: str = "bfloat16", ranks: int = 1
) -> float:
    """Tokens whose keys and values fit beside the weights on `ranks` cards."""
    free = ranks * (USABLE * card_bytes - WORKSPACE_BYTES) - resident_bytes(shape, dtype)
    copies = ranks / min(ranks, shape.kv_heads)  # a single KV head is on every rank
    return free / (kv_bytes(shape) * copies)


def op_s(moved_bytes: float, flops: float, limits: Limits) -> float:
    """Seconds that one op needs at least: every byte moved once, every product made once."""
    return max(moved_bytes / limits.bandwidth, flops / limits.peak)
