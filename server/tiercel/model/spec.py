"""FalconSpec: what a config.json says, as enums and numbers the model is built from.

Parsing lives in `config.py`; this module only holds the result. Torch-free.
"""

from dataclasses import dataclass
from enum import Enum


class Position(Enum):
    ROTARY = "rotary"
    ALIBI = "alibi"


class QkvLayout(Enum):
    """How the rows of the fused query_key_value weight are ordered in the checkpoint."""

    MULTI_QUERY = "multi_query"  # all Q, then one K, then one V (7B)
    GROUPED = "grouped"  # per KV head: its Q heads, K, V (40B, 180B, 11B)
    INTERLEAVED = "interleaved"  # per head: Q, K, V (RW)


class Block(Enum):
    SEQUENTIAL = "sequential"  # x + attn(ln1 x), then + mlp(ln2 x) (RW)
    PARALLEL_ONE_NORM = "parallel_one_norm"  # x + attn(ln x) + mlp(ln x) (7B, 11B)
    PARALLEL_TWO_NORM = "parallel_two_norm"  # x + attn(ln_attn x) + mlp(ln_mlp x) (40B, 180B)


@dataclass(frozen=True)
class RopeScaling:
    """`linear` divides positions by `factor`; `dynamic` grows theta with the sequence length.

    Both stretch a model of `original_max_positions` tokens to `FalconSpec.max_positions`.
    """

    kind: str  # "linear" | "dynamic"
    factor: float
    original_max_positions: int = 2048


@dataclass(frozen=True)
class StoredQuantization:
    """How bitsandbytes quantized the linear layers before they were saved."""

    quantize: str  # as --quantize says it: "bitsandbytes", "bitsandbytes-nf4" or "-fp4"
    double_quant: bool = False


@dataclass(frozen=True)
class FalconSpec:
    """One Falcon architecture. Immutable; every number has been checked against the others."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    layer_norm_eps: float
    position: Position
    qkv: QkvLayout
    block: Block
    bias: bool
    tied: bool  # lm_head shares the embedding's weight
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_positions: int  # context length in tokens
    dtype: str  # the checkpoint's: "float32" | "bfloat16" | "float16"
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    quantization: StoredQuantization | None = None  # None: the weights are plain numbers

    @property
    def queries_per_kv(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query_key_value weight."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
