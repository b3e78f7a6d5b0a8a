"""Decoding steps as CUDA graphs: one per size of the batch, captured once, all owned here.

A captured step is two graphs, so that rows which want more than the usual draw can share the first:
inputs, model and logits; then the draw. Batches are padded with the padding row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Captured:
    """The graphs of one size. Their tensors are static: the next replay writes over them."""

    inputs: torch.Tensor  # int64 [2, size]: rows and positions
    logits: torch.Tensor | None  # [size, vocab], the beginning of what all sizes share
    ids: torch.Tensor  # int64 [size]
    logprobs: torch.Tensor  # float32 [size]
    model: torch.cuda.CUDAGraph
    draw: torch.cuda.CUDAGraph


class SharedLogits:
    """One tensor for the logits of all graphs, as large as the first of them wants.

    A tensor for each size would be 1.2 GB with 512 rows of 65,024 logits.
    """

    def __init__(self) -> None:
        self._whole: torch.Tensor | None = None

    def room(self, like: torch.Tensor | None) -> torch.Tensor | None:
        """For logits such as these, [rows, vocab]; None on ranks that have none.

        Raises ValueError for more rows than the first call had.
        """
        if like is None:
            return None
        if self._whole is None:
            self._whole = torch.empty_like(like, memory_format=torch.contiguous_format)
        if len(like) > len(self._whole):
            raise ValueError(f"{len(like)} rows of logits after {len(self._whole)}")
        return self._whole[: len(like)]


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
        # One for all sizes: cuBLAS keeps a workspace for every stream that it has seen.
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._logits = SharedLogits()
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
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            for _ in range(2):
                made = self._logits_of(inputs[0], inputs[1])
                self._draw(made, inputs[0], inputs[1] + 1)
        current.wait_stream(self._side)
        logits = self._logits.room(made)
        del made
        model, draw = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(model, pool=self._pool):
            made = self._logits_of(inputs[0], inputs[1])
            if logits is not None and made is not None:
                logits.copy_(made)
            del made  # its memory is free for what is captured next
        with torch.cuda.graph(draw, pool=self._pool):
            ids, logprobs = self._draw(logits, inputs[0], inputs[1] + 1)
        return Captured(inputs, logits, ids, logprobs, model, draw)
