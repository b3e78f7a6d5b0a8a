"""The second kernel of decode attention: results of a row's units into one, by their log-sums.

Not measured yet.
"""

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import CompileCase
from tiercel_kernels.fused.paged import ONE_BINARY

_BLOCK_HEADS = 4


@triton.jit(**ONE_BINARY)
def _merge_kernel(
    partial_out,
    partial_lse,
    first_units,
    out,
    out_stride,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    """Units of a row into one, always in their order: each counts as its share of the sum."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(first_units + row)
    end = tl.load(first_units + row + 1)
    if end - first > 1:
        head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        there = head < HEADS
        dims = tl.arange(0, HEAD_DIM)[None, :]
        peak = tl.full([BLOCK_HEADS], float("-inf"), dtype=tl.float32)
        total = tl.zeros([BLOCK_HEADS], dtype=tl.float32)
        acc = tl.zeros([BLOCK_HEADS, HEAD_DIM], dtype=tl.float32)
        for unit in range(first, end):
            place = tl.cast(unit, tl.int64) * HEADS + head
            lse = tl.load(partial_lse + place, mask=there, other=0.0)
            part = tl.load(
                partial_out + place[:, None] * HEAD_DIM + dims, mask=there[:, None], other=0.0
            )
            new_peak = tl.maximum(peak, lse)
            shrink = tl.exp2(peak - new_peak)
            share = tl.exp2(lse - new_peak)
            total = total * shrink + share
            acc = acc * shrink[:, None] + part * share[:, None]
            peak = new_peak
        target = out + row * out_stride + head[:, None] * HEAD_DIM + dims
        tl.store(target, (acc / total[:, None]).to(out.dtype.element_ty), mask=there[:, None])


def merge_units(
    partial_out: torch.Tensor,
    partial_lse: torch.Tensor,
    first_units: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write the rows that have several units to `out` [rows, heads, head_dim]; others stay.

    partial_out: float32 [units, heads, head_dim], each the attention over its own keys alone;
    partial_lse: float32 [units, heads], the logarithm to base 2 of its softmax's sum.
    first_units: int32 [rows + 1], of the plan.
    """
    rows, heads, head_dim = out.shape
    _merge_kernel[(rows, triton.cdiv(heads, _BLOCK_HEADS))](
        partial_out,
        partial_lse,
        first_units,
        out,
        out.stride(0),
        HEADS=heads,
        HEAD_DIM=head_dim,
        BLOCK_HEADS=_BLOCK_HEADS,
        num_warps=2,
    )


COMPILE_CASES = [
    CompileCase(
        kernel=_merge_kernel,
        name=f"{heads} heads of {head_dim}, {dtype}",
        signature={
            "partial_out": "*fp32",
            "partial_lse": "*fp32",
            "first_units": "*i32",
            "out": f"*{dtype}",
            "out_stride": "i32",
        },
        constexprs={"HEADS": heads, "HEAD_DIM": head_dim, "BLOCK_HEADS": _BLOCK_HEADS},
        num_warps=2,
        aligned=("out_stride",),
    )
    for heads, head_dim in ((71, 64), (128, 64), (232, 64), (32, 128), (32, 64))
    for dtype in ("bf16", "fp16")
]
