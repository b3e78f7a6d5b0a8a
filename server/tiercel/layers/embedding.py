"""The token embedding."""

import torch


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
