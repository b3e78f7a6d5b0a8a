"""Device code that the attention kernels share: gather from the cache, ALiBi, one softmax step."""

import triton
import triton.language as tl

from tiercel_kernels.compile_case import CompileCase

COMPILE_CASES: list[CompileCase] = []  # all of this is compiled inside the kernels that call it

# Kernels use exp2, the hardware's own, on scores that are already in units of log(2).
LOG2_E = 1.4426950408889634

# What changes from step to step must not make Triton compile again while serving: it would for
# every count that is 1 or a multiple of 16, and for every view of integers that begins unaligned.
ONE_BINARY = {
    "do_not_specialize": ["rows", "max_units", "table_stride"],
    "do_not_specialize_on_alignment": [
        *("block_tables", "contexts", "starts", "first_tokens", "first_units", "unit_rows"),
        *("positions", "slots"),
    ],
}


def check_head_dim(head_dim: int) -> None:
    """Raises ValueError where tiles of heads would not be Triton's: powers of two, 16 and up."""
    if head_dim < 16 or head_dim & (head_dim - 1):
        raise ValueError(f"head_dim is {head_dim}; the kernels need a power of two, 16 or more")


@triton.jit
def gather_offsets(
    block_table,
    tokens,
    valid,
    kv_head,
    block_stride,
    token_stride,
    head_stride,
    BLOCK_TOKENS: tl.constexpr,
):
    """Where the tokens' keys (and values) of one KV head begin in the cache: int64 [tokens]."""
    blocks = tl.load(block_table + tokens // BLOCK_TOKENS, mask=valid, other=0).to(tl.int64)
    places = tokens % BLOCK_TOKENS
    return blocks * block_stride + places * token_stride + kv_head * head_stride


@triton.jit
def round_to_bfloat16(x):
    """To the nearest bfloat16, ties to even, as a float32.

    On the bits, since the interpreter's own conversion cuts off instead of rounding.
    """
    bits = x.to(tl.uint32, bitcast=True)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return ((bits >> 16) << 16).to(tl.float32, bitcast=True)


@triton.jit
def alibi_bias(slopes, tokens):
    """As reference/paged.py: slopes and tokens broadcast against each other."""
    return round_to_bfloat16(slopes * round_to_bfloat16(tokens.to(tl.float32)))


@triton.jit
def fold_tile(
    q,  # [rows, dim]
    k,  # [keys, dim]
    v,  # [keys, dim]
    visible,  # broadcasts to [rows, keys]; of each row's first tile at least one key
    slopes,  # float32 [rows]
    tokens,  # [keys]
    scale,  # of the softmax, times log2(e)
    peak,  # float32 [rows], the largest score so far
    total,  # float32 [rows], the sum of weights, relative to the peak
    acc,  # float32 [rows, dim]
    MASKED: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
):
    """One tile of keys into the running softmax."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if HAS_ALIBI:
        scores += alibi_bias(slopes[:, None], tokens[None, :])
    scores *= scale
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_peak, total, acc
