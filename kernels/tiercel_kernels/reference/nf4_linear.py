"""nf4_linear: a linear layer of few rows whose weight is in 4 bits, nf4 or fp4."""

import torch
from torch.nn import functional

from tiercel_kernels.reference.nf4_dequantize import FourBitWeight, nf4_dequantize
from tiercel_kernels.reference.skinny_linear import MAX_ROWS

__all__ = ["MAX_ROWS", "FourBitWeight", "check", "nf4_linear"]


def nf4_linear(
    x: torch.Tensor,
    weight: FourBitWeight,
    bias: torch.Tensor | None = None,
    gelu: bool = False,
) -> torch.Tensor:
    """x W^T + b, with the exact GELU behind it if asked: [rows, out], of x's type.

    x: [rows, width], up to MAX_ROWS rows; bias: [out] or none. Weights are rounded to x's type, as
    bitsandbytes does; sums, bias and GELU are in float32, rounded once. A row's result does not
    depend on the other rows.
    """
    check(x, weight, bias)
    rounded = nf4_dequantize(weight, x.new_empty(weight.out, weight.width))
    wide = x.float() @ rounded.float().T
    if bias is not None:
        wide = wide + bias.float()
    return (functional.gelu(wide) if gelu else wide).to(x.dtype)


def check(x: torch.Tensor, weight: FourBitWeight, bias: torch.Tensor | None) -> None:
    """Raises ValueError for what does not fit."""
    if x.dim() != 2 or x.shape[1] != weight.width:
        raise ValueError(f"x {list(x.shape)} and weight [{weight.out}, {weight.width}] do not fit")
    if len(x) > MAX_ROWS:
        raise ValueError(f"x has {len(x)} rows, at most {MAX_ROWS} are few")
    if bias is not None and bias.shape != (weight.out,):
        raise ValueError(f"bias is {list(bias.shape)}, the weight has {weight.out} rows")
