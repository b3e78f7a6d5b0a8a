"""penalties: a count of the ids by integer atomics, whose order changes nothing, then one pass."""

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import CompileCase
from tiercel_kernels.reference.penalties import Penalties, check

BLOCK = 1024
_VALUES = ("repetition_ptr", "frequency_ptr", "presence_ptr", "count_ptr")
# Of a number per row, so that a view of any may be passed without another binary.
ONE_BINARY = {"do_not_specialize_on_alignment": ["lengths_ptr", "prompts_ptr", *_VALUES]}


# A row's tokens are as many as the longest sequence may have: any number.
@triton.jit(do_not_specialize=["stride"], **ONE_BINARY)
def count_kernel(
    tokens_ptr,
    lengths_ptr,
    prompts_ptr,
    counts_ptr,  # int32 [rows, 2, vocab], zero: in all known tokens, in the generated ones
    vocab,
    stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths_ptr + row)
    start = tl.program_id(0) * BLOCK
    if start < length:
        position = start + tl.arange(0, BLOCK)
        known = position < length
        token = tl.load(tokens_ptr + row * stride + position, mask=known, other=-1)
        counted = known & (token >= 0) & (token < vocab)
        counts = counts_ptr + row * 2 * vocab + token
        tl.atomic_add(counts, 1, mask=counted, sem="relaxed")
        generated = counted & (position >= tl.load(prompts_ptr + row))
        tl.atomic_add(counts + vocab, 1, mask=generated, sem="relaxed")


@triton.jit(**ONE_BINARY)
def penalties_kernel(
    logits_ptr,
    counts_ptr,
    lengths_ptr,
    repetition_ptr,
    frequency_ptr,
    presence_ptr,
    count_ptr,
    vocab,
    stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab
    counts = counts_ptr + row * 2 * vocab + token
    every = tl.load(counts, mask=inside, other=0)
    generated = tl.load(counts + vocab, mask=inside, other=0)
    seen = every > 0
    logits = logits_ptr + row * stride + token
    value = tl.load(logits, mask=seen, other=0.0)
    repetition = tl.load(repetition_ptr + row)
    value = tl.where(value < 0, value * repetition, value / repetition)
    share = tl.load(frequency_ptr + row) / tl.maximum(tl.load(lengths_ptr + row), 1)
    value -= every * share
    change = tl.load(presence_ptr + row) + tl.load(count_ptr + row) * generated
    tl.store(logits, tl.where(generated > 0, value - change, value), mask=seen)


def penalties(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    prompt_lengths: torch.Tensor,
    values: Penalties,
) -> None:
    """See reference.penalties. Takes 8 bytes of scratch per row and id. At most 65,535 rows."""
    check(logits, tokens, lengths, prompt_lengths, values)
    rows, vocab = logits.shape
    if not rows or not tokens.shape[1]:
        return
    counts = torch.zeros(rows, 2, vocab, dtype=torch.int32, device=logits.device)
    count_kernel[(triton.cdiv(tokens.shape[1], BLOCK), rows)](
        tokens, lengths, prompt_lengths, counts, vocab, tokens.stride(0), BLOCK=BLOCK
    )
    penalties_kernel[(triton.cdiv(vocab, BLOCK), rows)](
        logits,
        counts,
        lengths,
        values.repetition,
        values.frequency,
        values.presence,
        values.count,
        vocab,
        logits.stride(0),
        BLOCK=BLOCK,
    )


_INTEGERS = ("tokens_ptr", "lengths_ptr", "prompts_ptr", "counts_ptr")
_FLOATS = ("logits_ptr", *_VALUES)
_SIZES = {"vocab": "i32", "stride": "i32"}

COMPILE_CASES = [
    CompileCase(
        count_kernel,
        "",
        {**dict.fromkeys(_INTEGERS, "*i32"), **_SIZES},
        {"BLOCK": BLOCK},
        aligned=("vocab",),
    ),
    CompileCase(
        penalties_kernel,
        "",
        {**dict.fromkeys(_FLOATS, "*fp32"), "counts_ptr": "*i32", "lengths_ptr": "*i32", **_SIZES},
        {"BLOCK": BLOCK},
        aligned=("vocab", "stride"),
    ),
]
