"""The first steps of a worker, so that no request pays for kernels that are made on first use."""

import time
from collections.abc import Callable

from tiercel.wire.request import SamplingParams
from tiercel.wire.step import RowSlice, RowStart, StepOutput, StepPlan

PREFILL_TOKENS = 256
SHORT_PREFILL_TOKENS = 32  # of a GPU's quantized layers, which have a tile for 17 to 32 rows
DECODE_ROWS = 32  # every batch of up to so many rows has kernels of its own
BUDGET_S = 2.0


def warm_up(
    step: Callable[[StepPlan], StepOutput],
    max_rows: int,
    num_blocks: int,
    block_tokens: int,
    max_total_tokens: int,
    smallest: Callable[[int], int],
) -> list[int]:
    """Run a long and a short chunk of prefill, then decoding batches: powers of two first, the
    others while time lasts. Returns the blocks that were written.

    `smallest`: of all ranks' values. They have to stop after the same step, whatever their clocks
    say: a step of one alone would never end.
    """
    longest = max(1, min(PREFILL_TOKENS, num_blocks * block_tokens, max_total_tokens - 1))
    blocks = list(range(-(-longest // block_tokens)))
    for prompt in sorted({longest, min(SHORT_PREFILL_TOKENS, longest)}, reverse=True):
        start = RowStart(0, [0] * prompt, prompt, SamplingParams())
        own = blocks[: -(-prompt // block_tokens)]
        step(StepPlan(0, [start], [RowSlice(0, 0, prompt, own, True)]))
    rows = min(DECODE_ROWS, max_rows, num_blocks)
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= rows]
    sizes += [size for size in range(rows, 0, -1) if size not in sizes]
    ends = time.monotonic() + BUDGET_S
    for count, size in enumerate(sizes):
        if count > 5 and not smallest(int(time.monotonic() < ends)):
            break
        step(
            StepPlan(
                0,
                [RowStart(row, [0], 1, SamplingParams()) for row in range(size)],
                [RowSlice(row, 0, 1, [row], True) for row in range(size)],
            )
        )
    return sorted({*blocks, *range(rows)})


def trial_plans(
    prefill_tokens: int, max_rows: int, block_tokens: int, max_total_tokens: int
) -> tuple[StepPlan, StepPlan]:
    """The step with most prefill and the one with most decoding rows: what memory must hold.

    All decoding rows have penalties, which take a copy of the logits and counts of all ids.
    Prompts are as long as they can be. Blocks are 0 and on, the last slice has the highest.
    """
    longest = max(1, max_total_tokens - 1)
    counts = [longest] * (prefill_tokens // longest) + [prefill_tokens % longest]
    counts = [count for count in counts if count][:max_rows]
    decodes = [1] * max_rows
    penalized = SamplingParams(repetition_penalty=1.1)
    return (
        _trial(counts, block_tokens, SamplingParams()),
        _trial(decodes, block_tokens, penalized),
    )


def _trial(counts: list[int], block_tokens: int, sampling: SamplingParams) -> StepPlan:
    starts, slices, block = [], [], 0
    for row, count in enumerate(counts):
        needed = -(-count // block_tokens)
        starts.append(RowStart(row, [0] * count, count, sampling))
        slices.append(RowSlice(row, 0, count, list(range(block, block + needed)), True))
        block += needed
    return StepPlan(0, starts, slices)
