"""How decoding rows of very different lengths are cut into pieces of work of one length.

Pure index arithmetic in numpy, once per step; the attention itself is in `cpu.py`.
"""

from dataclasses import dataclass

import numpy as np

from tiercel.attention.backend import IntArray, StepGeometry

UNIT_TOKENS = (128, 256, 512)
# In key tokens: what a unit costs beside its keys, and what merging the units of a row costs.
# With 3 query heads on one Zen 4 core: a key 0.02 to 0.045 us, a unit 1 us, the merge 25 us.
UNIT_COST = 32
MERGE_COST = 1024
LENGTH_STEPS = ((256, 32), (1024, 64), (2048, 128), (4096, 256))  # most keys, and their step


@dataclass(frozen=True, slots=True)
class Units:
    """`tokens` keys per unit; unit u is piece `piece[u]` of decoding row `row[u]`."""

    tokens: int
    row: IntArray  # [units], ascending
    piece: IntArray  # [units]
    pieces: int  # the most pieces of one row; 1: nothing to merge


def few_lengths(keys: int, block_tokens: int) -> int:
    """The number of keys that attention reads for `keys` of them, in whole blocks.

    In coarse steps, since oneDNN makes a kernel for every length that it meets. With blocks of up
    to 32 tokens at most a quarter more than are needed from 128 on, and always fewer than
    max(UNIT_TOKENS) more.
    """
    step = next((step for limit, step in LENGTH_STEPS if keys <= limit), max(UNIT_TOKENS))
    step = max(block_tokens, step)
    return -(-keys // step) * step


def cut(contexts: IntArray, block_tokens: int, tasks_per_unit: int, threads: int) -> Units:
    """Choose the unit that costs least, for rows of `contexts` keys each.

    One unit per row needs no merge but pads every row to the longest. `tasks_per_unit`: parts of a
    unit that can run in parallel.
    """
    rows = len(contexts)
    longest = int(contexts.max())
    whole = few_lengths(longest, block_tokens)
    tokens, best = whole, rows * (whole + UNIT_COST)
    if rows * tasks_per_unit < threads:  # idle cores: cutting is all there is to run in parallel
        best = best * threads // (rows * tasks_per_unit)
    if best > MERGE_COST:
        for unit in UNIT_TOKENS:
            if unit < whole:
                cost = int((-(-contexts // unit)).sum()) * (unit + UNIT_COST) + MERGE_COST
                if cost < best:
                    tokens, best = unit, cost
    if tokens == whole:
        each = np.arange(rows)
        return Units(whole, each, np.zeros(rows, dtype=np.int64), 1)
    pieces = -(-contexts // tokens)
    row = np.repeat(np.arange(rows), pieces)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return Units(tokens, row, piece, int(pieces.max()))


def unit_blocks(units: Units, geometry: StepGeometry, block_tokens: int) -> IntArray:
    """The cache blocks of all units, one behind the other: [units * tokens / block_tokens]."""
    per_unit = units.tokens // block_tokens
    columns = units.piece[:, None] * per_unit + np.arange(per_unit)
    blocks: IntArray = geometry.block_tables[units.row[:, None], columns].reshape(-1)
    return blocks


def key_mask(units: Units, contexts: IntArray) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """0 for a key of the row, -inf behind its end: float32 [units, tokens]."""
    left = contexts[units.row] - units.piece * units.tokens
    hidden = np.arange(units.tokens) >= left[:, None]
    return np.where(hidden, np.float32(-np.inf), np.float32(0.0))
