"""Paged decode attention: units of work over a persistent grid, then a log-sum-exp merge.

Not measured yet. All query heads of a KV head are rows of one tile, so that keys and values are
read once; 71 heads are a tile of 64 and one of 16 rows (80 multiplied, 71 useful, instead of 128).
Functions of over 50 lines because a Triton kernel is one.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import ARCHITECTURES, CompileCase, buildable, in_use
from tiercel_kernels.device import bytes_per_number, capability, processors
from tiercel_kernels.fused.decode_merge import merge_units
from tiercel_kernels.fused.paged import (
    LOG2_E,
    ONE_BINARY,
    alibi_bias,
    check_head_dim,
    fold_tile,
    gather_offsets,
)
from tiercel_kernels.reference.decode_plan import DecodePlan
from tiercel_kernels.tuning.decode_attention import (
    FLOAT32,
    VARIANTS,
    DecodeVariant,
    kind,
    unit_tokens,
    variant,
)


@triton.jit
def _load_queries(
    queries, slopes, row, row_stride, first_head, group_row, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, HAS_ALIBI: tl.constexpr,
):  # fmt: skip
    """The tile of queries of some rows of a group, and their slopes; rows past the group are 0."""
    there = group_row < GROUP
    at = queries + row * row_stride + (first_head + group_row)[:, None] * HEAD_DIM
    q = tl.load(at + tl.arange(0, HEAD_DIM)[None, :], mask=there[:, None], other=0.0)
    slope = tl.zeros([group_row.shape[0]], dtype=tl.float32)
    if HAS_ALIBI:
        slope = tl.load(slopes + first_head + group_row, mask=there, other=0.0)
    return q, slope


@triton.jit
def _store_unit(
    out, partial_out, partial_lse, peak, total, acc, row, row_stride, unit, alone, first_head,
    group_row, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """The result of one unit: the row's own if it is its only one, else a part of it."""
    there = group_row < GROUP
    head = first_head + group_row
    dims = tl.arange(0, HEAD_DIM)[None, :]
    # An empty row has no weights at all; its output is zero.
    result = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    if alone:
        target = out + row * row_stride + head[:, None] * HEAD_DIM + dims
        tl.store(target, result.to(out.dtype.element_ty), mask=there[:, None])
    else:
        place = tl.cast(unit, tl.int64) * HEADS + head
        tl.store(partial_out + place[:, None] * HEAD_DIM + dims, result, mask=there[:, None])
        tl.store(partial_lse + place, peak + tl.log2(total), mask=there)


@triton.jit(**ONE_BINARY)
def _decode_kernel(
    queries,
    key_cache,
    value_cache,
    block_tables,
    contexts,
    slopes,
    first_units,
    unit_rows,
    out,
    partial_out,
    partial_lse,
    rows,
    scale,
    query_stride,
    out_stride,
    table_stride,
    block_stride,
    token_stride,
    head_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    UNIT_TOKENS: tl.constexpr,
    ROWS_A: tl.constexpr,
    ROWS_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
):
    dims = tl.arange(0, HEAD_DIM)[None, :]
    rows_a = tl.arange(0, ROWS_A)
    items = tl.load(first_units + rows) * KV_HEADS
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        unit, kv_head = item // KV_HEADS, item % KV_HEADS
        row = tl.load(unit_rows + unit).to(tl.int64)
        first = tl.load(first_units + row)
        alone = tl.load(first_units + row + 1) - first == 1
        start = (unit - first) * UNIT_TOKENS
        end = tl.minimum(start + UNIT_TOKENS, tl.load(contexts + row))
        first_head = kv_head * GROUP

        q_a, slope_a = _load_queries(
            queries, slopes, row, query_stride, first_head, rows_a, GROUP, HEAD_DIM, HAS_ALIBI
        )
        peak_a = tl.full([ROWS_A], float("-inf"), dtype=tl.float32)
        total_a = tl.zeros([ROWS_A], dtype=tl.float32)
        acc_a = tl.zeros([ROWS_A, HEAD_DIM], dtype=tl.float32)
        if ROWS_B:
            rows_b = ROWS_A + tl.arange(0, ROWS_B)
            q_b, slope_b = _load_queries(
                queries, slopes, row, query_stride, first_head, rows_b, GROUP, HEAD_DIM, HAS_ALIBI
            )
            peak_b = tl.full([ROWS_B], float("-inf"), dtype=tl.float32)
            total_b = tl.zeros([ROWS_B], dtype=tl.float32)
            acc_b = tl.zeros([ROWS_B, HEAD_DIM], dtype=tl.float32)

        for n in range(start, end, BLOCK_N):
            tokens = n + tl.arange(0, BLOCK_N)
            valid = tokens < end
            at = gather_offsets(
                block_tables + row * table_stride, tokens, valid, kv_head,
                block_stride, token_stride, head_stride, BLOCK_TOKENS,
            )  # fmt: skip
            # Zeros for what lies behind the end: its weight is 0, and 0 * NaN would still be NaN.
            k = tl.load(key_cache + at[:, None] + dims, mask=valid[:, None], other=0.0)
            v = tl.load(value_cache + at[:, None] + dims, mask=valid[:, None], other=0.0)
            peak_a, total_a, acc_a = fold_tile(
                q_a, k, v, valid[None, :], slope_a, tokens, scale, peak_a, total_a, acc_a,
                True, HAS_ALIBI,
            )  # fmt: skip
            if ROWS_B:
                peak_b, total_b, acc_b = fold_tile(
                    q_b, k, v, valid[None, :], slope_b, tokens, scale, peak_b, total_b, acc_b,
                    True, HAS_ALIBI,
                )  # fmt: skip

        _store_unit(
            out, partial_out, partial_lse, peak_a, total_a, acc_a, row, out_stride, unit, alone,
            first_head, rows_a, GROUP, KV_HEADS * GROUP, HEAD_DIM,
        )  # fmt: skip
        if ROWS_B:
            _store_unit(
                out, partial_out, partial_lse, peak_b, total_b, acc_b, row, out_stride, unit,
                alone, first_head, rows_b, GROUP, KV_HEADS * GROUP, HEAD_DIM,
            )  # fmt: skip


