"""The memory plan of one device: what goes to what, and how many tokens of KV cache are left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tiercel.model.spec import FalconSpec
from tiercel.plan.cards import Card
from tiercel.plan.graphs import graph_sizes
from tiercel.plan.sizes import RankShape, Storage, kv_bytes_per_token, weight_bytes
from tiercel_kernels.tuning.decode_attention import unit_tokens

PREFILL_TOKENS = 4096
MAX_ROWS = 128
BLOCK_TOKENS = 16
# Each CUDA graph costs about this much, as others have measured (24 to 28 MiB) in servers whose
# graphs end before the logits: activations and cuBLAS' workspaces are in it.
GRAPH_BYTES = 28 << 20
CONTEXT_BYTES = 500_000_000  # a CUDA context with its libraries and their workspaces
HEADROOM = 0.08  # of the card: fragmentation, and what else runs on it


@dataclass(frozen=True)
class Workload:
    """What the server is asked to hold at once. None: the model's context."""

    prefill_tokens: int = PREFILL_TOKENS
    max_rows: int = MAX_ROWS
    max_total_tokens: int | None = None


class Part(NamedTuple):
    """One line of a plan."""

    name: str  # of the MemoryPlan's field
    label: str
    size: int  # bytes


@dataclass(frozen=True)
class MemoryPlan:
    """One device's memory in bytes. `cache_tokens` is 0 or less where the rest leaves no room."""

    memory: int
    weights: int
    activations: int
    staging: int  # where one weight at a time is written out
    graphs: int
    logits: int
    context: int
    headroom: int
    kv_per_token: int
    sequence_tokens: int  # of the longest sequence

    @property
    def fixed(self) -> int:
        """All but the cache and the headroom."""
        steps = self.activations + self.staging + self.graphs + self.logits
        return self.weights + steps + self.context

    @property
    def cache(self) -> int:
        """Bytes left for the KV cache; negative where the rest alone is too much."""
        return self.memory - self.headroom - self.fixed

    @property
    def cache_tokens(self) -> int:
        """--max-batch-total-tokens: whole blocks of 16."""
        return max(0, self.cache // (self.kv_per_token * BLOCK_TOKENS) * BLOCK_TOKENS)

    @property
    def full_sequences(self) -> int:
        return self.cache_tokens // self.sequence_tokens

    @property
    def fits(self) -> bool:
        """Whether one sequence of full length can be served."""
        return self.full_sequences >= 1

    @property
    def needed(self) -> int:
        """The smallest card that serves one sequence of full length, without headroom."""
        return self.fixed + self.sequence_tokens * self.kv_per_token


def plan_parts(plan: MemoryPlan, load: Workload) -> list[Part]:
    """The table, here and at the server's start. Where nothing is staged, no row says so."""
    parts = [
        Part("memory", "memory", plan.memory),
        Part("headroom", "headroom", plan.headroom),
        Part("context", "CUDA context and libraries", plan.context),
        Part("weights", "weights", plan.weights),
        Part(
            "activations",
            f"activations, {load.prefill_tokens:,} prompt tokens a step",
            plan.activations,
        ),
        Part("staging", "one weight in the activations' type", plan.staging),
        Part("logits", f"logits, {load.max_rows:,} rows", plan.logits),
        Part("graphs", "CUDA graphs", plan.graphs),
        Part("cache", "left for the KV cache", plan.cache),
    ]
    return [part for part in parts if part.name != "staging" or part.size]


def plan_memory(
    spec: FalconSpec, storage: Storage, card: Card, num_shard: int = 1, load: Workload | None = None
) -> MemoryPlan:
    """The plan of each of `num_shard` such cards. Raises ConfigError for an impossible number."""
    load = load or Workload()
    longest = min(load.max_total_tokens or spec.max_positions, spec.max_positions)
    return MemoryPlan(
        memory=card.memory_bytes,
        weights=weight_bytes(spec, storage, num_shard),
        activations=activation_bytes(spec, storage, num_shard, load.prefill_tokens),
        staging=staging_bytes(spec, storage, num_shard) if storage.quantize else 0,
        graphs=graph_bytes(
            spec, storage, num_shard, graph_sizes(load.max_rows), spec.max_positions
        ),
        logits=logits_bytes(spec, storage, load.max_rows),
        context=CONTEXT_BYTES,
        headroom=int(card.memory_bytes * HEADROOM),
        kv_per_token=kv_bytes_per_token(spec, storage, num_shard),
        sequence_tokens=longest,
    )


def activation_bytes(spec: FalconSpec, storage: Storage, num_shard: int, tokens: int) -> int:
    """The largest moment of a step with so many prompt tokens.

    In attention the residual, its norm, QKV, the heads' outputs and their projection are alive; in
    the MLP the residual, its norm, the attention's result, the wide activations and the result.
    """
    rank = RankShape.of(spec, num_shard, storage)
    linears = rank.linears(spec)
    qkv, queries = linears[0][0], linears[1][1]
    attention = 3 * spec.hidden_size + qkv + queries
    mlp = 4 * spec.hidden_size + rank.ffn
    return tokens * max(attention, mlp) * storage.item_bytes


def staging_bytes(spec: FalconSpec, storage: Storage, num_shard: int) -> int:
    """Of a layer's widest weight in the activations' type. All layers and graphs use one place.

    Quantized weights are written out there for more than a few rows, those of the host copied.
    """
    linears = RankShape.of(spec, num_shard, storage).linears(spec)
    return max(out * width for out, width in linears) * storage.item_bytes


def logits_bytes(spec: FalconSpec, storage: Storage, rows: int) -> int:
    """Of all rows' logits: as the head gives them, and in float32 for the sampler."""
    return rows * spec.vocab_size * (storage.item_bytes + 4)


def graph_bytes(
    spec: FalconSpec, storage: Storage, num_shard: int, sizes: Sequence[int], longest_tokens: int
) -> int:
    """Of CUDA graphs of these batch sizes, beside what steps without them take.

    They have memory of their own, enough for the largest, which the smaller ones use too. What ours
    hold besides GRAPH_BYTES: the logits, where the head writes them and where the draw reads them,
    and the results of attention's units of work.
    """
    if not sizes:
        return 0
    rows, rank = max(sizes), RankShape.of(spec, num_shard, storage)
    own = 2 * rows * spec.vocab_size * storage.item_bytes
    units = -(-longest_tokens // unit_tokens(rank.heads // rank.kv_heads))
    if units > 1:
        own += rows * units * rank.heads * (spec.head_dim + 1) * 4
    return len(sizes) * GRAPH_BYTES + own
