"""Weights: what a loader needs of a checkpoint, so that they may come from elsewhere than files."""

from typing import Protocol

import torch

from tiercel.parallel.part import Part
from tiercel.quantization.stored import Stored


class Weights(Protocol):
    """The weights of one model under canonical names, see `model.checkpoint.Checkpoint`."""

    @property
    def names(self) -> tuple[str, ...]:
        """All canonical names."""
        ...

    @property
    def total_bytes(self) -> int:
        """Sum of `nbytes` over all names."""
        ...

    def nbytes(self, name: str) -> int:
        """Bytes of one tensor, before any cast."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, which the caller owns."""
        ...

    def part(self, name: str, part: Part) -> torch.Tensor:
        """Rows or columns of a tensor that is not there quantized; the caller owns them."""
        ...

    def is_stored(self, name: str) -> bool:
        """Whether the tensor is there quantized."""
        ...

    def stored(self, name: str) -> Stored:
        """A tensor that is."""
        ...
