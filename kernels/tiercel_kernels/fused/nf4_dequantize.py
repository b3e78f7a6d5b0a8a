"""nf4_dequantize, and how the kernels of 4 bits read a block's scale."""

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import CompileCase
from tiercel_kernels.reference.nf4_dequantize import FourBitWeight

BYTES = 1024  # of codes per program


@triton.jit
def block_scale(
    absmax_ptr, nested_absmax_ptr, nested_table_ptr, nested_offset, block, NESTED: tl.constexpr
):
    """float32: the absmax of blocks of 64 weights by their numbers."""
    if NESTED:
        code = tl.load(absmax_ptr + block).to(tl.int32)
        outer = tl.load(nested_absmax_ptr + block // 256)
        scale = tl.load(nested_table_ptr + code) * outer + nested_offset
    else:
        scale = tl.load(absmax_ptr + block)
    return scale


@triton.jit
def dequantize_kernel(
    codes_ptr,
    table_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_table_ptr,
    nested_offset,
    out_ptr,
    count,  # bytes of codes
    NESTED: tl.constexpr,
    BYTES: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BYTES
    place = first + tl.arange(0, BYTES)
    inside = place < count
    pair = tl.load(codes_ptr + place, mask=inside, other=0, eviction_policy="evict_first")
    pair = pair.to(tl.int32)
    # 32 bytes a block; those behind the end read the last block again.
    block = tl.minimum(place, count - 1) // 32
    scale = block_scale(
        absmax_ptr, nested_absmax_ptr, nested_table_ptr, nested_offset, block, NESTED
    )
    high = tl.load(table_ptr + (pair >> 4)) * scale
    low = tl.load(table_ptr + (pair & 15)) * scale
    both = tl.reshape(tl.join(high, low), [2 * BYTES])
    target = 2 * first + tl.arange(0, 2 * BYTES)
    tl.store(out_ptr + target, both.to(out_ptr.dtype.element_ty), mask=target < 2 * count)


def nf4_dequantize(weight: FourBitWeight, out: torch.Tensor) -> torch.Tensor:
    """See reference.nf4_dequantize. Raises ValueError for an `out` of another shape or order."""
    if out.shape != (weight.out, weight.width) or not out.is_contiguous():
        raise ValueError(
            f"out is {list(out.shape)} with strides {out.stride()}, it must be "
            f"[{weight.out}, {weight.width}] and contiguous"
        )
    count = weight.codes.numel()
    if count == 0:
        return out
    dequantize_kernel[(triton.cdiv(count, BYTES),)](
        weight.codes,
        weight.table,
        *statistics(weight),
        out,
        count,
        NESTED=weight.nested_absmax is not None,
        BYTES=BYTES,
        num_warps=4,
    )
    return out


def statistics(
    weight: FourBitWeight,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """What `block_scale` reads. The table stands in for what is not read."""
    nested, table = weight.nested_absmax, weight.nested_table
    if nested is None or table is None:
        return weight.absmax, weight.table, weight.table, 0.0
    return weight.absmax, nested, table, weight.nested_offset


def _case(nested: bool, dtype: str) -> CompileCase:
    return CompileCase(
        dequantize_kernel,
        f"{dtype}{', nested' if nested else ''}",
        {
            "codes_ptr": "*u8",
            "absmax_ptr": "*u8" if nested else "*fp32",
            **dict.fromkeys(["table_ptr", "nested_absmax_ptr", "nested_table_ptr"], "*fp32"),
            "nested_offset": "fp32",
            "out_ptr": f"*{dtype}",
            "count": "i32",
        },
        {"NESTED": nested, "BYTES": BYTES},
        num_warps=4,
        aligned=("count",),
    )


COMPILE_CASES = [
    _case(False, "bf16"),
    _case(True, "bf16"),
    _case(False, "fp16"),
    _case(True, "fp16"),
    _case(False, "fp32"),
]
