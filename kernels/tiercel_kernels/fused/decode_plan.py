"""The work list of decode attention, made on the device, so that one CUDA graph serves all lengths.

Not measured yet.
"""

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import CompileCase
from tiercel_kernels.fused.paged import ONE_BINARY
from tiercel_kernels.reference.decode_plan import DecodePlan
from tiercel_kernels.tuning.decode_attention import UNIT_TOKENS, UNIT_TOKENS_LARGE_GROUP

_BLOCK_ROWS = 256
_BLOCK_UNITS = 32


@triton.jit(**ONE_BINARY)
def _decode_plan_kernel(
    contexts,
    first_units,
    unit_rows,
    rows,
    max_units,
    UNIT_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
):
    # One program per row adds up the units of all rows before it: with a few hundred rows that is
    # one or two loads, and no program waits for another.
    row = tl.program_id(0)
    first = 0
    for start in range(0, row, BLOCK_ROWS):
        each = start + tl.arange(0, BLOCK_ROWS)
        tokens = tl.load(contexts + each, mask=each < row, other=0)
        units = tl.minimum(tl.maximum(tl.cdiv(tokens, UNIT_TOKENS), 1), max_units)
        first += tl.sum(tl.where(each < row, units, 0), 0)
    tokens = tl.load(contexts + row)
    own = tl.minimum(tl.maximum(tl.cdiv(tokens, UNIT_TOKENS), 1), max_units)
    tl.store(first_units + row, first)
    if row == rows - 1:
        tl.store(first_units + rows, first + own)
    for start in range(0, own, BLOCK_UNITS):
        each = start + tl.arange(0, BLOCK_UNITS)
        listed = tl.zeros([BLOCK_UNITS], dtype=tl.int32) + row
        tl.store(unit_rows + first + each, listed, mask=each < own)


def decode_plan(contexts: torch.Tensor, unit_tokens: int, max_units: int) -> DecodePlan:
    """See the specification."""
    rows = contexts.shape[0]
    first_units = contexts.new_empty(rows + 1)
    unit_rows = contexts.new_empty(rows * max_units)
    _decode_plan_kernel[(rows,)](
        contexts,
        first_units,
        unit_rows,
        rows,
        max_units,
        UNIT_TOKENS=unit_tokens,
        BLOCK_ROWS=_BLOCK_ROWS,
        BLOCK_UNITS=_BLOCK_UNITS,
        num_warps=2,
    )
    return DecodePlan(first_units, unit_rows, unit_tokens, max_units)


COMPILE_CASES = [
    CompileCase(
        kernel=_decode_plan_kernel,
        name=f"{keys} keys",
        signature={
            "contexts": "*i32",
            "first_units": "*i32",
            "unit_rows": "*i32",
            "rows": "i32",
            "max_units": "i32",
        },
        constexprs={
            "UNIT_TOKENS": keys,
            "BLOCK_ROWS": _BLOCK_ROWS,
            "BLOCK_UNITS": _BLOCK_UNITS,
        },
        num_warps=2,
    )
    for keys in (UNIT_TOKENS, UNIT_TOKENS_LARGE_GROUP)
]
