"""From a checkpoint to a Falcon: cast, put the QKV rows in one order, hand weights to their layers.

Weights come one at a time; beside the model itself no more than one tensor is in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from tiercel.attention.backend import AttentionBackend
from tiercel.layers.attention import Attention, AttentionHeads
from tiercel.layers.embedding import Embedding
from tiercel.layers.fork import Fork, in_turn
from tiercel.layers.linear import IntoLinear, Linear
from tiercel.layers.norm import LayerNorm, MakeResidualNorm, ResidualNorm, TorchResidualNorm
from tiercel.model.checkpoint import EMBEDDING, HEAD
from tiercel.model.falcon import (
    Falcon,
    FalconLayer,
    JoinedLayer,
    Mlp,
    ParallelLayer,
    SequentialLayer,
)
from tiercel.model.spec import Block, FalconSpec
from tiercel.model.weights import Weights
from tiercel.parallel.context import ParallelContext
from tiercel.quantization.method import LinearMethod

Progress = Callable[[int, int], None]

_DENSE = "self_attention.dense"
_UP, _DOWN = "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"


class IntoLinearMethod(Protocol):
    """A LinearMethod whose layers can write where they are told."""

    def build(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False
    ) -> IntoLinear:
        """See LinearMethod."""
        ...


@dataclass(frozen=True, slots=True)
class LayerStyle:
    """How layers are put together; none of it changes what they compute, but for rounding."""

    residual_norm: MakeResidualNorm = TorchResidualNorm
    fork: Fork = in_turn  # attention beside the MLP, in parallel layers
    joined: IntoLinearMethod | None = None  # parallel layers have one output GEMM; this makes `up`


class FalconLoader:
    """Builds one Falcon from one checkpoint. `progress` gets bytes read and bytes in all.

    `device`: of the embedding and the norms; where a linear layer is, its method says.
    """

    def __init__(
        self,
        checkpoint: Weights,
        spec: FalconSpec,
        *,
        dtype: torch.dtype,
        method: LinearMethod,
        ranks: ParallelContext,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._spec = spec
        self._dtype = dtype
        self._method = method
        self._ranks = ranks
        self._device = device
        self._progress = progress
        self._read_bytes = 0

    def load(self, backend: AttentionBackend, style: LayerStyle | None = None) -> Falcon:
        """Read everything. Raises WeightsError where the checkpoint does."""
        self._style = LayerStyle() if style is None else style
        spec = self._spec
        table = self._tensor(EMBEDDING).to(self._device, self._dtype)
        layers = [self._layer(f"h.{i}.", backend) for i in range(spec.num_layers)]
        norm = self._norms("ln_f")
        # On the CPU a tied head is packed from the embedding: vocab x hidden numbers twice in
        # memory (0.6 GB for Falcon-7B in bfloat16), since a lookup needs the plain order and the
        # GEMM gains 1.5 times and more from the packed one.
        head = self._method.plain.build(table if spec.tied else self._tensor(HEAD), None)
        return Falcon(spec.vocab_size, Embedding(table), layers, norm, head)

    def _layer(self, prefix: str, backend: AttentionBackend) -> FalconLayer:
        block = self._spec.block
        query_key_value = self._linear(
            prefix + "self_attention.query_key_value", order=self._qkv_order()
        )
        heads = AttentionHeads(query_key_value, backend)
        if block is Block.SEQUENTIAL:
            attention, mlp = self._branches(prefix, heads)
            first = self._norms(prefix + "input_layernorm")
            second = self._norms(prefix + "post_attention_layernorm")
            return SequentialLayer(first, second, attention, mlp, self._ranks)
        two = block is Block.PARALLEL_TWO_NORM
        names = ("ln_attn", "ln_mlp") if two else ("input_layernorm",)
        norms = self._norms(*(prefix + name for name in names))
        if self._style.joined is not None:
            return self._joined(prefix, norms, heads, self._style.joined)
        attention, mlp = self._branches(prefix, heads)
        return ParallelLayer(norms, attention, mlp, self._ranks, self._style.fork)

    def _branches(self, prefix: str, heads: AttentionHeads) -> tuple[Attention, Mlp]:
        attention = Attention(heads, self._linear(prefix + _DENSE))
        up = self._linear(prefix + _UP, gelu=True)
        return attention, Mlp(up, self._linear(prefix + _DOWN))

    def _joined(
        self, prefix: str, norms: ResidualNorm, heads: AttentionHeads, method: IntoLinearMethod
    ) -> JoinedLayer:
        """The output weights side by side; their biases, where there are any, added up."""
        weight, bias = self._tensor(prefix + _UP + ".weight"), self._bias(prefix + _UP)
        up = method.build(weight, bias, gelu=True)
        names = [prefix + name for name in (_DENSE, _DOWN)]
        weight = torch.cat([self._tensor(name + ".weight") for name in names], dim=1)
        biases = [bias for name in names if (bias := self._bias(name)) is not None]
        bias = torch.stack(biases).sum(0) if biases else None
        output = self._method.build(weight, bias)
        size = weight.shape[1]
        return JoinedLayer(norms, heads, up, output, size, self._ranks, self._style.fork)

    def _linear(
        self, name: str, *, gelu: bool = False, order: torch.Tensor | None = None
    ) -> Linear:
        bias = self._bias(name)
        weight = name + ".weight"
        if self._checkpoint.is_stored(weight):
            stored = self._checkpoint.stored(weight)
            self._count(weight)
            return self._method.build_stored(stored, bias, gelu=gelu, order=order)
        # What a quantized checkpoint holds as it was stays so.
        whole = self._method if self._spec.quantization is None else self._method.plain
        return whole.build(self._tensor(weight), bias, gelu=gelu, order=order)

    def _bias(self, name: str) -> torch.Tensor | None:
        return self._tensor(name + ".bias") if self._spec.bias else None

    def _qkv_order(self) -> torch.Tensor:
        """int64 [qkv]: rows of the fused QKV weight as all queries, all keys, all values.

        Every layout is, for each KV head, its query heads, then its key, then its value: with one
        KV head this is multi-query, with one query head to each it is interleaved.
        """
        spec = self._spec
        groups = torch.arange(spec.qkv_size).view(spec.num_kv_heads, -1, spec.head_dim)
        parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
        return torch.cat([part.reshape(-1) for part in parts])

    def _norms(self, *names: str) -> ResidualNorm:
        return self._style.residual_norm(tuple(self._norm(name) for name in names))

    def _norm(self, name: str) -> LayerNorm:
        weight, bias = self._tensor(name + ".weight"), self._tensor(name + ".bias")
        place = (self._device, self._dtype)
        return LayerNorm(weight.to(*place), bias.to(*place), self._spec.layer_norm_eps)

    def _tensor(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.tensor(name)
        self._count(name)
        return tensor

    def _count(self, name: str) -> None:
        self._read_bytes += self._checkpoint.nbytes(name)
        if self._progress is not None:
            self._progress(self._read_bytes, self._checkpoint.total_bytes)
