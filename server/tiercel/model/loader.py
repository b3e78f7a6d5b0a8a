"""From a checkpoint to a Falcon: cast, put the QKV rows in one order, hand weights to their layers.

Weights come one at a time; beside the model itself no more than one tensor is in memory.
"""

from collections.abc import Callable

import torch

from tiercel.attention.backend import AttentionBackend
from tiercel.layers.attention import Attention
from tiercel.layers.embedding import Embedding
from tiercel.layers.linear import Linear
from tiercel.layers.norm import LayerNorm
from tiercel.layers.rotary import Rotary
from tiercel.model.checkpoint import EMBEDDING, HEAD, Checkpoint
from tiercel.model.falcon import Falcon, FalconLayer, Mlp, ParallelLayer, SequentialLayer
from tiercel.model.spec import Block, FalconSpec, Position
from tiercel.parallel.context import ParallelContext
from tiercel.quantization.method import LinearMethod

Progress = Callable[[int, int], None]


class FalconLoader:
    """Builds one Falcon from one checkpoint. `progress` gets bytes read and bytes in all."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: FalconSpec,
        *,
        dtype: torch.dtype,
        method: LinearMethod,
        ranks: ParallelContext,
        progress: Progress | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._spec = spec
        self._dtype = dtype
        self._method = method
        self._ranks = ranks
        self._progress = progress
        self._read_bytes = 0

    def load(self, backend: AttentionBackend, positions: int) -> Falcon:
        """Read everything. `positions`: the longest sequence that will run.

        Raises WeightsError where the checkpoint does.
        """
        spec = self._spec
        table = self._tensor(EMBEDDING).to(self._dtype)
        layers = [self._layer(f"h.{i}.", backend) for i in range(spec.num_layers)]
        rotary = None
        if spec.position is Position.ROTARY:
            rotary = Rotary(
                spec.head_dim,
                positions,
                theta=spec.rope_theta,
                scaling=spec.rope_scaling,
                dtype=self._dtype,
            )
        norm = self._norm("ln_f")
        # A tied head is packed from the embedding: vocab x hidden numbers twice in memory (0.6 GB
        # for Falcon-7B in bfloat16), since a lookup needs the plain order and the GEMM gains 1.5
        # times and more from the packed one.
        head = self._method.plain.build(table if spec.tied else self._tensor(HEAD), None)
        return Falcon(spec.vocab_size, Embedding(table), layers, norm, head, rotary)

    def _layer(self, prefix: str, backend: AttentionBackend) -> FalconLayer:
        spec, block = self._spec, self._spec.block
        attention = Attention(
            self._linear(prefix + "self_attention.query_key_value", order=self._qkv_order()),
            self._linear(prefix + "self_attention.dense"),
            backend,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
        )
        up = self._linear(prefix + "mlp.dense_h_to_4h", gelu=True)
        mlp = Mlp(up, self._linear(prefix + "mlp.dense_4h_to_h"))
        if block is Block.PARALLEL_TWO_NORM:
            norms = self._norm(prefix + "ln_attn"), self._norm(prefix + "ln_mlp")
            return ParallelLayer(*norms, attention, mlp, self._ranks)
        first = self._norm(prefix + "input_layernorm")
        if block is Block.PARALLEL_ONE_NORM:
            return ParallelLayer(first, None, attention, mlp, self._ranks)
        second = self._norm(prefix + "post_attention_layernorm")
        return SequentialLayer(first, second, attention, mlp, self._ranks)

    def _linear(
        self, name: str, *, gelu: bool = False, order: torch.Tensor | None = None
    ) -> Linear:
        bias = self._tensor(name + ".bias") if self._spec.bias else None
        weight = name + ".weight"
        if self._checkpoint.is_stored(weight):
            stored = self._checkpoint.stored(weight)
            self._count(weight)
            return self._method.build_stored(stored, bias, gelu=gelu, order=order)
        # What a quantized checkpoint holds as it was stays so.
        whole = self._method if self._spec.quantization is None else self._method.plain
        return whole.build(self._tensor(weight), bias, gelu=gelu, order=order)

    def _qkv_order(self) -> torch.Tensor:
        """int64 [qkv]: rows of the fused QKV weight as all queries, all keys, all values.

        Every layout is, for each KV head, its query heads, then its key, then its value: with one
        KV head this is multi-query, with one query head to each it is interleaved.
        """
        spec = self._spec
        groups = torch.arange(spec.qkv_size).view(spec.num_kv_heads, -1, spec.head_dim)
        parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
        return torch.cat([part.reshape(-1) for part in parts])

    def _norm(self, name: str) -> LayerNorm:
        weight, bias = self._tensor(name + ".weight"), self._tensor(name + ".bias")
        return LayerNorm(weight.to(self._dtype), bias.to(self._dtype), self._spec.layer_norm_eps)

    def _tensor(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.tensor(name)
        self._count(name)
        return tensor

    def _count(self, name: str) -> None:
        self._read_bytes += self._checkpoint.nbytes(name)
        if self._progress is not None:
            self._progress(self._read_bytes, self._checkpoint.total_bytes)
