"""gelu with an optional bias. `exact_gelu` is also the epilogue of other kernels."""

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import CompileCase
from tiercel_kernels.reference.gelu import check

BLOCK = 1024


@triton.jit
def exact_gelu(x):
    """Of float32 values; 0.7071067811865476 is 1 / sqrt 2."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_kernel(x_ptr, bias_ptr, out_ptr, columns, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64) * columns
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(x_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row + column, exact_gelu(x).to(out_ptr.dtype.element_ty), mask=inside)


def gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """See reference.gelu."""
    check(x, bias)
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, columns = x.shape
    for start in range(0, rows, 65535):  # a launch's second dimension ends there
        part = x[start : start + 65535]
        gelu_kernel[(triton.cdiv(columns, BLOCK), len(part))](
            part,
            x if bias is None else bias,
            out[start : start + 65535],
            columns,
            BIAS=bias is not None,
            BLOCK=BLOCK,
        )
    return out


def _case(dtype: str, bias: bool) -> CompileCase:
    return CompileCase(
        gelu_kernel,
        f"{'bias, ' if bias else ''}{dtype}",
        {**dict.fromkeys(["x_ptr", "bias_ptr", "out_ptr"], f"*{dtype}"), "columns": "i32"},
        {"BIAS": bias, "BLOCK": BLOCK},
        aligned=("columns",),
    )


COMPILE_CASES = [_case(dtype, bias) for dtype in ("bf16", "fp16", "fp32") for bias in (False, True)]
