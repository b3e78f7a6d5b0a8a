"""How a quantized weight is cut into parts that are written out one after the other, and in what
type they are multiplied.
"""

from collections.abc import Iterator

import torch

from tiercel.quantization.unquantized import onednn_has

# 256 rows of 4096: what is written is still in cache when it is multiplied. A whole weight at once
# took 1.5 to 2.5 times as long, 32 rows at a time twice as long (one Zen 3 core, 1 row of x).
CHUNK_NUMBERS = 1 << 20


def fast_dtype(dtype: torch.dtype) -> torch.dtype:
    """What activations of `dtype` are multiplied in on this CPU: float32 if it lacks their type.

    bfloat16 on one Zen 3 core: 4096 x 4096 numbers from 4 bits, 1 / 8 / 32 rows, take 26 / 37 / 85
    ms in float32 and 96 / 115 / 239 in bfloat16.
    """
    return dtype if onednn_has(dtype) else torch.float32


def chunk_rows(out: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of every part of a weight [out, width]."""
    step = max(1, CHUNK_NUMBERS // width)
    for first in range(0, out, step):
        yield first, min(out, first + step)