@triton.jit(**ONE_BINARY)
def _decode_vector_kernel(
    queries,
    key_cache,
    value_cache,
    block_tables,
    contexts,
    slopes,
    first_units,
    unit_rows,
    out,
    partial_out,
    partial_lse,
    rows,
    scale,
    query_stride,
    out_stride,
    table_stride,
    block_stride,
    token_stride,
    head_stride,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    UNIT_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    STAGES: tl.constexpr,
):
    # One query head per KV head: one useful row of a tile of 16, so no tensor cores.
    dims = tl.arange(0, HEAD_DIM)
    items = tl.load(first_units + rows) * HEADS
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        unit, head = item // HEADS, item % HEADS
        row = tl.load(unit_rows + unit).to(tl.int64)
        first = tl.load(first_units + row)
        alone = tl.load(first_units + row + 1) - first == 1
        start = (unit - first) * UNIT_TOKENS
        end = tl.minimum(start + UNIT_TOKENS, tl.load(contexts + row))
        q = tl.load(queries + row * query_stride + head * HEAD_DIM + dims).to(tl.float32)
        peak = float("-inf")
        total = 0.0
        acc = tl.zeros([HEAD_DIM], dtype=tl.float32)
        # Said here: without a dot in the loop, the launch's number of stages is not applied.
        for n in tl.range(start, end, BLOCK_N, num_stages=STAGES):
            tokens = n + tl.arange(0, BLOCK_N)
            valid = tokens < end
            at = gather_offsets(
                block_tables + row * table_stride, tokens, valid, head,
                block_stride, token_stride, head_stride, BLOCK_TOKENS,
            )[:, None] + dims[None, :]  # fmt: skip
            k = tl.load(key_cache + at, mask=valid[:, None], other=0.0).to(tl.float32)
            v = tl.load(value_cache + at, mask=valid[:, None], other=0.0).to(tl.float32)
            scores = tl.sum(k * q[None, :], 1)
            if HAS_ALIBI:
                scores += alibi_bias(tl.load(slopes + head), tokens)
            scores = tl.where(valid, scores * scale, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(scores, 0))
            weights = tl.exp2(scores - new_peak)
            shrink = tl.exp2(peak - new_peak)
            total = total * shrink + tl.sum(weights, 0)
            acc = acc * shrink + tl.sum(v * weights[:, None], 0)
            peak = new_peak
        result = acc / tl.where(total > 0.0, total, 1.0)
        if alone:
            target = out + row * out_stride + head * HEAD_DIM + dims
            tl.store(target, result.to(out.dtype.element_ty))
        else:
            place = tl.cast(unit, tl.int64) * HEADS + head
            tl.store(partial_out + place * HEAD_DIM + dims, result)
            tl.store(partial_lse + place, peak + tl.log2(total))


def tile_rows(group: int) -> tuple[int, int]:
    """Two powers of two, at least 16 (the second may be 0), that hold a group with least waste."""
    whole = max(16, triton.next_power_of_2(group))
    half = whole // 2
    if half < 16 or group <= half:
        return whole, 0
    rest = max(16, triton.next_power_of_2(group - half))
    return (half, rest) if half + rest < whole else (whole, 0)


def decode_attention(
    queries: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    contexts: torch.Tensor,
    plan: DecodePlan,
    out: torch.Tensor,
    slopes: torch.Tensor | None = None,
) -> None:
    """See the specification.

    Heads and dimensions of queries and out are contiguous, as are the caches' last dimension and
    rows of the block tables; both caches have the same strides; head_dim is a power of two.
    """
    group = queries.shape[1] // key_cache.shape[2]
    size = bytes_per_number(queries)
    chosen = variant(capability(queries.device), group, queries.shape[2], size)
    attend_units(queries, key_cache, value_cache, block_tables, contexts, plan, out, slopes, chosen)


