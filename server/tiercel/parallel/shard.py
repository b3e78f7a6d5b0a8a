"""Shard: one rank's share of a Falcon, as numbers and as parts of the checkpoint's tensors.

Rows of QKV and of the MLP's first matrix, columns of the two matrices behind them, and rows of the
embedding and the head are dealt out; norms are on every rank. Torch-free.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from tiercel.model.spec import FalconSpec
from tiercel.parallel.head_plan import PADDING, HeadPlan
from tiercel.parallel.part import Part, Run, even_part, even_share, joined


@dataclass(frozen=True)
class Shard:
    """What rank `rank` of `ranks` holds of `whole`."""

    whole: FalconSpec
    rank: int = 0
    ranks: int = 1
    unit: int = 1  # the MLP's columns are dealt out by so many: blocks of 4 bits are not cut

    @cached_property
    def plan(self) -> HeadPlan:
        """Raises ConfigError for a number of ranks that the heads cannot be dealt to."""
        return HeadPlan.of(self.whole.num_heads, self.whole.num_kv_heads, self.ranks)

    @property
    def heads(self) -> tuple[int, ...]:
        """The query heads, PADDING among them."""
        return self.plan.query[self.rank]

    @cached_property
    def spec(self) -> FalconSpec:
        """A spec with this rank's numbers of heads and MLP columns; the vocabulary is the whole."""
        return replace(
            self.whole,
            num_heads=self.plan.heads,
            num_kv_heads=self.plan.kv_heads,
            ffn_size=even_share(self.whole.ffn_size, self.ranks, self.unit),
        )

    @property
    def qkv(self) -> Part:
        """Rows of the fused QKV weight: all queries, all keys, all values of this rank.

        Every layout is, for each KV head, its query heads, then its key, then its value: with one
        KV head this is multi-query, with one query head to each it is interleaved.
        """
        dim, group = self.whole.head_dim, self.whole.queries_per_kv
        runs = []
        for head in self.heads:
            place = None if head == PADDING else head // group * (group + 2) + head % group
            runs.append(Run(None if place is None else place * dim, dim))
        for offset in (group, group + 1):
            kv = self.plan.kv[self.rank]
            runs += [Run((each * (group + 2) + offset) * dim, dim) for each in kv]
        return joined(0, runs)

    @property
    def attended(self) -> Part:
        """Columns of the attention's output projection."""
        dim = self.whole.head_dim
        firsts = [None if head == PADDING else head * dim for head in self.heads]
        return joined(1, [Run(first, dim) for first in firsts])

    def ffn(self, axis: int) -> Part:
        """Rows of the MLP's first matrix, or columns of its second."""
        return even_part(axis, self.whole.ffn_size, self.rank, self.ranks, self.unit)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding on every rank, zeros included."""
        return even_share(self.whole.vocab_size, self.ranks)

    @property
    def vocab(self) -> Part:
        """Rows of the embedding and of the head."""
        return even_part(0, self.whole.vocab_size, self.rank, self.ranks)
