"""Falcon as a function: the layers in order. No weights files, no cache policy, no serving."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from tiercel.attention.cache import KvCache, LayerCache
from tiercel.layers.attention import Attention, AttentionHeads
from tiercel.layers.embedding import Embedding
from tiercel.layers.fork import Fork, in_turn
from tiercel.layers.inputs import StepInputs, chosen
from tiercel.layers.linear import IntoLinear, KeepsWeight, Linear
from tiercel.layers.norm import Branches, ResidualNorm
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
        self, x: torch.Tensor, branches: Branches, inputs: StepInputs, cache: LayerCache
    ) -> tuple[torch.Tensor, Branches]:
        """The residual stream [tokens, hidden] and what the layer before has yet to add to it.

        Returns the same of this layer, of the tokens that are wanted: the sum is left to whoever
        reads it, beside its norm. Writes the keys and values of all tokens to `cache`.
        """
        ...


@dataclass(frozen=True, slots=True)
class ParallelLayer:
    """x + attention(norm x) + mlp(norm x): 7B and 11B with one norm, 40B and 180B with two."""

    norms: ResidualNorm
    attention: Attention
    mlp: Mlp
    ranks: ParallelContext
    fork: Fork = in_turn

    @property
    def nbytes(self) -> int:
        return self.norms.nbytes + self.attention.nbytes + self.mlp.nbytes

    def __call__(
        self, x: torch.Tensor, branches: Branches, inputs: StepInputs, cache: LayerCache
    ) -> tuple[torch.Tensor, Branches]:
        x, normed = self.norms(x, branches)
        branches = self.fork(
            lambda: self.attention(normed[0], inputs, cache),
            lambda: self.mlp(chosen(normed[-1], inputs.wanted)),
        )
        return chosen(x, inputs.wanted), self.ranks.sum_branches(branches)


@dataclass(frozen=True, slots=True)
class JoinedLayer:
    """A ParallelLayer whose two output projections are one GEMM: [heads | ffn] -> hidden.

    Its weight is theirs side by side, so their sum is made where it is cheapest, in the GEMM.
    """

    norms: ResidualNorm
    attention: AttentionHeads
    up: IntoLinear  # GELU included
    output: Linear
    size: int  # of what goes into `output`, per token
    ranks: ParallelContext
    fork: Fork = in_turn

    @property
    def nbytes(self) -> int:
        ends = self.norms.nbytes + self.output.nbytes
        return ends + self.attention.nbytes + self.up.nbytes

    def __call__(
        self, x: torch.Tensor, branches: Branches, inputs: StepInputs, cache: LayerCache
    ) -> tuple[torch.Tensor, Branches]:
        x, normed = self.norms(x, branches)
        x = chosen(x, inputs.wanted)
        joined = x.new_empty(len(x), self.size)
        size = self.size - self.up.size
        self.fork(
            lambda: self.attention(normed[0], inputs, cache, joined[:, :size]),
            lambda: self.up.into(chosen(normed[-1], inputs.wanted), joined[:, size:]),
        )
        return x, self.ranks.sum_branches((self.output(joined),))


@dataclass(frozen=True, slots=True)
class SequentialLayer:
    """x += attention(norm x), then x += mlp(norm x): Falcon RW."""

    attention_norm: ResidualNorm
    mlp_norm: ResidualNorm
    attention: Attention
    mlp: Mlp
    ranks: ParallelContext

    @property
    def nbytes(self) -> int:
        norms = self.attention_norm.nbytes + self.mlp_norm.nbytes
        return norms + self.attention.nbytes + self.mlp.nbytes

    def __call__(
        self, x: torch.Tensor, branches: Branches, inputs: StepInputs, cache: LayerCache
    ) -> tuple[torch.Tensor, Branches]:
        x, (normed,) = self.attention_norm(x, branches)
        attended = self.attention(normed, inputs, cache)
        summed = self.ranks.sum_branches((attended,))
        x, (normed,) = self.mlp_norm(chosen(x, inputs.wanted), summed)
        return x, self.ranks.sum_branches((self.mlp(normed),))


@dataclass(frozen=True, slots=True)
class Falcon:
    """Immutable; everything that changes comes as an argument."""

    vocab_size: int
    embedding: Embedding
    layers: list[FalconLayer]
    norm: ResidualNorm
    head: Linear
    ranks: ParallelContext

    @property
    def nbytes(self) -> int:
        """Memory of all weights; of a head that is the embedding, once."""
        ends = self.embedding.nbytes + self.norm.nbytes
        ends += self.head.nbytes if self.copied_head else 0
        return ends + sum(layer.nbytes for layer in self.layers)

    @property
    def copied_head(self) -> bool:
        """Whether the head has memory of its own."""
        head = self.head
        return not (isinstance(head, KeepsWeight) and head.shares(self.embedding.weight))

    def forward(self, inputs: StepInputs, cache: KvCache) -> torch.Tensor:
        """The normed residual stream behind the last layer: [tokens + padding, hidden], or
        [wanted, hidden] where the inputs say which. Only what somebody wants goes on to `logits`.

        Writes keys and values of all tokens into `cache`.
        """
        x = self.embedding(inputs.tokens)
        branches: Branches = ()
        # The last layer alone may leave tokens out: attention reads all states of those before.
        whole = inputs if inputs.wanted is None else replace(inputs, wanted=None)
        *others, (last, last_memory) = zip(self.layers, cache.layers, strict=True)
        for layer, memory in others:
            x, branches = layer(x, branches, whole, memory)
        x, branches = last(x, branches, inputs, last_memory)
        _, (hidden,) = self.norm(x, branches)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """hidden: [rows, hidden], rows of what `forward` returned -> [rows, vocab].

        None on ranks other than the first, which draws for all of them.
        """
        return self.ranks.gather_columns(self.head(hidden), self.vocab_size)
