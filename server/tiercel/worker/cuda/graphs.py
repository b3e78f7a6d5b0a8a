"""Decoding steps as CUDA graphs: one per size of the batch, captured once, all owned here.

A captured step is two graphs, so that rows which want more than the usual draw can share the first:
inputs, model and logits; then the draw. Batches are padded with the padding row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

# Between powers of two, padding costs at most 8 rows up to 128 and 16 above.
_SIZES = (1, 2, 4, *range(8, 129, 8), *range(144, 513, 16))


@dataclass(slots=True)
class Captured:
    """The graphs of one size. Their tensors are static: the next replay writes over them."""

    inputs: torch.Tensor  # int64 [2, size]: rows and positions
    logits: torch.Tensor | None  # [size, vocab]
    ids: torch.Tensor  # int64 [size]
    logprobs: torch.Tensor  # float32 [size]
    model: torch.cuda.CUDAGraph
    draw: torch.cuda.CUDAGraph


def graph_sizes(max_rows: int, wanted: tuple[int, ...] | None) -> list[int]:
    """The batch sizes that steps are padded to and captured for, ascending.

    The largest holds all rows, up to 512, unless `wanted` says otherwise.
    """
    if wanted is not None:
        return sorted({size for size in wanted if 0 < size <= max_rows})
    sizes = [size for size in _SIZES if size < max_rows]
    return [*sizes, max_rows] if max_rows <= _SIZES[-1] else sizes


class DecodeGraphs:
    """Owns the graphs and their memory."""

    def __init__(
        self,
        logits_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None],
        draw: Callable[
            [torch.Tensor | None, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
        ],
        padding_row: int,
        device: torch.device,
    ) -> None:
        """`logits_of`(rows, positions) and `draw`(logits, rows, positions of the drawn tokens)
        must not wait for the device.
        """
        self._logits_of = logits_of
        self._draw = draw
        self._padding_row = padding_row
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[int, Captured] = {}  # by size

    def capture(self, sizes: list[int]) -> None:
        """Capture these sizes, the largest first: smaller ones then fit into its memory."""
        for size in sorted(sizes, reverse=True):
            self._captured[size] = self._capture(size)

    def find(self, size: int) -> Captured | None:
        """The graphs of batches of this size."""
        return self._captured.get(size)

    def _capture(self, size: int) -> Captured:
        inputs = torch.zeros(2, size, dtype=torch.int64, device=self._device)
        inputs[0] = self._padding_row
        # Once for real: kernels are compiled and libraries make their workspaces, which must not
        # happen inside of a capture.
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(2):
                self._draw(self._logits_of(inputs[0], inputs[1]), inputs[0], inputs[1] + 1)
        torch.cuda.current_stream(self._device).wait_stream(side)
        model, draw = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(model, pool=self._pool):
            logits = self._logits_of(inputs[0], inputs[1])
        with torch.cuda.graph(draw, pool=self._pool):
            ids, logprobs = self._draw(logits, inputs[0], inputs[1] + 1)
        return Captured(inputs, logits, ids, logprobs, model, draw)
