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
def gelu_kernel(
    x_ptr, bias_ptr, out_ptr, columns, out_stride, BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(x_ptr + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    target = out_ptr + row * out_stride + column
    tl.store(target, exact_gelu(x).to(out_ptr.dtype.element_ty), mask=inside)


def gelu(
    x: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """See reference.gelu."""
    check(x, bias, out)
    x = x.contiguous()
    if out is None:
        out = torch.empty_like(x)
    rows, columns = x.shape
    for start in range(0, rows, 65535):  # a launch's second dimension ends there
        part = x[start : start + 65535]
        gelu_kernel[(triton.cdiv(columns, BLOCK), len(part))](
            part,
            x if bias is None else bias,
            out[start : start + 65535],
            columns,
            out.stride(0),
            BIAS=bias is not None,
            BLOCK=BLOCK,
        )
    return out


def _case(dtype: str, bias: bool) -> CompileCase:
    return CompileCase(
        gelu_kernel,
        f"{'bias, ' if bias else ''}{dtype}",
        {
            **dict.fromkeys(["x_ptr", "bias_ptr", "out_ptr"], f"*{dtype}"),
            "columns": "i32",
            "out_stride": "i32",
        },
        {"BIAS": bias, "BLOCK": BLOCK},
        aligned=("columns", "out_stride"),
    )


COMPILE_CASES = [_case(dtype, bias) for dtype in ("bf16", "fp16", "fp32") for bias in (False, True)]
