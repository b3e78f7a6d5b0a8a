"""gelu: the exact one, with the error function, as Falcon was trained with."""

import torch


def gelu(
    x: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """0.5 y (1 + erf(y / sqrt 2)) of y = x + bias: [rows, columns], of x's type.

    x: [rows, columns]; bias: [columns] or none. In float32, rounded once. Written to `out` if it is
    given, and then `out` is returned: like x, with any stride between its rows.
    """
    check(x, bias, out)
    wide = x.float() if bias is None else x.float() + bias.float()
    result = torch.nn.functional.gelu(wide).to(x.dtype)
    return result if out is None else out.copy_(result)


def check(x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor | None = None) -> None:
    """Raises ValueError for shapes that do not fit each other."""
    if x.dim() != 2:
        raise ValueError(f"x must be [rows, columns], not {list(x.shape)}")
    if bias is not None and bias.shape != x.shape[1:]:
        raise ValueError(f"bias is {list(bias.shape)}, x has {x.shape[1]} columns")
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype or out.stride(1) != 1):
        raise ValueError(f"out must be {x.dtype} {list(x.shape)} with contiguous rows")
