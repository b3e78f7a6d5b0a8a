"""ParallelContext: the place of this process among the ranks that share one model."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ParallelContext:
    """One rank alone. What it would add up with others is already whole."""

    rank: int = 0
    size: int = 1

    def sum_branches(self, partial: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Branches whose sum is that of all `partial` of all ranks; may reuse their memory.

        Several ranks add up their own first, so that one all-reduce is enough.
        """
        return partial
