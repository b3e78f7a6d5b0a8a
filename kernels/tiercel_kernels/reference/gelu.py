"""gelu: the exact one, with the error function, as Falcon was trained with."""

import torch


def gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """0.5 y (1 + erf(y / sqrt 2)) of y = x + bias: [rows, columns], of x's type.

    x: [rows, columns]; bias: [columns] or none. In float32, rounded once.
    """
    check(x, bias)
    wide = x.float() if bias is None else x.float() + bias.float()
    return torch.nn.functional.gelu(wide).to(x.dtype)


def check(x: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raises ValueError for shapes that do not fit each other."""
    if x.dim() != 2:
        raise ValueError(f"x must be [rows, columns], not {list(x.shape)}")
    if bias is not None and bias.shape != x.shape[1:]:
        raise ValueError(f"bias is {list(bias.shape)}, x has {x.shape[1]} columns")
