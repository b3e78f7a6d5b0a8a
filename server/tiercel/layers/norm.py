"""Layer normalisation, and the residual sum before it."""

from collections.abc import Callable
from typing import Protocol

import torch

Branches = tuple[torch.Tensor, ...]  # what is yet to be added to the residual stream


class LayerNorm:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, over the last dimension."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> None:
        self.weight = weight  # [hidden]
        self.bias = bias  # [hidden]
        self.eps = eps
        self._shape = weight.shape

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.bias.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, hidden] -> a new tensor of the same shape."""
        return torch.layer_norm(x, self._shape, self.weight, self.bias, self.eps)


class ResidualNorm(Protocol):
    """The residual sum and the one or two norms of it: where a branch of the model begins."""

    @property
    def nbytes(self) -> int: ...

    def __call__(
        self, x: torch.Tensor, branches: Branches
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """x and branches: [tokens, hidden] -> their sum, and a new tensor for each norm of it.

        May reuse the branches' memory; x stays as it is.
        """
        ...


class TorchResidualNorm:
    """See ResidualNorm. Branches are added up first, then to x, as transformers does."""

    def __init__(self, norms: tuple[LayerNorm, ...]) -> None:
        self._norms = norms

    @property
    def nbytes(self) -> int:
        return sum(norm.nbytes for norm in self._norms)

    def __call__(
        self, x: torch.Tensor, branches: Branches
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        if branches:
            total, *others = branches
            for other in others:
                total.add_(other)
            x = total.add_(x)
        return x, tuple(norm(x) for norm in self._norms)


MakeResidualNorm = Callable[[tuple[LayerNorm, ...]], ResidualNorm]
