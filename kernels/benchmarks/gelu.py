"""The exact GELU over the MLP's inner rows, beside torch's own."""

import sys

import torch
from torch.nn import functional

from benchmarks.inputs import dtype_of, randn
from tiercel_kernels.benchmark.bounds import SHAPES, FalconShape
from tiercel_kernels.benchmark.case import Case, Inputs, difference
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.fused.gelu import gelu
from tiercel_kernels.reference import gelu as reference

OP = "gelu"
ROWS = (1, 64, 256, 2048)


def case(shape: FalconShape, rows: int) -> Case:
    """Rows between the two linear layers of an MLP."""

    def prepare(device: torch.device, seed: int) -> Inputs:
        x = randn(rows, shape.ffn, device=device, seed=seed, dtype=dtype_of(device))

        def check() -> str:
            return difference(gelu(x), reference.gelu(x))

        return Inputs(lambda: gelu(x), check, {"torch": lambda: functional.gelu(x)})

    return Case(f"{shape.name}, {rows} rows", 2 * 2 * rows * shape.ffn, prepare)


def cases() -> list[Case]:
    return [case(shape, rows) for rows in ROWS for shape in SHAPES.values()]


if __name__ == "__main__":
    sys.exit(main(OP, cases()))
