"""Bytes of a Falcon's weights, on one of N ranks, and of its KV cache.

A rank holds whole query heads (71 become 72 for two ranks), at least one KV head, and an even share
of the MLP and of the vocabulary.
"""

from dataclasses import dataclass

from tiercel.errors import ConfigError
from tiercel.model.spec import Block, FalconSpec
from tiercel.parallel.shard import Shard

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BLOCK = 64  # weights that share an absmax in 4 bits
NESTED_BLOCK = 256  # of those that share a second one with double quantization

# --quantize's names. Without one: 16 bits, or what --dtype says.
FOUR_BITS = ("bitsandbytes-nf4", "bitsandbytes-fp4")
QUANTIZATIONS = ("bitsandbytes", *FOUR_BITS, "bitsandbytes-llm-int8")


@dataclass(frozen=True)
class Storage:
    """How the linear layers are stored: a mode of --quantize, and the dtype of all the rest."""

    quantize: str | None
    double_quant: bool
    dtype: str

    def __post_init__(self) -> None:
        if self.quantize not in (None, *QUANTIZATIONS):
            names = ", ".join(QUANTIZATIONS)
            raise ConfigError(f"--quantize {self.quantize} is not supported; it can be {names}")
        if self.double_quant and not self.four_bit:
            raise ConfigError(
                "--double-quant needs --quantize bitsandbytes-nf4 or bitsandbytes-fp4: only they "
                "have block statistics to quantize again"
            )

    @property
    def four_bit(self) -> bool:
        return self.quantize in FOUR_BITS

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def unit(self) -> int:
        """Columns that only go to a rank together: in 4 bits they share a scale."""
        return BLOCK if self.four_bit else 1

    @property
    def label(self) -> str:
        """As the flags are written, or the dtype."""
        if self.quantize is None:
            return self.dtype
        return self.quantize + (" --double-quant" if self.double_quant else "")

    def matrix(self, out: int, width: int) -> int:
        """Bytes of a linear layer's weight [out, width]."""
        numbers = out * width
        if self.quantize is None:
            return numbers * self.item_bytes
        if not self.four_bit:
            return numbers + 4 * out
        blocks = -(-numbers // BLOCK)
        codes = -(-numbers // 2)
        if not self.double_quant:
            return codes + 4 * blocks
        return codes + blocks + 4 * -(-blocks // NESTED_BLOCK)


def chosen_storage(
    spec: FalconSpec, quantize: str | None, double_quant: bool, dtype: str
) -> Storage:
    """What is in force: the flags' wish, or what the checkpoint already is.

    Raises ConfigError where the two contradict each other, and for what cannot be at all.
    """
    stored = spec.quantization
    if stored is None:
        return Storage(quantize, double_quant, dtype)
    exact = quantize == "bitsandbytes-llm-int8" and stored.quantize == "bitsandbytes"
    if quantize not in (None, stored.quantize) and not exact:
        raise ConfigError(
            f"--quantize {quantize}: the checkpoint is saved as {stored.quantize}; leave the flag "
            "out, or use the original weights"
        )
    if double_quant and not stored.double_quant:
        raise ConfigError(
            "--double-quant: the checkpoint is saved without it; leave the flag out, or use the "
            "original weights"
        )
    return Storage(quantize or stored.quantize, stored.double_quant, dtype)


@dataclass(frozen=True)
class RankShape:
    """What one of N ranks holds of every layer, in heads and columns."""

    heads: int
    kv_heads: int
    ffn: int
    vocab: int

    @classmethod
    def of(cls, spec: FalconSpec, num_shard: int, storage: Storage) -> "RankShape":
        """Raises ConfigError for a number of ranks that the heads cannot be dealt to."""
        shard = Shard(spec, ranks=num_shard, unit=storage.unit)
        rank = shard.spec
        return cls(rank.num_heads, rank.num_kv_heads, rank.ffn_size, shard.vocab_size)

    def linears(self, spec: FalconSpec) -> tuple[tuple[int, int], ...]:
        """[out, in] of a layer's weights: QKV, attention output, MLP up, MLP down."""
        queries = self.heads * spec.head_dim
        qkv = queries + 2 * self.kv_heads * spec.head_dim
        hidden = spec.hidden_size
        return (qkv, hidden), (hidden, queries), (self.ffn, hidden), (hidden, self.ffn)


def linear_bytes(spec: FalconSpec, storage: Storage, num_shard: int = 1) -> int:
    """Of all layers' weights and biases, on one rank: what a step reads of them."""
    linears = RankShape.of(spec, num_shard, storage).linears(spec)
    biases = sum(out for out, _ in linears) * storage.item_bytes if spec.bias else 0
    return spec.num_layers * (sum(storage.matrix(*shape) for shape in linears) + biases)


def head_bytes(spec: FalconSpec, storage: Storage, num_shard: int = 1) -> int:
    """Of the output head, and as many of the embedding: never quantized."""
    return RankShape.of(spec, num_shard, storage).vocab * spec.hidden_size * storage.item_bytes


def weight_bytes(
    spec: FalconSpec, storage: Storage, num_shard: int = 1, *, copied_head: bool = False
) -> int:
    """Resident weights of one rank. `copied_head`: a tied head that keeps a copy of its own."""
    norms = {Block.SEQUENTIAL: 2, Block.PARALLEL_ONE_NORM: 1, Block.PARALLEL_TWO_NORM: 2}
    vectors = 2 * (norms[spec.block] * spec.num_layers + 1) * spec.hidden_size
    ends = 1 if spec.tied and not copied_head else 2
    return (
        linear_bytes(spec, storage, num_shard)
        + ends * head_bytes(spec, storage, num_shard)
        + vectors * storage.item_bytes
    )


def kv_bytes_per_token(spec: FalconSpec, storage: Storage, num_shard: int = 1) -> int:
    """Of one token's keys and values in all layers, on one rank."""
    kv_heads = RankShape.of(spec, num_shard, storage).kv_heads
    return 2 * spec.num_layers * kv_heads * spec.head_dim * storage.item_bytes
