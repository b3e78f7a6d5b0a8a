"""What the linear layers of few rows share: splits over K, their sums, the epilogue.

Each has a product kernel of its own, which takes x, its weight, a bias, the target, and four sizes:
rows, out, width and tiles of BLOCK_K per split. With one split it writes the result itself; of more
a second kernel adds up the float32 sums. No atomics: the order of additions, and so every bit of a
row, depends on the shape of the weight only.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import CompileCase
from tiercel_kernels.fused.gelu import exact_gelu
from tiercel_kernels.tuning.skinny_linear import LinearVariant

REDUCE_BLOCK = 256
# For all product kernels: one row, 16 and any other number would be three binaries, and the second
# and third would be compiled while serving. Tiles would make more binaries out of the widths.
ONE_BINARY = {"do_not_specialize": ["rows", "tiles"]}


@triton.jit
def store_sums(
    out_ptr,  # [SPLIT_K, rows, out] float32, or [rows, out] of x's type where SPLIT_K is 1
    bias_ptr,
    total,
    row,
    column,
    split,
    rows,
    out,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    """The sums of a tile [BLOCK_M, BLOCK_N]: a split's, or with the epilogue the result."""
    wanted = (row[:, None] < rows) & (column[None, :] < out)
    place = row[:, None].to(tl.int64) * out + column[None, :]
    if SPLIT_K > 1:
        tl.store(out_ptr + split.to(tl.int64) * rows * out + place, total, mask=wanted)
    else:
        if BIAS:
            bias = tl.load(bias_ptr + column, mask=column < out, other=0.0)
            total += bias.to(tl.float32)[None, :]
        if GELU:
            total = exact_gelu(total)
        tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=wanted)


@triton.jit(**ONE_BINARY)
def reduce_kernel(
    partial_ptr,
    bias_ptr,
    out_ptr,
    rows,
    out,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < out
    place = row * out + column
    total = tl.load(partial_ptr + place, mask=inside, other=0.0)
    for split in tl.static_range(1, SPLIT_K):
        total += tl.load(partial_ptr + split * rows * out + place, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        total = exact_gelu(total)
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=inside)


def launch(
    product_kernel: Any,
    x: torch.Tensor,
    weight: tuple[Any, ...],
    bias: torch.Tensor | None,
    out: int,
    gelu: bool,
    chosen: LinearVariant,
    **constants: Any,
) -> torch.Tensor:
    """[rows, out] of x's type. weight: the kernel's own arguments, a tensor first."""
    rows, width = x.shape
    result = torch.empty(rows, out, dtype=x.dtype, device=x.device)
    if rows == 0:
        return result
    splits = chosen.split_k
    target = result
    if splits > 1:
        target = torch.empty(splits, rows, out, dtype=torch.float32, device=x.device)
    x = x.contiguous()
    some = x if bias is None else bias  # a pointer that nobody follows
    epilogue = {"BIAS": bias is not None, "GELU": gelu, "SPLIT_K": splits}
    # Of several splits the second kernel has the epilogue: the first is one binary for all.
    first = epilogue if splits == 1 else {"BIAS": False, "GELU": False, "SPLIT_K": splits}
    product_kernel[(triton.cdiv(out, chosen.block_n), splits)](
        x,
        *weight,
        some,
        target,
        rows,
        out,
        width,
        triton.cdiv(triton.cdiv(width, chosen.block_k), splits),
        **first,
        BLOCK_M=16 if rows <= 16 else 32,
        BLOCK_N=chosen.block_n,
        BLOCK_K=chosen.block_k,
        **constants,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )
    if splits > 1:
        grid = (triton.cdiv(out, REDUCE_BLOCK), rows)
        reduce_kernel[grid](
            target, some, result, rows, out, **epilogue, BLOCK=REDUCE_BLOCK, num_warps=2
        )
    return result


def _reduce_case(splits: int, bias: bool, gelu: bool, dtype: str) -> CompileCase:
    return CompileCase(
        reduce_kernel,
        f"{splits} splits{', bias' if bias else ''}{', gelu' if gelu else ''}, {dtype}",
        {
            "partial_ptr": "*fp32",
            **dict.fromkeys(["bias_ptr", "out_ptr"], f"*{dtype}"),
            "rows": "i32",
            "out": "i32",
        },
        {"BIAS": bias, "GELU": gelu, "SPLIT_K": splits, "BLOCK": REDUCE_BLOCK},
        num_warps=2,
        aligned=("out",),
    )


COMPILE_CASES = [
    _reduce_case(splits, bias, gelu, dtype)
    for splits in (2, 4, 8, 16)
    for bias in (False, True)
    for gelu in (False, True)
    for dtype in ("bf16", "fp16")
]
