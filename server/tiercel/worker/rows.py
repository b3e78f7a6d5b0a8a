"""Rows: what a worker remembers of each running sequence between steps.

Plain numpy, allocated once, so that gathering a step's inputs is a few vectorised operations.
"""

import numpy as np
import numpy.typing as npt

from tiercel.attention.units import UNIT_TOKENS
from tiercel.wire.step import RowSlice

IntArray = npt.NDArray[np.int64]


class Rows:
    """Tokens and block tables of up to `max_rows` sequences.

    `tokens` [rows, max_total_tokens], of which the first `known` are valid. `blocks` [rows, ...],
    of which the first `held` belong to the sequence and all others are `zero_block`.
    """

    def __init__(
        self, max_rows: int, max_total_tokens: int, block_tokens: int, zero_block: int
    ) -> None:
        own = -(-max_total_tokens // block_tokens)
        behind = max(UNIT_TOKENS) // block_tokens  # see StepGeometry
        self.tokens: IntArray = np.zeros((max_rows, max_total_tokens), dtype=np.int64)
        self.blocks: IntArray = np.full((max_rows, own + behind), zero_block, dtype=np.int64)
        self.known: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.held: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.logprobs_until = [0] * max_rows  # prompt tokens whose logprobs are wanted: all or 0
        self.prompt_top_n = [0] * max_rows  # best tokens wanted beside each of those
        self.zero_block = zero_block

    def start(
        self, row: int, token_ids: list[int], logprobs_until: int, prompt_top_n: int = 0
    ) -> None:
        """A sequence takes the row; whatever was there is forgotten."""
        self.tokens[row, : len(token_ids)] = token_ids
        self.known[row] = len(token_ids)
        self.blocks[row, : self.held[row]] = self.zero_block
        self.held[row] = 0
        self.logprobs_until[row] = logprobs_until
        self.prompt_top_n[row] = prompt_top_n

    def add_blocks(self, row: int, blocks: list[int]) -> None:
        held = int(self.held[row])
        self.blocks[row, held : held + len(blocks)] = blocks
        self.held[row] = held + len(blocks)

    def append(self, rows: list[int], token_ids: list[int]) -> None:
        """One more token for each of these rows, all different."""
        known = self.known[rows]
        self.tokens[rows, known] = token_ids
        self.known[rows] = known + 1

    def owed(self, each: RowSlice) -> int:
        """How many logprobs of prompt tokens the slice has to give."""
        return max(0, min(each.start + each.count, self.logprobs_until[each.row] - 1) - each.start)

    def all_tokens(self, row: int) -> IntArray:
        """A view of all tokens known of the row; valid until the row changes."""
        return self.tokens[row, : self.known[row]]
