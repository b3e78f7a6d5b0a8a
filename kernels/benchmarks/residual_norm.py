"""The residual sum with one or two layer norms in one pass, beside additions and torch's norm."""

import sys

import torch
from torch.nn import functional

from benchmarks.inputs import dtype_of, randn, sample_rows
from tiercel_kernels.benchmark.bounds import SHAPES, FalconShape
from tiercel_kernels.benchmark.case import Case, Inputs, difference
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.fused.residual_norm import residual_norm
from tiercel_kernels.reference import residual_norm as reference

OP = "residual_norm"
ROWS = (1, 64, 256, 2048)
EPS = 1e-5


def case(shape: FalconShape, rows: int) -> Case:
    """As between two layers: attention and MLP outputs, or their common one, and the norms."""
    branches = 1 if shape.norms == 1 else 2
    hidden = shape.hidden

    def prepare(device: torch.device, seed: int) -> Inputs:
        dtype = dtype_of(device)
        made = randn(1 + branches, rows, hidden, device=device, seed=seed, dtype=dtype)
        x, added = made[0], tuple(made[1:])
        weights = randn(shape.norms, 2, hidden, device=device, seed=seed + 1, dtype=dtype)
        norms = tuple((each[0], each[1]) for each in weights)

        def check() -> str:
            some = sample_rows(rows)
            total, normed = residual_norm(x, added, norms, EPS)
            wanted, wanted_normed = reference.residual_norm(
                x[some], tuple(each[some] for each in added), norms, EPS
            )
            pairs = [(total, wanted), *zip(normed, wanted_normed, strict=True)]
            problems = [difference(out[some], expected) for out, expected in pairs]
            return next((each for each in problems if each), "")

        def in_torch() -> list[torch.Tensor]:
            total = x
            for each in added:
                total = total + each
            return [functional.layer_norm(total, (hidden,), *norm, EPS) for norm in norms]

        return Inputs(lambda: residual_norm(x, added, norms, EPS), check, {"torch": in_torch})

    lines = 1 + branches + 1 + shape.norms  # read, the sum, normed
    moved = 2 * hidden * (rows * lines + 2 * shape.norms)
    kinds = f"{branches} + x, {shape.norms} norm{'s' if shape.norms > 1 else ''}"
    return Case(f"{shape.name}, {rows} rows, {kinds}", moved, prepare)


def cases() -> list[Case]:
    return [case(shape, rows) for rows in ROWS for shape in SHAPES.values()]


if __name__ == "__main__":
    sys.exit(main(OP, cases()))
