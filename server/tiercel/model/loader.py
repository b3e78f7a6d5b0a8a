"""From a checkpoint to a Falcon: cast, put the QKV rows in one order, hand weights to their layers.

Weights come one at a time; beside the model itself no more than one tensor is in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from tiercel.attention.backend import AttentionBackend
from tiercel.layers.attention import Attention, AttentionHeads
from tiercel.layers.embedding import Embedding, SharedEmbedding
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
from tiercel.model.spec import Block
from tiercel.model.weights import Weights
from tiercel.parallel.context import ParallelContext
from tiercel.parallel.part import Part
from tiercel.parallel.shard import Shard
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
    # The last so many layers have their linear ones from another method: they stay with the host.
    host_layers: int = 0
    host_method: LinearMethod | None = None


class FalconLoader:
    """Builds one Falcon, or a rank's share of it.

    `progress` gets the bytes of the tensors that are done, and of all: whole ones on every rank.

    `device`: of the embedding and the norms; where a linear layer is, its method says.
    """

    def __init__(
        self,
        checkpoint: Weights,
        shard: Shard,
        *,
        dtype: torch.dtype,
        method: LinearMethod,
        ranks: ParallelContext,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._spec = shard.whole
        self._dtype = dtype
        self._method = self._layers_method = method
        self._ranks = ranks
        self._shard = shard
        self._device = device
        self._progress = progress
        self._read_bytes = 0

    def load(self, backend: AttentionBackend, style: LayerStyle | None = None) -> Falcon:
        """Read everything. Raises WeightsError where the checkpoint does."""
        self._style = LayerStyle() if style is None else style
        spec = self._spec
        vocab, shard = self._shard.vocab, self._shard
        table = self._read(EMBEDDING, vocab).to(self._device, self._dtype)
        embedding: Embedding = Embedding(table)
        if shard.ranks > 1:
            embedding = SharedEmbedding(table, shard.rank * shard.vocab_size, self._ranks)
        layers = [self._layer(i, backend) for i in range(spec.num_layers)]
        norm = self._norms("ln_f")
        # On the CPU a tied head is packed from the embedding: vocab x hidden numbers twice in
        # memory (0.6 GB for Falcon-7B in bfloat16), since a lookup needs the plain order and the
        # GEMM gains 1.5 times and more from the packed one.
        head = self._method.plain.build(table if spec.tied else self._read(HEAD, vocab), None)
        return Falcon(spec.vocab_size, embedding, layers, norm, head, self._ranks)

    def _layer(self, number: int, backend: AttentionBackend) -> FalconLayer:
        block, prefix, style = self._spec.block, f"h.{number}.", self._style
        at_host = number >= self._spec.num_layers - style.host_layers
        self._layers_method = (style.host_method if at_host else None) or self._method
        query_key_value = self._linear(
            prefix + "self_attention.query_key_value", self._shard.qkv, reordered=True
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
        if style.joined is not None:
            return self._joined(prefix, norms, heads, style.joined)
        attention, mlp = self._branches(prefix, heads)
        return ParallelLayer(norms, attention, mlp, self._ranks, style.fork)

    def _branches(self, prefix: str, heads: AttentionHeads) -> tuple[Attention, Mlp]:
        attention = Attention(heads, self._linear(prefix + _DENSE, self._shard.attended))
        up = self._linear(prefix + _UP, self._shard.ffn(0), gelu=True)
        return attention, Mlp(up, self._linear(prefix + _DOWN, self._shard.ffn(1)))

    def _joined(
        self, prefix: str, norms: ResidualNorm, heads: AttentionHeads, method: IntoLinearMethod
    ) -> JoinedLayer:
        """The output weights side by side; their biases, where there are any, added up."""
        rows = self._shard.ffn(0)
        weight, bias = self._read(prefix + _UP + ".weight", rows), self._bias(prefix + _UP, rows)
        up = method.build(weight, bias, gelu=True)
        parts = {_DENSE: self._shard.attended, _DOWN: self._shard.ffn(1)}
        weight = torch.cat(
            [self._read(f"{prefix}{name}.weight", part) for name, part in parts.items()], dim=1
        )
        biases = [self._bias(prefix + name, part) for name, part in parts.items()]
        there = [bias for bias in biases if bias is not None]
        output = self._layers_method.build(weight, torch.stack(there).sum(0) if there else None)
        size = weight.shape[1]
        return JoinedLayer(norms, heads, up, output, size, self._ranks, self._style.fork)

    def _linear(
        self, name: str, part: Part, *, gelu: bool = False, reordered: bool = False
    ) -> Linear:
        """A layer over this rank's part of a weight; `reordered` where even one rank's is."""
        weight, alone = name + ".weight", self._shard.ranks == 1
        order = None
        if part.axis == 0 and (reordered or not alone):
            order = torch.tensor(part.indices())
        if self._checkpoint.is_stored(weight):
            stored = self._checkpoint.stored(weight)
            self._count(weight)
            if part.axis == 1 and not alone:
                stored = stored.columns(part)
            bias = self._bias(name, part, whole=True)
            return self._layers_method.build_stored(stored, bias, gelu=gelu, order=order)
        # What a quantized checkpoint holds as it was stays so.
        method = self._layers_method
        if self._spec.quantization is not None:
            method = method.plain
        # One rank reads in the file's order and puts rows in ours: blocks of 4 bits are the file's.
        numbers, bias = self._read(weight, part), self._bias(name, part)
        return method.build(numbers, bias, gelu=gelu, order=order if alone else None)

    def _bias(self, name: str, part: Part, *, whole: bool = False) -> torch.Tensor | None:
        """`whole`: of all rows, to be put in order with the weight's."""
        if not self._spec.bias or (part.axis == 1 and self._shard.rank > 0):
            return None  # the ranks add up what their columns give: one of them has the bias
        if whole or part.axis == 1:
            return self._tensor(name + ".bias")
        return self._read(name + ".bias", part)

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

    def _read(self, name: str, part: Part) -> torch.Tensor:
        """This rank's part of a tensor, and no other bytes. One rank's is the tensor as it is."""
        if self._shard.ranks == 1:
            return self._tensor(name)
        tensor = self._checkpoint.part(name, part)
        self._count(name)
        return tensor

    def _count(self, name: str) -> None:
        self._read_bytes += self._checkpoint.nbytes(name)
        if self._progress is not None:
            self._progress(self._read_bytes, self._checkpoint.total_bytes)
