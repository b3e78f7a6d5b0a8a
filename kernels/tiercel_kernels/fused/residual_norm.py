"""residual_norm in one pass: one program holds one row in registers, so x is read once."""

import torch
import triton
import triton.language as tl

from tiercel_kernels.benchmark.bounds import SHAPES
from tiercel_kernels.compile_case import CompileCase
from tiercel_kernels.reference.residual_norm import Norm, check


@triton.jit
def residual_norm_kernel(
    x_ptr,
    first_ptr,  # branches: [rows, hidden], unused where BRANCHES is smaller
    second_ptr,
    sum_ptr,
    weight_ptr,
    bias_ptr,
    weight2_ptr,
    bias2_ptr,
    out_ptr,
    out2_ptr,
    hidden,
    eps,
    BRANCHES: tl.constexpr,
    NORMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * hidden
    column = tl.arange(0, BLOCK)
    inside = column < hidden
    total = tl.load(x_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    if BRANCHES > 0:
        total += tl.load(first_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    if BRANCHES > 1:
        total += tl.load(second_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    if BRANCHES > 0:
        rounded = total.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row + column, rounded, mask=inside)
        total = rounded.to(tl.float32)
    mean = tl.sum(total, axis=0) / hidden
    centred = tl.where(inside, total - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / hidden
    unit = centred * (1.0 / tl.sqrt(variance + eps))
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    normed = (unit * weight + bias).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row + column, normed, mask=inside)
    if NORMS > 1:
        weight = tl.load(weight2_ptr + column, mask=inside, other=0.0).to(tl.float32)
        bias = tl.load(bias2_ptr + column, mask=inside, other=0.0).to(tl.float32)
        normed = (unit * weight + bias).to(out2_ptr.dtype.element_ty)
        tl.store(out2_ptr + row + column, normed, mask=inside)


def residual_norm(
    x: torch.Tensor,
    branches: tuple[torch.Tensor, ...],
    norms: tuple[Norm, ...],
    eps: float,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """See reference.residual_norm. The rows must be contiguous."""
    check(x, branches, norms)
    rows, hidden = x.shape
    inputs = [x.contiguous(), *(branch.contiguous() for branch in branches)]
    total = torch.empty_like(inputs[0]) if branches else x
    outs = tuple(torch.empty_like(inputs[0]) for _ in norms)
    if rows == 0:
        return total, outs
    block = triton.next_power_of_2(hidden)
    residual_norm_kernel[(rows,)](
        inputs[0],
        inputs[min(1, len(branches))],
        inputs[-1],
        total,
        *norms[0],
        *norms[-1],
        outs[0],
        outs[-1],
        hidden,
        eps,
        BRANCHES=len(branches),
        NORMS=len(norms),
        BLOCK=block,
        num_warps=warps_for(block),
    )
    return total, outs


def warps_for(block: int) -> int:
    """32 numbers of the row per thread: above that registers spill, below it warps only wait."""
    return min(16, max(1, block // 1024))


def _case(block: int, branches: int, norms: int, dtype: str) -> CompileCase:
    pointers = ["x_ptr", "first_ptr", "second_ptr", "sum_ptr", "weight_ptr", "bias_ptr"]
    pointers += ["weight2_ptr", "bias2_ptr", "out_ptr", "out2_ptr"]
    return CompileCase(
        residual_norm_kernel,
        f"up to {block}, {branches} + x, {norms} norms, {dtype}",
        {**dict.fromkeys(pointers, f"*{dtype}"), "hidden": "i32", "eps": "fp32"},
        {"BRANCHES": branches, "NORMS": norms, "BLOCK": block},
        num_warps=warps_for(block),
        aligned=("hidden",),
    )


# The first layer has no branches, one output GEMM makes one of two, the last norm is alone.
_LAUNCHES = {
    (triton.next_power_of_2(shape.hidden), branches, norms)
    for shape in SHAPES.values()
    for branches in ((0, 1, 2) if shape.parallel else (0, 1))
    for norms in {1, shape.norms}
}
COMPILE_CASES = [
    _case(*launch, dtype) for launch in sorted(_LAUNCHES) for dtype in ("bf16", "fp16")
] + [_case(max(_LAUNCHES)[0], 2, 2, "fp32")]
