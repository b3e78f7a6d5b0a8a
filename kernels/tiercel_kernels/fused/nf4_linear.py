"""nf4_linear: bytes of two codes become two tiles of numbers, for even and for odd inputs.

The first of a byte's codes belongs to an even input and the second to the odd one behind it, so x
is split in two and there are two dots a tile: nothing has to be woven together. A code's number
comes from a table of 64 bytes that stays in the first cache, so nf4 and fp4 are one kernel. The
product kernel has 58 lines because every pointer and constant of a launch takes one.
"""

import torch
import triton
import triton.language as tl

from tiercel_kernels.device import capability
from tiercel_kernels.fused.nf4_dequantize import block_scale, statistics
from tiercel_kernels.fused.split_k import ONE_BINARY, launch, store_sums
from tiercel_kernels.linear_cases import Form, product_cases
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


@triton.jit(**ONE_BINARY)
def nf4_product_kernel(
    x_ptr,
    codes_ptr,
    table_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_table_ptr,
    nested_offset,
    bias_ptr,
    out_ptr,  # see store_sums
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
    store_sums(
        out_ptr, bias_ptr, total, row, column, split, rows, out, BIAS, GELU, SPLIT_K
    )  # fmt: skip


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
    own = (weight.codes, weight.table, *statistics(weight))
    nested = weight.nested_absmax is not None
    return launch(nf4_product_kernel, x, own, bias, weight.out, gelu, chosen, NESTED=nested)


def _form(nested: bool) -> Form:
    weight = {
        "codes_ptr": "*u8",
        "absmax_ptr": "*u8" if nested else "*fp32",
        **dict.fromkeys(["table_ptr", "nested_absmax_ptr", "nested_table_ptr"], "*fp32"),
        "nested_offset": "fp32",
    }
    return Form(weight, " nested" if nested else "", {"NESTED": nested})


COMPILE_CASES = product_cases(
    nf4_product_kernel, VARIANTS, variant, [_form(False), _form(True)], even_k=False
)
