"""The token embedding."""

import torch

from tiercel.parallel.context import ParallelContext


class Embedding:
    """One row of the table per token id. A lookup needs the plain order, so it is never packed."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight  # [vocab, hidden]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [tokens] -> [tokens, hidden]. Raises IndexError for an id out of range."""
        return torch.embedding(self.weight, tokens)


class SharedEmbedding(Embedding):
    """A part of the table on each rank; every row is looked up by the one that has it."""

    def __init__(self, weight: torch.Tensor, first: int, ranks: ParallelContext) -> None:
        """weight: [share, hidden], the rows of ids from `first` on."""
        super().__init__(weight)
        self._first = first
        self._ranks = ranks

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Embedding; an id that no rank has is a row of zeros."""
        places = tokens - self._first
        mine = (places >= 0) & (places < len(self.weight))
        rows = torch.embedding(self.weight, places.where(mine, 0)).mul_(mine.unsqueeze(1))
        (found,) = self._ranks.sum_branches((rows,))
        return found
