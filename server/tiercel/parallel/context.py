"""ParallelContext: the place of this process among the ranks that share one model."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ParallelContext:
    """One rank alone. What it would add up with others is already whole."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum of `partial` over all ranks; may reuse its memory."""
        return partial
