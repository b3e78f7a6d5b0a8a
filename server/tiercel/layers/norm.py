"""Layer normalisation."""

import torch


class LayerNorm:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, over the last dimension."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> None:
        self._weight = weight  # [hidden]
        self._bias = bias  # [hidden]
        self._eps = eps
        self._shape = weight.shape

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes + self._bias.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, hidden] -> a new tensor of the same shape."""
        return torch.layer_norm(x, self._shape, self._weight, self._bias, self._eps)
