"""The int8 linear layer of few rows, beside the vendor's 16-bit GEMM of the same shape.

That rival reads twice the bytes: what is worth knowing is how much less time half of them take.
bitsandbytes' own, where it is installed, reads the same.
"""

import sys

import torch
from torch.nn import functional

from benchmarks.inputs import dtype_of, randn
from benchmarks.rivals import bitsandbytes_int8
from benchmarks.skinny_linear import ROWS, matrices
from tiercel_kernels.benchmark.bounds import SHAPES
from tiercel_kernels.benchmark.case import Case, Inputs, difference
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.fused.int8_linear import int8_linear
from tiercel_kernels.reference import int8_linear as reference

OP = "int8_linear"
_CHECKED = 64  # first and last outputs, compared with the reference


def case(size: tuple[int, int], rows: int, name: str) -> Case:
    """Rows through one weight [out, in]."""
    out, width = size

    def prepare(device: torch.device, seed: int) -> Inputs:
        dtype = dtype_of(device)
        generator = torch.Generator(device).manual_seed(seed)
        x = randn(rows, width, device=device, seed=seed, dtype=dtype)
        codes = torch.randint(-127, 128, size, generator=generator, device=device, dtype=torch.int8)
        absmax = torch.rand(out, generator=generator, device=device) + 0.5
        wide = codes.to(dtype)

        def check() -> str:
            made = int8_linear(x, codes, absmax)
            for part in (slice(None, _CHECKED), slice(-_CHECKED, None)):
                expected = reference.int8_linear(x, codes[part], absmax[part])
                problem = difference(made[:, part], expected)
                if problem:
                    return problem
            return ""

        return Inputs(
            lambda: int8_linear(x, codes, absmax),
            check,
            {
                "cuBLAS, 16 bits": lambda: functional.linear(x, wide),
                **bitsandbytes_int8(x, codes, absmax),
            },
        )

    return Case(
        f"{name} {out} x {width}, {rows} rows",
        out * width + 4 * out + 2 * rows * (out + width),
        prepare,
        flops=2 * out * width * rows,
        resident_bytes=3 * out * width,
    )


def cases() -> list[Case]:
    """7B and 40B, the goals' models."""
    return [
        case(size, rows, f"{name} {kind}")
        for rows in ROWS
        for name in ("falcon-7b", "falcon-40b")
        for kind, size in matrices(SHAPES[name]).items()
        if "|" not in kind  # joined matrices are not quantized as one
    ]


if __name__ == "__main__":
    sys.exit(main(OP, cases()))
