"""Milliseconds of one linear layer on a CPU in every mode of --quantize, as the worker runs it.

    python -m tiercel.bench.linear [--size 4096] [--rounds 9]

Prints the speed table of docs/quantization.md. All modes take turns, so that whatever else the
machine does befalls them alike; wants an otherwise idle one all the same.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch

from tiercel.quantization.method import linear_method

MODES = (None, "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-llm-int8")
DTYPES = (torch.float32, torch.bfloat16)
ROWS = (1, 8, 32, 128)
Layer = Callable[[torch.Tensor], torch.Tensor]


def layers(size: int, dtype: torch.dtype) -> dict[str | None, Layer]:
    """A layer of each mode over the same weight [size, size]."""
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(1)) / math.sqrt(size)
    return {mode: linear_method(mode, dtype).build(weight.to(dtype), None) for mode in MODES}


def medians_ms(of_dtype: dict[str | None, Layer], x: torch.Tensor, rounds: int) -> list[float]:
    """Of each mode for these rows; a round that nobody counts comes first."""
    taken: dict[str | None, list[float]] = {mode: [] for mode in of_dtype}
    for _ in range(rounds + 1):
        for mode, layer in of_dtype.items():
            began = time.perf_counter()
            layer(x)
            taken[mode].append((time.perf_counter() - began) * 1e3)
    return [statistics.median(times[1:]) for times in taken.values()]


@torch.inference_mode()
def table(size: int, rounds: int) -> list[str]:
    """The lines of the table; a cell has the times for each number of rows."""
    names = ["plain", *(f"`{mode}`" for mode in MODES if mode)]
    lines = [f"| activations | {' | '.join(names)} |", "|---" * (1 + len(MODES)) + "|"]
    for dtype in DTYPES:
        of_dtype = layers(size, dtype)
        columns = [medians_ms(of_dtype, torch.randn(rows, size).to(dtype), rounds) for rows in ROWS]
        cells = [" / ".join(f"{times[i]:.2g}" for times in columns) for i in range(len(MODES))]
        lines.append(f"| {str(dtype).removeprefix('torch.')} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="One linear layer in every mode of --quantize.")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("\n".join(table(arguments.size, arguments.rounds)))  # noqa: T201 (the answer)


if __name__ == "__main__":
    main()
