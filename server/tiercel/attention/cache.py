"""KvCache: the memory of all keys and values. Which block belongs to whom is not known here."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Two views of one layer's memory, by token and by block; keys first, then values.

    One copy writes keys and values, one gather reads both, and what it reads is one dense matrix of
    keys and one of values for each sequence: batched GEMMs of bfloat16 take it as it is.
    """

    slots: torch.Tensor  # [2, slots, kv_heads * head_dim]
    blocks: torch.Tensor  # [2, blocks, block_tokens * kv_heads * head_dim]


class KvCache:
    """Blocks 0 .. num_blocks - 1 for sequences, and `zero_block`, which nobody ever writes."""

    def __init__(
        self,
        layers: int,
        num_blocks: int,
        block_tokens: int,
        slot_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """slot_size: numbers per token and layer in keys alone, kv_heads * head_dim."""
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.zero_block = num_blocks
        # Zeros, not uninitialised: a masked key's weight is 0, and 0 * NaN would still be NaN.
        shape = (layers, 2, num_blocks + 1, block_tokens * slot_size)
        self._memory = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = [LayerCache(each.view(2, -1, slot_size), each) for each in self._memory]

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def copy(self, copies: list[tuple[int, int, int]]) -> None:
        """Per (source, target, tokens): the target gets the first tokens of the source, then zeros.

        All sources are read before any target is written, so a block may be both.
        """
        sources, targets, counts = zip(*copies, strict=True)
        device = self._memory.device
        read, written = (torch.tensor(each, device=device) for each in (sources, targets))
        self.copy_at(read, written, counts)

    def copy_at(self, sources: torch.Tensor, targets: torch.Tensor, counts: Sequence[int]) -> None:
        """See copy. sources, targets: int64 [copies], where the cache is; waits for no device."""
        read = self._memory.index_select(2, sources)
        by_token = read.view(*read.shape[:3], self.block_tokens, -1)
        for i, count in enumerate(counts):
            by_token[:, :, i, count:] = 0
        self._memory.index_copy_(2, targets, read)

    def clear(self, blocks: list[int]) -> None:
        """Zero these blocks in all layers.

        For blocks that are read before they are full: what another sequence left behind in them,
        perhaps NaN, must not reach this one.
        """
        self._memory.index_fill_(2, torch.tensor(blocks, device=self._memory.device), 0)
