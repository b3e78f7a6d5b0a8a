"""Linear layers as they run: y = x W^T + b, with or without the exact GELU behind it.

Which of them serves a weight is decided by a LinearMethod, once, when the weight is loaded.
"""

from typing import Protocol, runtime_checkable

import torch
from torch.nn import functional


class Linear(Protocol):
    """A loaded linear layer. Immutable."""

    @property
    def nbytes(self) -> int:
        """Memory of the weight and the bias."""
        ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, in] -> a new tensor [tokens, out] of the same dtype."""
        ...


class IntoLinear(Protocol):
    """A loaded linear layer that writes where it is told."""

    @property
    def nbytes(self) -> int:
        """Memory of the weight and the bias."""
        ...

    @property
    def size(self) -> int:
        """Numbers per token that it writes."""
        ...

    def into(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """x: [tokens, in] -> `out` [tokens, size], whose rows may have any stride."""
        ...


class HasBytes(Protocol):
    """A tensor, or what is stored as several."""

    @property
    def nbytes(self) -> int: ...


def bytes_of(*parts: HasBytes | None) -> int:
    """Memory of all of them; a layer may have no bias."""
    return sum(part.nbytes for part in parts if part is not None)


@runtime_checkable
class KeepsWeight(Protocol):
    """A linear layer over its weight as it was given."""

    def shares(self, weight: torch.Tensor) -> bool:
        """Whether the weight is the same memory as this one."""
        ...


class PlainLinear:
    """The weight as it is, through torch's own GEMM."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False
    ) -> None:
        self._weight = weight  # [out, in]
        self._bias = bias  # [out]
        self._gelu = gelu

    @property
    def nbytes(self) -> int:
        return bytes_of(self._weight, self._bias)

    def shares(self, weight: torch.Tensor) -> bool:
        """See KeepsWeight."""
        return self._weight.data_ptr() == weight.data_ptr()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, self._weight, self._bias)
        return functional.gelu(y) if self._gelu else y


class PackedLinear:
    """The weight in oneDNN's blocked order; bias and GELU run inside the GEMM.

    Packing copies the weight: what shares it (a tied embedding) keeps its own plain copy.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False
    ) -> None:
        self._bias = bias  # [out]
        self._nbytes = bytes_of(weight, bias)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        # (post-op, its scalars, its algorithm); the GELU algorithm "none" is the exact one.
        self._post: tuple[str, list[float], str] = (
            ("gelu", [], "none") if gelu else ("none", [], "")
        )

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._multiply(x, self._packed, self._bias, *self._post)
        return y


class OneOrMore:
    """One row goes through one layer, more go through another: the same but for rounding."""

    def __init__(self, one: Linear, more: Linear) -> None:
        self._one = one
        self._more = more

    @property
    def nbytes(self) -> int:
        return self._one.nbytes + self._more.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._one(x) if len(x) == 1 else self._more(x)
