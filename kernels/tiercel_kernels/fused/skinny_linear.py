"""skinny_linear: the weight is read once, split over K; what follows is in `split_k.py`."""

import torch
import triton
import triton.language as tl

from tiercel_kernels.device import capability
from tiercel_kernels.fused.split_k import ONE_BINARY, launch, store_sums
from tiercel_kernels.linear_cases import Form, product_cases
from tiercel_kernels.reference.skinny_linear import check
from tiercel_kernels.tuning.skinny_linear import VARIANTS, LinearVariant, variant


@triton.jit
def load_tiles(x_ptr, weight_ptr, k, last, here, EVEN_K: tl.constexpr):
    """Tiles of x and of the weight at `k`; the cache keeps the activations, not the weight."""
    if EVEN_K:
        x = tl.load(x_ptr + k[None, :], mask=here, other=0.0, eviction_policy="evict_last")
        weight = tl.load(weight_ptr + k[:, None], eviction_policy="evict_first")
    else:
        inside = k < last
        known = here & inside[None, :]
        x = tl.load(x_ptr + k[None, :], mask=known, other=0.0, eviction_policy="evict_last")
        lines = inside[:, None]
        weight = tl.load(
            weight_ptr + k[:, None], mask=lines, other=0.0, eviction_policy="evict_first"
        )
    return x, weight


@triton.jit(**ONE_BINARY)
def product_kernel(
    x_ptr,
    weight_ptr,
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
    # Columns behind the last one read the last one again: no mask on the weight.
    lines = tl.minimum(column, out - 1).to(tl.int64)[None, :] * width
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x, weight = load_tiles(
            x_ptr + row[:, None] * width, weight_ptr + lines, k, last, here, EVEN_K
        )
        total = tl.dot(x, weight, total, input_precision="ieee")
    store_sums(
        out_ptr, bias_ptr, total, row, column, split, rows, out, BIAS, GELU, SPLIT_K
    )  # fmt: skip


def skinny_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    gelu: bool = False,
) -> torch.Tensor:
    """See reference.skinny_linear. The weight must be contiguous."""
    check(x, weight, bias)
    chosen = variant(capability(x.device), len(weight), x.shape[1], x.element_size())
    return multiply(x, weight, bias, gelu, chosen)


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gelu: bool,
    chosen: LinearVariant,
) -> torch.Tensor:
    """skinny_linear with these launch parameters."""
    if not weight.is_contiguous():
        raise ValueError(
            "the weight must be contiguous: a copy per call would cost what this saves"
        )
    even = x.shape[1] % chosen.block_k == 0
    return launch(product_kernel, x, (weight,), bias, len(weight), gelu, chosen, EVEN_K=even)


COMPILE_CASES = product_cases(
    product_kernel, VARIANTS, variant, [Form({"weight_ptr": "x"})], even_k=True
)
