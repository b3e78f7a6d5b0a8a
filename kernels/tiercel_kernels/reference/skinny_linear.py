"""skinny_linear: a linear layer for the few rows of a decode step."""

import torch
from torch.nn import functional

# Beyond this the matrix is no longer read for its own sake, and the vendor's GEMM is the better.
MAX_ROWS = 32


def skinny_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    gelu: bool = False,
) -> torch.Tensor:
    """x W^T + b, with the exact GELU behind it if asked: [rows, out], of x's type.

    x: [rows, in], up to MAX_ROWS rows; weight: [out, in] of x's type; bias: [out] or none. Sums,
    bias and GELU in float32, rounded once. A row's result does not depend on the other rows.
    """
    check(x, weight, bias)
    wide = x.float() @ weight.float().T
    if bias is not None:
        wide = wide + bias.float()
    return (functional.gelu(wide) if gelu else wide).to(x.dtype)


def check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raises ValueError for what does not fit."""
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} do not fit")
    if len(x) > MAX_ROWS:
        raise ValueError(f"x has {len(x)} rows, at most {MAX_ROWS} are skinny")
    if x.dtype != weight.dtype:
        raise ValueError(f"x is {x.dtype}, weight is {weight.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {list(bias.shape)}, weight is {list(weight.shape)}")
