"""A 4-bit weight written out in 16 bits, for GEMMs of many rows: bound by writing it."""

import sys

import torch

from benchmarks.four_bit_inputs import four_bit, four_bit_bytes
from benchmarks.inputs import dtype_of
from benchmarks.skinny_linear import matrices
from tiercel_kernels.benchmark.bounds import SHAPES
from tiercel_kernels.benchmark.case import Case, Inputs, difference
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.fused.nf4_dequantize import nf4_dequantize
from tiercel_kernels.reference import nf4_dequantize as reference
from tiercel_kernels.reference.nf4_dequantize import BLOCK

OP = "nf4_dequantize"


def case(size: tuple[int, int], name: str) -> Case:
    """One weight [out, in]."""

    def prepare(device: torch.device, seed: int) -> Inputs:
        weight = four_bit(size, device, seed)
        out = torch.empty(size, dtype=dtype_of(device), device=device)

        def check() -> str:
            expected = reference.nf4_dequantize(weight, torch.empty_like(out))
            return difference(nf4_dequantize(weight, out), expected)

        return Inputs(lambda: nf4_dequantize(weight, out), check)

    out, width = size
    return Case(f"{name} {out} x {width}", four_bit_bytes(size) + 2 * out * width, prepare)


def cases() -> list[Case]:
    """7B and 40B, the goals' models."""
    return [
        case(size, f"{name} {kind}")
        for name in ("falcon-7b", "falcon-40b")
        for kind, size in matrices(SHAPES[name]).items()
        if "|" not in kind and size[1] % BLOCK == 0
    ]


if __name__ == "__main__":
    sys.exit(main(OP, cases()))
