"""The 4-bit linear layer of few rows, beside the vendor's 16-bit GEMM of the same shape, and
bitsandbytes' own on the same bytes where it is installed.
"""

import sys

import torch
from torch.nn import functional

from benchmarks.four_bit_inputs import four_bit, four_bit_bytes
from benchmarks.inputs import dtype_of, randn
from benchmarks.rivals import bitsandbytes_four_bit
from benchmarks.skinny_linear import ROWS, matrices
from tiercel_kernels.benchmark.bounds import SHAPES
from tiercel_kernels.benchmark.case import Case, Inputs, difference
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.fused.nf4_linear import nf4_linear
from tiercel_kernels.reference import nf4_dequantize as written_out
from tiercel_kernels.reference import nf4_linear as reference
from tiercel_kernels.reference.nf4_dequantize import BLOCK

OP = "nf4_linear"


def case(size: tuple[int, int], rows: int, name: str) -> Case:
    """Rows through one weight [out, in]."""
    out, width = size

    def prepare(device: torch.device, seed: int) -> Inputs:
        weight = four_bit(size, device, seed)
        x = randn(rows, width, device=device, seed=seed, dtype=dtype_of(device))
        wide = written_out.nf4_dequantize(weight, x.new_empty(size))

        def check() -> str:
            return difference(nf4_linear(x, weight), reference.nf4_linear(x, weight))

        return Inputs(
            lambda: nf4_linear(x, weight),
            check,
            {
                "cuBLAS, 16 bits": lambda: functional.linear(x, wide),
                **bitsandbytes_four_bit(x, weight),
            },
        )

    return Case(
        f"{name} {out} x {width}, {rows} rows",
        four_bit_bytes(size) + 2 * rows * (out + width),
        prepare,
        flops=2 * out * width * rows,
        resident_bytes=four_bit_bytes(size) + 2 * out * width,
    )


def cases() -> list[Case]:
    """7B and 40B, the goals' models."""
    return [
        case(size, rows, f"{name} {kind}")
        for rows in ROWS
        for name in ("falcon-7b", "falcon-40b")
        for kind, size in matrices(SHAPES[name]).items()
        if "|" not in kind and size[1] % BLOCK == 0
    ]


if __name__ == "__main__":
    sys.exit(main(OP, cases()))