def attend_units(
    queries: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    contexts: torch.Tensor,
    plan: DecodePlan,
    out: torch.Tensor,
    slopes: torch.Tensor | None,
    chosen: DecodeVariant,
) -> None:
    """decode_attention with these launch parameters."""
    rows, heads, head_dim = queries.shape
    check_head_dim(head_dim)
    _, block_tokens, kv_heads, _ = key_cache.shape
    group = heads // kv_heads
    parts = plan.unit_rows.shape[0] if plan.max_units > 1 else 1
    partial_out = queries.new_empty(parts, heads, head_dim, dtype=torch.float32)
    partial_lse = queries.new_empty(parts, heads, dtype=torch.float32)
    programs = min(
        plan.unit_rows.shape[0] * kv_heads, processors(queries.device) * chosen.programs_per_sm
    )
    kernel = _decode_vector_kernel if group == 1 else _decode_kernel
    kernel[(programs,)](
        queries,
        key_cache,
        value_cache,
        block_tables,
        contexts,
        queries if slopes is None else slopes,  # a pointer that nobody follows
        plan.first_units,
        plan.unit_rows,
        out,
        partial_out,
        partial_lse,
        rows,
        head_dim**-0.5 * LOG2_E,
        queries.stride(0),
        out.stride(0),
        block_tables.stride(0),
        *key_cache.stride()[:3],
        **_constants(chosen, group, kv_heads, head_dim, slopes is not None)
        | {"BLOCK_TOKENS": block_tokens, "UNIT_TOKENS": plan.unit_tokens},
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )
    if plan.max_units > 1:
        merge_units(partial_out, partial_lse, plan.first_units, out)


def _constants(
    chosen: DecodeVariant, group: int, kv_heads: int, head_dim: int, alibi: bool
) -> dict[str, Any]:
    shape: dict[str, Any] = {"HEADS": kv_heads, "STAGES": chosen.num_stages}
    if group > 1:
        rows_a, rows_b = tile_rows(group)
        shape = {"KV_HEADS": kv_heads, "GROUP": group, "ROWS_A": rows_a, "ROWS_B": rows_b}
    return shape | {"HEAD_DIM": head_dim, "BLOCK_N": chosen.block_n, "HAS_ALIBI": alibi}


_STRIDES = (
    "query_stride",
    "out_stride",
    "table_stride",
    "block_stride",
    "token_stride",
    "head_stride",
)
_POINTERS = (
    *("queries", "key_cache", "value_cache", "block_tables", "contexts", "slopes"),
    *("first_units", "unit_rows", "out", "partial_out", "partial_lse"),
)
_INTEGERS = ("block_tables", "contexts", "first_units", "unit_rows")
_FLOATS = ("slopes", "partial_out", "partial_lse")
# 7B, the same on two ranks, 180B, 40B, 11B, RW: query heads per KV head, KV heads, head_dim, ALiBi.
_SHAPES = (
    (71, 1, 64, False),
    (36, 1, 64, False),
    (29, 8, 64, False),
    (16, 8, 64, False),
    (4, 8, 128, False),
    (1, 32, 64, True),
)


def _case(
    cards: tuple[int, ...], each: DecodeVariant, shape: tuple[int, int, int, bool], dtype: str
) -> CompileCase:
    group, kv_heads, head_dim, alibi = shape
    kernel = _decode_vector_kernel if group == 1 else _decode_kernel
    types = {
        name: "*i32" if name in _INTEGERS else "*fp32" if name in _FLOATS else f"*{dtype}"
        for name in _POINTERS
    }
    if not alibi:
        types["slopes"] = f"*{dtype}"  # the queries stand in for them
    return CompileCase(
        kernel=kernel,
        name=f"{group} heads per KV head, {dtype}, {each.block_n} keys",
        signature=types | {"rows": "i32", "scale": "fp32"} | dict.fromkeys(_STRIDES, "i32"),
        constexprs=_constants(each, group, kv_heads, head_dim, alibi)
        | {"BLOCK_TOKENS": 16, "UNIT_TOKENS": unit_tokens(group)},
        num_warps=each.num_warps,
        num_stages=each.num_stages,
        # Not the block table's: a row may have any number of blocks.
        aligned=tuple(name for name in _STRIDES if name != "table_stride"),
        architectures=cards,
    )


COMPILE_CASES = buildable(
    [
        _case((card,) if i else in_use(VARIANTS, card), each, shape, dtype)
        for card, kinds in VARIANTS.items()
        for shape in _SHAPES
        for i, each in enumerate(kinds[kind(shape[0], shape[2])])
        for dtype in (("bf16",) if i else ("bf16", "fp16"))
    ]
    + [_case(ARCHITECTURES, FLOAT32, shape, "fp32") for shape in _SHAPES]
)
