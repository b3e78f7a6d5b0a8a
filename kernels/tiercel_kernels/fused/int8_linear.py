"""int8_linear: skinny_linear over codes. The scale is applied once to the sums, not to the weights.

A whole number up to 127 is exact in bfloat16 and float16, so that nothing is lost before the dot.
Every split scales its own sum; they are added in a fixed order by skinny_linear's second kernel.
A function of over 50 lines because a Triton kernel is one.
"""

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import ARCHITECTURES, CompileCase
from tiercel_kernels.device import capability
from tiercel_kernels.fused.gelu import exact_gelu
from tiercel_kernels.fused.skinny_linear import REDUCE_BLOCK, _tiles, reduce_kernel
from tiercel_kernels.reference.int8_linear import check
from tiercel_kernels.tuning.int8_linear import VARIANTS, variant
from tiercel_kernels.tuning.skinny_linear import LinearVariant


@triton.jit
def int8_product_kernel(
    x_ptr,
    codes_ptr,
    absmax_ptr,
    bias_ptr,
    out_ptr,  # [SPLIT_K, rows, out] float32, or [rows, out] of x's type where SPLIT_K is 1
    rows,
    out,
    width,
    tiles,  # of BLOCK_K, per split
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    split = tl.program_id(1)
    row = tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = split * tiles * BLOCK_K
    last = tl.minimum(first + tiles * BLOCK_K, width)
    here = row[:, None] < rows
    # Columns behind the last one read the last one again: no mask on the codes.
    known = tl.minimum(column, out - 1)
    lines = codes_ptr + known.to(tl.int64)[None, :] * width
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x, codes = _tiles(x_ptr + row[:, None] * width, lines, k, last, here, EVEN_K)
        total = tl.dot(x, codes.to(x.dtype), total, input_precision="ieee")
    total *= (tl.load(absmax_ptr + known) / 127.0)[None, :]
    wanted = here & (column[None, :] < out)
    place = row[:, None].to(tl.int64) * out + column[None, :]
    if SPLIT_K > 1:
        tl.store(out_ptr + split.to(tl.int64) * rows * out + place, total, mask=wanted)
    else:
        if BIAS:
            total += tl.load(bias_ptr + known).to(tl.float32)[None, :]
        if GELU:
            total = exact_gelu(total)
        tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=wanted)


def int8_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    absmax: torch.Tensor,
    bias: torch.Tensor | None = None,
    gelu: bool = False,
) -> torch.Tensor:
    """See reference.int8_linear."""
    check(x, codes, absmax, bias)
    chosen = variant(capability(x.device), len(codes), x.shape[1], x.element_size())
    return multiply(x, codes, absmax, bias, gelu, chosen)


def multiply(
    x: torch.Tensor,
    codes: torch.Tensor,
    absmax: torch.Tensor,
    bias: torch.Tensor | None,
    gelu: bool,
    chosen: LinearVariant,
) -> torch.Tensor:
    """int8_linear with these launch parameters."""
    rows, width, out = len(x), x.shape[1], len(codes)
    result = torch.empty(rows, out, dtype=x.dtype, device=x.device)
    if rows == 0:
        return result
    splits = chosen.split_k
    target = result
    if splits > 1:
        target = torch.empty(splits, rows, out, dtype=torch.float32, device=x.device)
    some = absmax if bias is None else bias
    epilogue = {"BIAS": bias is not None, "GELU": gelu, "SPLIT_K": splits}
    int8_product_kernel[(triton.cdiv(out, chosen.block_n), splits)](
        x.contiguous(),
        codes,
        absmax,
        some,
        target,
        rows,
        out,
        width,
        triton.cdiv(triton.cdiv(width, chosen.block_k), splits),
        **epilogue,
        BLOCK_M=16 if rows <= 16 else 32,
        BLOCK_N=chosen.block_n,
        BLOCK_K=chosen.block_k,
        EVEN_K=width % chosen.block_k == 0,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )
    if splits > 1:
        grid = (triton.cdiv(out, REDUCE_BLOCK), rows)
        constants = {**epilogue, "BLOCK": REDUCE_BLOCK}
        reduce_kernel[grid](target, some, result, rows, out, **constants, num_warps=2)
    return result


def _case(
    shape: tuple[int, int], chosen: LinearVariant, dtype: str, block_m: int, card: int
) -> CompileCase:
    out, width = shape
    whole = chosen.split_k == 1
    return CompileCase(
        int8_product_kernel,
        f"{out} x {width}, {block_m} rows, {dtype}, tile {chosen.block_n} x {chosen.block_k}, "
        f"{chosen.split_k} splits",
        {
            "x_ptr": f"*{dtype}",
            "codes_ptr": "*i8",
            "absmax_ptr": "*fp32",
            "bias_ptr": f"*{dtype}",
            "out_ptr": f"*{dtype}" if whole else "*fp32",
            **dict.fromkeys(["rows", "out", "width", "tiles"], "i32"),
        },
        {
            "BIAS": False,
            "GELU": whole,
            "SPLIT_K": chosen.split_k,
            "BLOCK_M": block_m,
            "BLOCK_N": chosen.block_n,
            "BLOCK_K": chosen.block_k,
            "EVEN_K": width % chosen.block_k == 0,
        },
        chosen.num_warps,
        chosen.num_stages,
        aligned=("out", "width"),
        architectures=(card,),
    )


def _cases() -> list[CompileCase]:
    """Every variant of the table on its card, and what is chosen for shapes it does not know."""
    cases = [
        _case(shape, chosen, "bf16", block_m, card)
        for card, shapes in VARIANTS.items()
        for shape, listed in shapes.items()
        for chosen in listed
        for block_m in (16, 32)
    ]
    for card in ARCHITECTURES:
        for dtype, size in (("fp16", 2), ("fp32", 4)):
            cases.append(_case((4608, 4096), variant(card, 4608, 4096, size), dtype, 32, card))
    return cases


COMPILE_CASES = _cases()
