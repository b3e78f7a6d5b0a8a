"""From the slices of a plan to the tensors of a step, gathered from the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from tiercel.attention.backend import IntArray, StepGeometry
from tiercel.layers.inputs import StepInputs
from tiercel.wire.step import RowSlice
from tiercel.worker.rows import Rows


class Planner(Protocol):
    """The part of an attention backend that is told of a step, see `CpuAttention.plan`."""

    def plan(self, geometry: StepGeometry, positions: torch.Tensor) -> Any:
        """Everything the layers of one step share."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: its tensors, and which of their rows belongs to which slice."""

    inputs: StepInputs
    slices: list[RowSlice]  # in the order of the tensors
    firsts: IntArray  # [slices], index of each slice's first token
    # [slices that sample]: where in what `Falcon.forward` returns each has the state of its last
    # token, which the next one is drawn from.
    drawn: IntArray


def gather(slices: Sequence[RowSlice], rows: Rows, block_tokens: int, backend: Planner) -> Batch:
    """Build the inputs of a step. The rows already hold the slices' new blocks.

    Raises ValueError for a slice that goes beyond its row's known tokens or its blocks.
    """
    ordered = [each for each in slices if each.count == 1]
    decodes = len(ordered)
    if decodes < len(slices):
        ordered += [each for each in slices if each.count != 1]
    numbers = np.array([(each.row, each.start, each.count) for each in ordered], dtype=np.int64)
    row, starts, counts = numbers.T
    ends = starts + counts
    if (ends > np.minimum(rows.known[row], rows.held[row] * block_tokens)).any():
        raise ValueError(f"slices beyond tokens or blocks of their rows: {list(slices)}")
    firsts = np.cumsum(counts) - counts
    positions, row_of = starts, row
    if decodes < len(slices):
        row_of = np.repeat(row, counts)
        positions = np.arange(len(row_of)) + np.repeat(starts - firsts, counts)
    tokens = rows.tokens[row_of, positions]
    slots = rows.blocks[row_of, positions // block_tokens] * block_tokens
    slots += positions % block_tokens
    padding = padded(len(tokens)) - len(tokens)
    if padding:
        tokens, positions = np.pad(tokens, (0, padding)), np.pad(positions, (0, padding))
    geometry = StepGeometry(starts, counts, rows.blocks[row], decodes, padding, rows.zero_block)
    places = torch.from_numpy(np.ascontiguousarray(positions))
    drawn = (firsts + counts - 1)[np.array([each.sample for each in ordered])]
    wanted = None
    if not any(rows.owed(each) for each in ordered):
        wanted = only(drawn, len(tokens))
    inputs = StepInputs(
        torch.from_numpy(tokens),
        torch.from_numpy(slots),
        backend.plan(geometry, places),
        None if wanted is None else torch.from_numpy(wanted),
    )
    return Batch(inputs, ordered, firsts, drawn if wanted is None else np.arange(len(drawn)))


def only(drawn: IntArray, tokens: int) -> IntArray | None:
    """StepInputs.wanted for a step of so many tokens, padded as steps are; None: all of them.

    Where no state is wanted at all, as in the middle of a prompt that runs alone, all are computed
    as well: layers know no empty batch.
    """
    if not len(drawn) or padded(len(drawn)) >= tokens:
        return None
    return np.pad(drawn, (0, padded(len(drawn)) - len(drawn)))


def padding_only(tokens: int, backend: Planner) -> StepInputs:
    """A step of which nothing is kept and that writes no cache, for the kernels it needs."""
    none = np.zeros(0, dtype=np.int64)
    geometry = StepGeometry(none, none, none.reshape(0, 0), 0, tokens, zero_block=0)
    ids = torch.zeros(tokens, dtype=torch.int64)
    return StepInputs(ids, torch.from_numpy(none), backend.plan(geometry, ids))


def padded(tokens: int) -> int:
    """The number of tokens a step is padded to: few sizes, and little more than is there.

    oneDNN makes and caches a kernel for every number of rows (per shape about 0.4 ms on a Zen 4,
    with AMX 2 to 13 ms and 1 MB; 1,024 of them): without this, steps with chunks of ever new
    lengths would go on making them. Its time grows evenly with multiples of 8 (Zen 4: 104 rows 53
    ms, 136 65, 168 79, 192 93), so coarser ones cost what they add: 8 decoding rows beside a chunk
    of 128 would pay for 160. AMX has tiles of 16 rows: 136 take 19.9 ms there and 144 18.8.
    """
    for limit, multiple in ((32, 1), (64, 4), (128, 8), (512, 16)):
        if tokens <= limit:
            return -(-tokens // multiple) * multiple
    return -(-tokens // 64) * 64
