"""Falcon as a function: the layers in order. No weights files, no cache policy, no serving."""

from dataclasses import dataclass
from typing import Protocol

import torch

from tiercel.attention.cache import KvCache, LayerCache
from tiercel.layers.attention import Attention
from tiercel.layers.embedding import Embedding
from tiercel.layers.inputs import StepInputs
from tiercel.layers.linear import Linear, PlainLinear
from tiercel.layers.norm import LayerNorm
from tiercel.layers.rotary import Rotary, Rotation
from tiercel.parallel.context import ParallelContext


@dataclass(frozen=True, slots=True)
class Mlp:
    up: Linear  # GELU included
    down: Linear

    @property
    def nbytes(self) -> int:
        return self.up.nbytes + self.down.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x))


class FalconLayer(Protocol):
    @property
    def nbytes(self) -> int: ...

    def __call__(
        self, x: torch.Tensor, inputs: StepInputs, rotation: Rotation | None, cache: LayerCache
    ) -> torch.Tensor:
        """x: [tokens, hidden] -> the same shape. Writes the tokens' keys and values to `cache`."""
        ...


@dataclass(frozen=True, slots=True)
class ParallelLayer:
    """x + attention(norm x) + mlp(norm x): 7B and 11B with one norm, 40B and 180B with two."""

    attention_norm: LayerNorm
    mlp_norm: LayerNorm | None  # None: one norm feeds both
    attention: Attention
    mlp: Mlp
    ranks: ParallelContext

    @property
    def nbytes(self) -> int:
        norms = self.attention_norm.nbytes + (self.mlp_norm.nbytes if self.mlp_norm else 0)
        return norms + self.attention.nbytes + self.mlp.nbytes

    def __call__(
        self, x: torch.Tensor, inputs: StepInputs, rotation: Rotation | None, cache: LayerCache
    ) -> torch.Tensor:
        normed = self.attention_norm(x)
        both = self.attention(normed, inputs, rotation, cache)
        both.add_(self.mlp(normed if self.mlp_norm is None else self.mlp_norm(x)))
        return self.ranks.all_reduce(both).add_(x)


@dataclass(frozen=True, slots=True)
class SequentialLayer:
    """x += attention(norm x), then x += mlp(norm x): Falcon RW."""

    attention_norm: LayerNorm
    mlp_norm: LayerNorm
    attention: Attention
    mlp: Mlp
    ranks: ParallelContext

    @property
    def nbytes(self) -> int:
        norms = self.attention_norm.nbytes + self.mlp_norm.nbytes
        return norms + self.attention.nbytes + self.mlp.nbytes

    def __call__(
        self, x: torch.Tensor, inputs: StepInputs, rotation: Rotation | None, cache: LayerCache
    ) -> torch.Tensor:
        attended = self.attention(self.attention_norm(x), inputs, rotation, cache)
        x = self.ranks.all_reduce(attended).add_(x)
        return self.ranks.all_reduce(self.mlp(self.mlp_norm(x))).add_(x)


@dataclass(frozen=True, slots=True)
class Falcon:
    """Immutable; everything that changes comes as an argument."""

    vocab_size: int
    embedding: Embedding
    layers: list[FalconLayer]
    norm: LayerNorm
    head: Linear
    rotary: Rotary | None  # None: the attention backend adds ALiBi

    @property
    def nbytes(self) -> int:
        """Memory of all weights and tables; of a head that is the embedding, once."""
        ends = self.embedding.nbytes + self.norm.nbytes
        ends += self.head.nbytes if self.copied_head else 0
        tables = 0 if self.rotary is None else self.rotary.nbytes
        return ends + tables + sum(layer.nbytes for layer in self.layers)

    @property
    def copied_head(self) -> bool:
        """Whether the head has memory of its own."""
        head = self.head
        return not (isinstance(head, PlainLinear) and head.shares(self.embedding.weight))

    def forward(self, inputs: StepInputs, cache: KvCache) -> torch.Tensor:
        """The residual stream behind the last layer: [tokens + padding, hidden].

        Writes keys and values of all tokens into `cache`. Only the rows that somebody wants go on
        to `logits`.
        """
        x = self.embedding(inputs.tokens)
        rotation = None if self.rotary is None else self.rotary.at(inputs.positions)
        for layer, memory in zip(self.layers, cache.layers, strict=True):
            x = layer(x, inputs, rotation, memory)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [rows, hidden], rows of what `forward` returned -> [rows, vocab]."""
        return self.head(self.norm(hidden))
