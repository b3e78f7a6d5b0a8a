"""Layers over the kernels' ops: the same mathematics, in fewer passes over memory."""

import torch
from torch.nn import functional

from tiercel.layers.linear import bytes_of
from tiercel.layers.norm import Branches, LayerNorm
from tiercel_kernels.ops import Ops


class FusedResidualNorm:
    """See layers.norm.ResidualNorm: one pass over x. The sum is rounded once, not per branch."""

    def __init__(self, ops: Ops, norms: tuple[LayerNorm, ...]) -> None:
        self._ops = ops
        self._pairs = tuple((norm.weight, norm.bias) for norm in norms)
        self._eps = norms[0].eps
        self._nbytes = sum(norm.nbytes for norm in norms)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def __call__(
        self, x: torch.Tensor, branches: Branches
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return self._ops.residual_norm(x, branches, self._pairs, self._eps)


class OpsLinear:
    """See layers.linear.Linear: the vendor's GEMM, with GELU and its bias in one pass behind it.

    The skinny GEMM is not used before a GPU has shown for which shapes it is faster: see
    kernels/README.md.
    """

    def __init__(
        self, ops: Ops, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False
    ) -> None:
        self._ops = ops
        self._weight = weight  # [out, in]
        self._bias = bias  # [out]
        self._gelu = gelu

    @property
    def nbytes(self) -> int:
        return bytes_of(self._weight, self._bias)

    def shares(self, weight: torch.Tensor) -> bool:
        """See layers.linear.KeepsWeight."""
        return self._weight.data_ptr() == weight.data_ptr()

    @property
    def size(self) -> int:
        """See layers.linear.IntoLinear."""
        return self._weight.shape[0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self._gelu:
            return functional.linear(x, self._weight, self._bias)
        return self._ops.gelu(functional.linear(x, self._weight), self._bias)

    def into(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """See layers.linear.IntoLinear."""
        if not self._gelu:
            return out.copy_(functional.linear(x, self._weight, self._bias))
        return self._ops.gelu(functional.linear(x, self._weight), self._bias, out)
