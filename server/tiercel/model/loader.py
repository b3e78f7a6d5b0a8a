"""From a checkpoint to a Falcon: cast, put the QKV rows in one order, hand weights to their layers.

Weights come one at a time; beside the model itself no more than one tensor is in memory.
"""

from collections.abc import Callable

import torch

from tiercel.attention.backend import AttentionBackend
from tiercel.layers.attention import Attention
from tiercel.layers.embedding import Embedding
from tiercel.layers.linear import Linear
from tiercel.layers.norm import LayerNorm, MakeResidualNorm, ResidualNorm, TorchResidualNorm
from tiercel.model.checkpoint import EMBEDDING, HEAD
from tiercel.model.falcon import Falcon, FalconLayer, Mlp, ParallelLayer, SequentialLayer
from tiercel.model.spec import Block, FalconSpec
from tiercel.model.weights import Weights
from tiercel.parallel.context import ParallelContext
from tiercel.quantization.method import LinearMethod

Progress = Callable[[int, int], None]


class FalconLoader:
    """Builds one Falcon from one checkpoint. `progress` gets bytes read and bytes in all."""

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

    def load(
        self, backend: AttentionBackend, residual_norm: MakeResidualNorm = TorchResidualNorm
    ) -> Falcon:
        """Read everything. Raises WeightsError where the checkpoint does."""
        self._residual_norm = residual_norm
        spec = self._spec
        table = self._tensor(EMBEDDING).to(self._dtype)
        layers = [self._layer(f"h.{i}.", backend) for i in range(spec.num_layers)]
        norm = self._norms("ln_f")
        # On the CPU a tied head is packed from the embedding: vocab x hidden numbers twice in
        # memory (0.6 GB for Falcon-7B in bfloat16), since a lookup needs the plain order and the
        # GEMM gains 1.5 times and more from the packed one.
        head = self._method.build(table if spec.tied else self._tensor(HEAD), None)
        return Falcon(spec.vocab_size, Embedding(table), layers, norm, head)

    def _layer(self, prefix: str, backend: AttentionBackend) -> FalconLayer:
        block = self._spec.block
        attention = Attention(
            self._linear(prefix + "self_attention.query_key_value", self._ordered),
            self._linear(prefix + "self_attention.dense"),
            backend,
        )
        up = self._linear(prefix + "mlp.dense_h_to_4h", gelu=True)
        mlp = Mlp(up, self._linear(prefix + "mlp.dense_4h_to_h"))
        if block is Block.PARALLEL_TWO_NORM:
            norms = self._norms(prefix + "ln_attn", prefix + "ln_mlp")
            return ParallelLayer(norms, attention, mlp, self._ranks)
        first = self._norms(prefix + "input_layernorm")
        if block is Block.PARALLEL_ONE_NORM:
            return ParallelLayer(first, attention, mlp, self._ranks)
        second = self._norms(prefix + "post_attention_layernorm")
        return SequentialLayer(first, second, attention, mlp, self._ranks)

    def _linear(
        self,
        name: str,
        order: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous,
        *,
        gelu: bool = False,
    ) -> Linear:
        weight = order(self._tensor(name + ".weight"))
        bias = order(self._tensor(name + ".bias")) if self._spec.bias else None
        return self._method.build(weight, bias, gelu=gelu)

    def _ordered(self, fused: torch.Tensor) -> torch.Tensor:
        """Rows of a fused QKV weight or bias as all queries, all keys, all values.

        Every layout is, for each KV head, its query heads, then its key, then its value: with one
        KV head this is multi-query, with one query head to each it is interleaved.
        """
        spec = self._spec
        rest = fused.shape[1:]
        shape = (spec.num_kv_heads, spec.queries_per_kv + 2, spec.head_dim, *rest)
        groups = fused.reshape(shape)
        parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
        return torch.cat([part.reshape(-1, *rest) for part in parts])

    def _norms(self, *names: str) -> ResidualNorm:
        return self._residual_norm(tuple(self._norm(name) for name in names))

    def _norm(self, name: str) -> LayerNorm:
        weight, bias = self._tensor(name + ".weight"), self._tensor(name + ".bias")
        return LayerNorm(weight.to(self._dtype), bias.to(self._dtype), self._spec.layer_norm_eps)

    def _tensor(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.tensor(name)
        self._read_bytes += self._checkpoint.nbytes(name)
        if self._progress is not None:
            self._progress(self._read_bytes, self._checkpoint.total_bytes)
        return tensor.to(self._device)
