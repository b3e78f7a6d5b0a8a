"""DeviceRows: tokens and block tables of all rows, where the model reads them.

A step's inputs are gathered from them on the device, by row and position; so a token that has just
been drawn there is read there, and the host need not have seen it.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tiercel.worker.cuda.transfer import IntArray, Uploads


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """Of the tokens of a step, [tokens] each."""

    tokens: torch.Tensor  # int64
    slots: torch.Tensor  # int64, -1 for padding


class DeviceRows:
    """Rows 0 .. max_rows - 1, and `padding_row`, whose tokens are computed and dropped.

    `tokens` int32 [max_rows + 1, max_total_tokens], `blocks` int32 [max_rows + 1, blocks per row].
    """

    def __init__(
        self, uploads: Uploads, device: torch.device, max_rows: int, max_tokens: int, block: int
    ) -> None:
        """`block`: tokens of a block."""
        self._uploads = uploads
        self._block = block
        self.padding_row = max_rows
        per_row = -(-max_tokens // block)
        self.tokens = torch.zeros(max_rows + 1, max_tokens, dtype=torch.int32, device=device)
        self.blocks = torch.zeros(max_rows + 1, per_row, dtype=torch.int32, device=device)
        self._held = [0] * max_rows
        self._new: list[tuple[int, int, int]] = []  # row, place, block

    def start(self, row: int, token_ids: list[int]) -> None:
        """A sequence takes the row, with the tokens that are known of it."""
        (ids,) = self._uploads.send(np.array(token_ids, dtype=np.int64))
        self.tokens[row, : len(token_ids)] = ids
        self._held[row] = 0
        # A step that failed between `add_blocks` and `flush` has left entries of the row. Sent with
        # the new ones, a place would be written twice, in an order that CUDA does not define.
        self._new = [each for each in self._new if each[0] != row]

    def put(self, tokens: list[tuple[int, int, int]]) -> None:
        """Tokens that were drawn on the host: (row, position, id) each."""
        row, position, ids = self._uploads.send(*columns(tokens))
        self.tokens.index_put_((row, position), ids.int())

    def add_blocks(self, row: int, blocks: list[int]) -> None:
        """The row's table grows, on the device with the next `flush`."""
        held = self._held[row]
        self._new.extend((row, held + i, block) for i, block in enumerate(blocks))
        self._held[row] = held + len(blocks)

    def flush(self) -> None:
        """Send what `add_blocks` has collected."""
        if not self._new:
            return
        row, place, block = self._uploads.send(*columns(self._new))
        self.blocks.index_put_((row, place), block.int())
        self._new.clear()

    def gather(self, rows: torch.Tensor, positions: torch.Tensor) -> TokenInputs:
        """The inputs of tokens at these positions of these rows: int64 [tokens] each."""
        blocks = self.blocks[rows, positions // self._block].long()
        slots = blocks * self._block + positions % self._block
        return TokenInputs(
            self.tokens[rows, positions].long(),
            torch.where(rows == self.padding_row, -1, slots),
        )

    def contexts(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Keys that a token at each position sees, its own included; 0 for padding: int32."""
        return torch.where(rows == self.padding_row, 0, positions + 1).int()


def columns(triples: list[tuple[int, int, int]]) -> list[IntArray]:
    """Three arrays, for one upload."""
    return list(np.array(triples, dtype=np.int64).T.copy())
