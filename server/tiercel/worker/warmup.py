"""The first steps of a worker, so that no request pays for kernels that are made on first use."""

import time
from collections.abc import Callable

from tiercel.wire.request import SamplingParams
from tiercel.wire.step import RowSlice, RowStart, StepOutput, StepPlan

PREFILL_TOKENS = 256
DECODE_ROWS = 32  # every batch of up to so many rows has kernels of its own
BUDGET_S = 2.0


def warm_up(
    step: Callable[[StepPlan], StepOutput],
    max_rows: int,
    num_blocks: int,
    block_tokens: int,
    max_total_tokens: int,
) -> list[int]:
    """Run one chunk of prefill, then decoding batches: powers of two first, the others while time
    lasts. Returns the blocks that were written.
    """
    prompt = max(1, min(PREFILL_TOKENS, num_blocks * block_tokens, max_total_tokens - 1))
    blocks = list(range(-(-prompt // block_tokens)))
    start = RowStart(0, [0] * prompt, prompt, SamplingParams())
    step(StepPlan(0, [start], [RowSlice(0, 0, prompt, blocks, True)]))
    rows = min(DECODE_ROWS, max_rows, num_blocks)
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= rows]
    sizes += [size for size in range(rows, 0, -1) if size not in sizes]
    ends = time.monotonic() + BUDGET_S
    for count, size in enumerate(sizes):
        if count > 5 and time.monotonic() > ends:
            break
        step(
            StepPlan(
                0,
                [RowStart(row, [0], 1, SamplingParams()) for row in range(size)],
                [RowSlice(row, 0, 1, [row], True) for row in range(size)],
            )
        )
    return sorted({*blocks, *range(rows)})
