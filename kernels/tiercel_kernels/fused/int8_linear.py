"""int8_linear: skinny_linear over codes. The scale is applied once to the sums, not to the weights.

A whole number up to 127 is exact in bfloat16 and float16, so that nothing is lost before the dot.
Every split scales its own sum.
"""

import torch
import triton
import triton.language as tl

from tiercel_kernels.device import capability
from tiercel_kernels.fused.skinny_linear import load_tiles
from tiercel_kernels.fused.split_k import ONE_BINARY, launch, store_sums
from tiercel_kernels.linear_cases import Form, product_cases
from tiercel_kernels.reference.int8_linear import check
from tiercel_kernels.tuning.int8_linear import VARIANTS, variant
from tiercel_kernels.tuning.skinny_linear import LinearVariant


@triton.jit(**ONE_BINARY)
def int8_product_kernel(
    x_ptr,
    codes_ptr,
    absmax_ptr,
    bias_ptr,
    out_ptr,  # see store_sums
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
        x, codes = load_tiles(x_ptr + row[:, None] * width, lines, k, last, here, EVEN_K)
        total = tl.dot(x, codes.to(x.dtype), total, input_precision="ieee")
    total *= (tl.load(absmax_ptr + known) / 127.0)[None, :]
    store_sums(
        out_ptr, bias_ptr, total, row, column, split, rows, out, BIAS, GELU, SPLIT_K
    )  # fmt: skip


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
    weight, even = (codes, absmax), x.shape[1] % chosen.block_k == 0
    return launch(int8_product_kernel, x, weight, bias, len(codes), gelu, chosen, EVEN_K=even)


COMPILE_CASES = product_cases(
    int8_product_kernel,
    VARIANTS,
    variant,
    [Form({"codes_ptr": "*i8", "absmax_ptr": "*fp32"})],
    even_k=True,
)
