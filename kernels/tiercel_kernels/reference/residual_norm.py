"""residual_norm: the residual sum and the one or two layer norms that follow it."""

import torch

Norm = tuple[torch.Tensor, torch.Tensor]  # weight, bias: [hidden] each


def residual_norm(
    x: torch.Tensor,
    branches: tuple[torch.Tensor, ...],
    norms: tuple[Norm, ...],
    eps: float,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """x + branches, and its layer norms: ([rows, hidden], one [rows, hidden] per norm).

    x: [rows, hidden]; branches: none, one or two tensors like x (attention and MLP outputs);
    norms: one or two. The sum is made in float32 and rounded once to x's type; the norms are those
    of the rounded sum, in float32, rounded once. Without branches the sum is x itself.
    """
    check(x, branches, norms)
    total = x.float()
    for branch in branches:
        total = total + branch.float()
    total = total.to(x.dtype)
    wide = total.float()
    centred = wide - wide.mean(-1, keepdim=True)
    unit = centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    normed = tuple((unit * weight.float() + bias.float()).to(x.dtype) for weight, bias in norms)
    return (total if branches else x), normed


def check(x: torch.Tensor, branches: tuple[torch.Tensor, ...], norms: tuple[Norm, ...]) -> None:
    """Raises ValueError for shapes that do not fit each other."""
    if x.dim() != 2:
        raise ValueError(f"x must be [rows, hidden], not {list(x.shape)}")
    if len(branches) > 2:
        raise ValueError(f"at most two branches can be added, not {len(branches)}")
    if len(norms) not in (1, 2):
        raise ValueError(f"one or two norms can follow, not {len(norms)}")
    for branch in branches:
        if branch.shape != x.shape:
            raise ValueError(f"a branch is {list(branch.shape)}, x is {list(x.shape)}")
    for vector in (each for norm in norms for each in norm):
        if vector.shape != x.shape[1:]:
            raise ValueError(f"a norm has {list(vector.shape)} weights, hidden is {x.shape[1]}")
