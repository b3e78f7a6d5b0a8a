"""Attention through the kernels' ops: one paged cache for decoding rows and longer slices alike.

Runs on whatever device the ops are for. Nothing here waits for the device, so that a decoding step
can be captured in a CUDA graph.
"""

from dataclasses import dataclass

import torch

from tiercel.attention.cache import LayerCache
from tiercel.layers.rotary import Rotary
from tiercel.model.spec import FalconSpec
from tiercel_kernels.ops import Ops
from tiercel_kernels.reference.decode_plan import DecodePlan
from tiercel_kernels.tuning.decode_attention import unit_tokens


@dataclass(frozen=True, slots=True)
class Decodes:
    """The first rows of a step: one new token each."""

    block_tables: torch.Tensor  # int32 [rows, blocks]
    contexts: torch.Tensor  # int32 [rows], keys of each row, its new one included; 0 is padding
    plan: DecodePlan


@dataclass(frozen=True, slots=True)
class Slices:
    """What follows them: several new tokens each, causal over themselves and their prefix."""

    block_tables: torch.Tensor  # int32 [slices, blocks]
    starts: torch.Tensor  # int32 [slices], the position of each slice's first token
    first_tokens: torch.Tensor  # int32 [slices + 1], where they lie among the step's tokens
    max_count: int


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """What the layers of one step share. Tensors live as long as the step, or as its graph."""

    positions: torch.Tensor  # int64 [tokens], each token's place in its own sequence
    decodes: Decodes | None
    slices: Slices | None


class PagedAttention:
    """See AttentionBackend. `rotary`: for models that turn queries and keys; `slopes`: ALiBi's,
    float32 [heads], for those that do not.
    """

    def __init__(
        self,
        ops: Ops,
        spec: FalconSpec,
        *,
        block_tokens: int,
        max_tokens: int,
        rotary: Rotary | None = None,
        slopes: torch.Tensor | None = None,
    ) -> None:
        """`max_tokens`: of the longest sequence."""
        self._ops = ops
        self._shape = (-1, block_tokens, spec.num_kv_heads, spec.head_dim)
        self._unit_tokens = unit_tokens(spec.queries_per_kv)
        self._max_units = -(-max_tokens // self._unit_tokens)
        self._rotary = rotary
        # Rounded as the weights were trained with, see layers.alibi.bias_table.
        self._slopes = None if slopes is None else slopes.bfloat16().float()

    @property
    def nbytes(self) -> int:
        """See AttentionBackend."""
        tables = (self._rotary, self._slopes)
        return sum(each.nbytes for each in tables if each is not None)

    def decodes(self, block_tables: torch.Tensor, contexts: torch.Tensor) -> Decodes:
        """The work of decoding rows, cut once for all layers. Arguments as in Decodes."""
        plan = self._ops.decode_plan(contexts, self._unit_tokens, self._max_units)
        return Decodes(block_tables, contexts, plan)

    def store(
        self, qkv: torch.Tensor, cache: LayerCache, slots: torch.Tensor, plan: PagedPlan
    ) -> torch.Tensor:
        """See AttentionBackend. Padding has a slot of -1. Returns queries [tokens, heads, dim]."""
        tables = None if self._rotary is None else self._rotary.tables
        return self._ops.qkv_rotary_cache(qkv, tables, plan.positions, slots, *self._views(cache))

    def attend(
        self,
        queries: torch.Tensor,
        cache: LayerCache,
        plan: PagedPlan,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See AttentionBackend."""
        if out is None:
            out = queries.new_empty(len(queries), queries[0].numel())
        heads = out.view(queries.shape)
        views = self._views(cache)
        if plan.decodes is not None:
            step = plan.decodes
            rows = step.contexts.shape[0]
            self._ops.decode_attention(
                queries[:rows],
                *views,
                step.block_tables,
                step.contexts,
                step.plan,
                heads[:rows],
                self._slopes,
            )
        if plan.slices is not None:
            part = plan.slices
            self._ops.prefill_attention(
                queries,
                *views,
                part.block_tables,
                part.starts,
                part.first_tokens,
                part.max_count,
                heads,
                self._slopes,
            )
        return out

    def _views(self, cache: LayerCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values by block: [blocks, block_tokens, kv_heads, head_dim] each."""
        return cache.blocks[0].view(self._shape), cache.blocks[1].view(self._shape)
