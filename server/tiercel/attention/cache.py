"""KvCache: the memory of all keys and values. Which block belongs to whom is not known here."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Two views of one layer's memory. A slot holds a token's keys, then its values.

    Keys beside values: one copy writes a token and one gather reads a block, both in one piece.
    """

    slots: torch.Tensor  # [slots, 2 * kv_heads * head_dim]
    blocks: torch.Tensor  # [blocks, block_tokens * 2 * kv_heads * head_dim]


class KvCache:
    """Blocks 0 .. num_blocks - 1 for sequences, and `zero_block`, which nobody ever writes."""

    def __init__(
        self, layers: int, num_blocks: int, block_tokens: int, slot_size: int, dtype: torch.dtype
    ) -> None:
        """slot_size: numbers per token and layer, 2 * kv_heads * head_dim."""
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.zero_block = num_blocks
        # Zeros, not uninitialised: a masked key's weight is 0, and 0 * NaN would still be NaN.
        self._memory = torch.zeros(layers, num_blocks + 1, block_tokens * slot_size, dtype=dtype)
        self.layers = [LayerCache(blocks.view(-1, slot_size), blocks) for blocks in self._memory]

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def clear(self, blocks: list[int]) -> None:
        """Zero these blocks in all layers.

        For blocks that are read before they are full: what another sequence left behind in them,
        perhaps NaN, must not reach this one.
        """
        self._memory.index_fill_(1, torch.tensor(blocks), 0)
