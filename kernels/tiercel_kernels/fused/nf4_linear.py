"""nf4_linear: bytes of two codes become two tiles of numbers, for even and for odd inputs.

The first of a byte's codes belongs to an even input and the second to the odd one behind it, so x
is split in two and there are two dots a tile: nothing has to be woven together. A code's number
comes from a table of 64 bytes that stays in the first cache, so nf4 and fp4 are one kernel. The
product kernel has 58 lines because every pointer and constant of a launch takes one.
"""

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import ARCHITECTURES, CompileCase
from tiercel_kernels.device import capability
from tiercel_kernels.fused.gelu import exact_gelu
from tiercel_kernels.fused.nf4_dequantize import block_scale, statistics
from tiercel_kernels.fused.skinny_linear import REDUCE_BLOCK, reduce_kernel
from tiercel_kernels.reference.nf4_linear import FourBitWeight, check
from tiercel_kernels.tuning.nf4_linear import VARIANTS, variant
from tiercel_kernels.tuning.skinny_linear import LinearVariant


@triton.jit
def _halves(x_ptr, row, here, start, last, width, BLOCK_K: tl.constexpr):
    """x at even and at odd inputs: twice [BLOCK_M, BLOCK_K / 2]. Beyond `last` there are zeros."""
    half = start + 2 * tl.arange(0, BLOCK_K // 2)
    pair = half[None, :, None] + tl.arange(0, 2)[None, None, :]
    x = tl.load(
        x_ptr + row[:, None, None] * width + pair,
        mask=here[:, :, None] & (pair < last),
        other=0.0,
        eviction_policy="evict_last",
    )
    return tl.split(x)


@triton.jit
def _numbers(
    codes_ptr,
    table_ptr,
    statistics,
    first_block,
    start,
    last,
    width,
    NESTED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What the codes at even and at odd inputs stand for: twice [blocks of 64, 32 bytes, columns].

    A tile may end within itself, a block never does.
    """
    group = tl.arange(0, BLOCK_K // 64)[:, None, None]
    byte = group * 32 + tl.arange(0, 32)[None, :, None]
    inside = start + group * 64 < last
    pair = tl.load(codes_ptr + byte, mask=inside, other=0, eviction_policy="evict_first")
    pair = pair.to(tl.int32)
    # Behind the end the last block is read again: its numbers meet zeros of x.
    block = first_block + tl.minimum(start // 64 + group, width // 64 - 1)
    scale = block_scale(statistics[0], statistics[1], statistics[2], statistics[3], block, NESTED)
    return tl.load(table_ptr + (pair >> 4)) * scale, tl.load(table_ptr + (pair & 15)) * scale


@triton.jit
def nf4_product_kernel(
    x_ptr,
    codes_ptr,
    table_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_table_ptr,
    nested_offset,
    bias_ptr,
    out_ptr,  # [SPLIT_K, rows, out] float32, or [rows, out] of x's type where SPLIT_K is 1
    rows,
    out,
    width,
    tiles,  # of BLOCK_K, per split
    NESTED: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    split = tl.program_id(1)
    row = tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = split * tiles * BLOCK_K
    last = tl.minimum(first + tiles * BLOCK_K, width)
    here = row[:, None] < rows
    # Columns behind the last one read the last one again.
    line = tl.minimum(column, out - 1).to(tl.int64)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, last, BLOCK_K):
        even, odd = _halves(x_ptr, row, here, start, last, width, BLOCK_K)
        high, low = _numbers(
            codes_ptr + line[None, None, :] * (width // 2) + start // 2,
            table_ptr,
            (absmax_ptr, nested_absmax_ptr, nested_table_ptr, nested_offset),
            line[None, None, :] * (width // 64),
            start,
            last,
            width,
            NESTED,
            BLOCK_K,
        )
        high = tl.reshape(high.to(x_ptr.dtype.element_ty), [BLOCK_K // 2, BLOCK_N])
        low = tl.reshape(low.to(x_ptr.dtype.element_ty), [BLOCK_K // 2, BLOCK_N])
        total = tl.dot(even, high, total, input_precision="ieee")
        total = tl.dot(odd, low, total, input_precision="ieee")
    wanted = here & (column[None, :] < out)
    place = row[:, None].to(tl.int64) * out + column[None, :]
    if SPLIT_K > 1:
        tl.store(out_ptr + split.to(tl.int64) * rows * out + place, total, mask=wanted)
    else:
        if BIAS:
            total += tl.load(bias_ptr + line).to(tl.float32)[None, :]
        if GELU:
            total = exact_gelu(total)
        tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=wanted)


def nf4_linear(
    x: torch.Tensor,
    weight: FourBitWeight,
    bias: torch.Tensor | None = None,
    gelu: bool = False,
) -> torch.Tensor:
    """See reference.nf4_linear."""
    check(x, weight, bias)
    chosen = variant(capability(x.device), weight.out, weight.width, x.element_size())
    return multiply(x, weight, bias, gelu, chosen)


def multiply(
    x: torch.Tensor,
    weight: FourBitWeight,
    bias: torch.Tensor | None,
    gelu: bool,
    chosen: LinearVariant,
) -> torch.Tensor:
    """nf4_linear with these launch parameters."""
    rows, width, out = len(x), weight.width, weight.out
    result = torch.empty(rows, out, dtype=x.dtype, device=x.device)
    if rows == 0:
        return result
    splits = chosen.split_k
    target = result
    if splits > 1:
        target = torch.empty(splits, rows, out, dtype=torch.float32, device=x.device)
    some = weight.table if bias is None else bias
    epilogue = {"BIAS": bias is not None, "GELU": gelu, "SPLIT_K": splits}
    nf4_product_kernel[(triton.cdiv(out, chosen.block_n), splits)](
        x.contiguous(),
        weight.codes,
        weight.table,
        *statistics(weight),
        some,
        target,
        rows,
        out,
        width,
        triton.cdiv(triton.cdiv(width, chosen.block_k), splits),
        NESTED=weight.nested_absmax is not None,
        **epilogue,
        BLOCK_M=16 if rows <= 16 else 32,
        BLOCK_N=chosen.block_n,
        BLOCK_K=chosen.block_k,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )
    if splits > 1:
        grid = (triton.cdiv(out, REDUCE_BLOCK), rows)
        constants = {**epilogue, "BLOCK": REDUCE_BLOCK}
        reduce_kernel[grid](target, some, result, rows, out, **constants, num_warps=2)
    return result


def _case(
    shape: tuple[int, int],
    chosen: LinearVariant,
    dtype: str,
    block_m: int,
    nested: bool,
    card: int,
) -> CompileCase:
    out, width = shape
    whole = chosen.split_k == 1
    return CompileCase(
        nf4_product_kernel,
        f"{out} x {width}, {block_m} rows, {dtype}{', nested' if nested else ''}, "
        f"tile {chosen.block_n} x {chosen.block_k}, {chosen.split_k} splits",
        {
            "x_ptr": f"*{dtype}",
            "codes_ptr": "*u8",
            "absmax_ptr": "*u8" if nested else "*fp32",
            **dict.fromkeys(["table_ptr", "nested_absmax_ptr", "nested_table_ptr"], "*fp32"),
            "nested_offset": "fp32",
            "bias_ptr": f"*{dtype}",
            "out_ptr": f"*{dtype}" if whole else "*fp32",
            **dict.fromkeys(["rows", "out", "width", "tiles"], "i32"),
        },
        {
            "NESTED": nested,
            "BIAS": False,
            "GELU": whole,
            "SPLIT_K": chosen.split_k,
            "BLOCK_M": block_m,
            "BLOCK_N": chosen.block_n,
            "BLOCK_K": chosen.block_k,
        },
        chosen.num_warps,
        chosen.num_stages,
        aligned=("out", "width"),
        architectures=(card,),
    )


def _cases() -> list[CompileCase]:
    """Every variant of the table on its card, and what is chosen for shapes it does not know."""
    cases = [
        _case(shape, chosen, "bf16", block_m, nested, card)
        for card, shapes in VARIANTS.items()
        for shape, listed in shapes.items()
        for chosen in listed
        for block_m, nested in ((16, False), (16, True), (32, True))
    ]
    for card in ARCHITECTURES:
        for dtype, size in (("fp16", 2), ("fp32", 4)):
            chosen = variant(card, 4608, 4096, size)
            cases.append(_case((4608, 4096), chosen, dtype, 32, False, card))
    return cases


COMPILE_CASES = _cases()
