"""skinny_linear: split over K, partial sums in float32, added in a fixed order by a second kernel.

With one split the first kernel writes the result itself. No atomics: the order of additions, and so
every bit of a row, depends on the shape of the weight only.
"""

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import ARCHITECTURES, CompileCase
from tiercel_kernels.device import capability
from tiercel_kernels.fused.gelu import exact_gelu
from tiercel_kernels.reference.skinny_linear import check
from tiercel_kernels.tuning.skinny_linear import VARIANTS, LinearVariant, variant

REDUCE_BLOCK = 256


@triton.jit
def _tiles(x_ptr, weight_ptr, k, last, here, EVEN_K: tl.constexpr):
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


@triton.jit
def product_kernel(
    x_ptr,
    weight_ptr,
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
    # Columns behind the last one read the last one again: no mask on the weight.
    lines = tl.minimum(column, out - 1).to(tl.int64)[None, :] * width
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x, weight = _tiles(x_ptr + row[:, None] * width, weight_ptr + lines, k, last, here, EVEN_K)
        total = tl.dot(x, weight, total, input_precision="ieee")
    wanted = here & (column[None, :] < out)
    place = row[:, None].to(tl.int64) * out + column[None, :]
    if SPLIT_K > 1:
        tl.store(out_ptr + split.to(tl.int64) * rows * out + place, total, mask=wanted)
    else:
        if BIAS:
            total += tl.load(bias_ptr + column, mask=column < out, other=0.0).to(tl.float32)[
                None, :
            ]
        if GELU:
            total = exact_gelu(total)
        tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=wanted)


@triton.jit
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
    rows, width, out = len(x), x.shape[1], len(weight)
    result = torch.empty(rows, out, dtype=x.dtype, device=x.device)
    if rows == 0:
        return result
    splits = chosen.split_k
    target = result
    if splits > 1:
        target = torch.empty(splits, rows, out, dtype=torch.float32, device=x.device)
    some = weight if bias is None else bias
    epilogue = {"BIAS": bias is not None, "GELU": gelu, "SPLIT_K": splits}
    product_kernel[(triton.cdiv(out, chosen.block_n), splits)](
        x.contiguous(),
        weight,
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


def _product_case(
    shape: tuple[int, int],
    chosen: LinearVariant,
    dtype: str,
    block_m: int,
    architectures: tuple[int, ...],
) -> CompileCase:
    out, width = shape
    pointers = dict.fromkeys(["x_ptr", "weight_ptr", "bias_ptr"], f"*{dtype}")
    whole = chosen.split_k == 1
    return CompileCase(
        product_kernel,
        f"{out} x {width}, {block_m} rows, {dtype}, tile {chosen.block_n} x {chosen.block_k}, "
        f"{chosen.split_k} splits",
        {
            **pointers,
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
        architectures=architectures,
    )


def _reduce_case(splits: int, bias: bool, gelu: bool) -> CompileCase:
    return CompileCase(
        reduce_kernel,
        f"{splits} splits{', bias' if bias else ''}{', gelu' if gelu else ''}",
        {
            "partial_ptr": "*fp32",
            "bias_ptr": "*bf16",
            "out_ptr": "*bf16",
            "rows": "i32",
            "out": "i32",
        },
        {"BIAS": bias, "GELU": gelu, "SPLIT_K": splits, "BLOCK": REDUCE_BLOCK},
        num_warps=2,
        aligned=("out",),
    )


def _product_cases() -> list[CompileCase]:
    """Every variant of the table on its card, and what is chosen for shapes it does not know."""
    cases = [
        _product_case(shape, chosen, "bf16", block_m, (card,))
        for card, shapes in VARIANTS.items()
        for shape, listed in shapes.items()
        for chosen in listed
        for block_m in (16, 32)
    ]
    other = (8192, 8192)
    for card in ARCHITECTURES:
        for dtype, size in (("fp16", 2), ("fp32", 4)):
            chosen = variant(card, 4608, 4096, size)
            cases.append(_product_case((4608, 4096), chosen, dtype, 32, (card,)))
        cases.append(_product_case(other, variant(card, *other, 2), "bf16", 16, (card,)))
    return cases


COMPILE_CASES = [
    *_product_cases(),
    *(_reduce_case(splits, False, False) for splits in (2, 4, 8)),
    _reduce_case(4, True, True),
]
