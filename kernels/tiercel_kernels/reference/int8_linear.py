"""int8_linear: a linear layer of few rows whose weight is int8 with one scale a row.

The bytes are bitsandbytes': number = code x absmax / 127. Activations stay as they are.
"""

import torch
from torch.nn import functional

from tiercel_kernels.reference.skinny_linear import MAX_ROWS

__all__ = ["MAX_ROWS", "check", "int8_linear"]


def int8_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    absmax: torch.Tensor,
    bias: torch.Tensor | None = None,
    gelu: bool = False,
) -> torch.Tensor:
    """x W^T + b, with the exact GELU behind it if asked: [rows, out], of x's type.

    x: [rows, in], up to MAX_ROWS rows; codes: int8 [out, in]; absmax: float32 [out]; bias: [out] or
    none. Sums in float32 over whole codes, then the scale, bias and GELU, rounded once. A row's
    result does not depend on the other rows.
    """
    check(x, codes, absmax, bias)
    wide = (x.float() @ codes.float().T) * (absmax / 127.0)
    if bias is not None:
        wide = wide + bias.float()
    return (functional.gelu(wide) if gelu else wide).to(x.dtype)


def check(
    x: torch.Tensor, codes: torch.Tensor, absmax: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """Raises ValueError for what does not fit."""
    if x.dim() != 2 or codes.dim() != 2 or x.shape[1] != codes.shape[1]:
        raise ValueError(f"x {list(x.shape)} and codes {list(codes.shape)} do not fit")
    if len(x) > MAX_ROWS:
        raise ValueError(f"x has {len(x)} rows, at most {MAX_ROWS} are few")
    if codes.dtype != torch.int8 or not codes.is_contiguous():
        raise ValueError(f"codes are {codes.dtype}, they must be contiguous int8")
    if absmax.dtype != torch.float32 or absmax.shape != codes.shape[:1]:
        raise ValueError(f"absmax is {absmax.dtype} {list(absmax.shape)}, codes {codes.shape[0]}")
    if bias is not None and bias.shape != codes.shape[:1]:
        raise ValueError(f"bias is {list(bias.shape)}, codes have {codes.shape[0]} rows")
