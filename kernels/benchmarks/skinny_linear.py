"""The linear layer of few rows, beside the vendor's GEMM as torch calls it."""

import sys
from collections.abc import Callable

import torch
from torch.nn import functional

from benchmarks.inputs import dtype_of, randn
from tiercel_kernels.benchmark.bounds import SHAPES, FalconShape
from tiercel_kernels.benchmark.case import Case, Inputs, difference, turns
from tiercel_kernels.benchmark.script import main
from tiercel_kernels.benchmark.sweep import Sweep, Trial
from tiercel_kernels.fused.skinny_linear import multiply, skinny_linear
from tiercel_kernels.reference import skinny_linear as reference
from tiercel_kernels.tuning.cards import nearest
from tiercel_kernels.tuning.skinny_linear import VARIANTS, LinearVariant, variant

OP = "skinny_linear"
ROWS = (1, 16, 32, 2, 4, 8)
_CHECKED = 64  # first and last outputs, compared with the reference


def matrices(shape: FalconShape) -> dict[str, tuple[int, int]]:
    """(out, in) of a layer's weights; also where two of them are one matrix."""
    inner = shape.heads * shape.head_dim
    found = {
        "up": (shape.ffn, shape.hidden),
        "down": (shape.hidden, shape.ffn),
        "qkv": (shape.qkv_size, shape.hidden),
        "output": (shape.hidden, inner),
        "down | output": (shape.hidden, shape.ffn + inner),
    }
    if shape.norms == 1:  # both read the same rows
        found["up | qkv"] = (shape.ffn + shape.qkv_size, shape.hidden)
    return found


def case(size: tuple[int, int], rows: int, name: str, gelu: bool = False) -> Case:
    """Rows through one weight [out, in]."""
    out, width = size

    def prepare(device: torch.device, seed: int) -> Inputs:
        x, weight = _tensors(size, rows, device, seed)

        def check() -> str:
            return _wrong(skinny_linear(x, weight, None, gelu), x, weight, gelu)

        def vendor() -> torch.Tensor:
            y = functional.linear(x, weight)
            return functional.gelu(y) if gelu else y

        return Inputs(lambda: skinny_linear(x, weight, None, gelu), check, {"cuBLAS": vendor})

    return Case(
        f"{name}{' and GELU' if gelu else ''} {out} x {width}, {rows} rows",
        2 * (out * width + rows * (out + width)),
        prepare,
        flops=2 * out * width * rows,
    )


def _tensors(
    size: tuple[int, int], rows: int, device: torch.device, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whose product is normally distributed."""
    dtype = dtype_of(device)
    x = randn(rows, size[1], device=device, seed=seed, dtype=dtype)
    weight = randn(*size, device=device, seed=seed + 1, dtype=dtype)
    return x, weight.div_(size[1] ** 0.5)


def _wrong(made: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, gelu: bool) -> str:
    for part in (slice(None, _CHECKED), slice(-_CHECKED, None)):
        problem = difference(made[:, part], reference.skinny_linear(x, weight[part], None, gelu))
        if problem:
            return problem
    return ""


def cases() -> list[Case]:
    """7B and 40B, the goals' models; GELU behind the first matrix of the MLP."""
    return [
        case(size, rows, f"{name} {kind}", gelu=kind == "up")
        for rows in ROWS
        for name in ("falcon-7b", "falcon-40b")
        for kind, size in matrices(SHAPES[name]).items()
    ]


_VALUES = {
    "block_n": (8, 16, 32, 64, 128),
    "block_k": (32, 64, 128, 256),
    "split_k": (1, 2, 4, 8, 16),
    "num_warps": (1, 2, 4, 8),
    "num_stages": (2, 3, 4, 5, 6, 7),
}


def sweep(size: tuple[int, int], listed: list[LinearVariant], rows: list[int], name: str) -> Sweep:
    """Of one entry of the table, over numbers of rows."""

    def trial(count: int, device: torch.device) -> Trial:
        sets = turns(2 * size[0] * size[1], device)
        tensors = [_tensors(size, count, device, seed) for seed in range(sets)]

        def runner(
            x: torch.Tensor, weight: torch.Tensor
        ) -> Callable[[LinearVariant], Callable[[], object]]:
            return lambda point: lambda: multiply(x, weight, None, False, point)

        def check(point: LinearVariant) -> str:
            x, weight = tensors[0]
            return _wrong(multiply(x, weight, None, False, point), x, weight, False)

        return Trial(f"{count} rows", [runner(*each) for each in tensors], check)

    return Sweep(
        f"{size}, {name}", listed, _VALUES, lambda device: [trial(count, device) for count in rows]
    )


def sweeps(capability: int) -> list[Sweep]:
    """Every matrix of 7B and 40B; where the table knows none, from what is chosen without one."""
    card = nearest(VARIANTS, capability)
    return [
        sweep(
            size,
            VARIANTS[card].get(size, [variant(capability, *size, 2)]),
            [1, 16],
            f"{name} {kind}",
        )
        for name in ("falcon-7b", "falcon-40b")
        for kind, size in matrices(SHAPES[name]).items()
    ]


if __name__ == "__main__":
    sys.exit(main(OP, cases(), sweeps))
