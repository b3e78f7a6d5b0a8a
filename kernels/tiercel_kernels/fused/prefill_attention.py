"""Paged prefill attention: chunks, cached prefixes and whole prompts in one kernel.

Not measured yet. A tile is some tokens of one head, or, for short slices, all heads of a KV head
for a few tokens. A function of over 50 lines because a Triton kernel is one.
"""

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import ARCHITECTURES, CompileCase, buildable, in_use
from tiercel_kernels.device import bytes_per_number, capability
from tiercel_kernels.fused.paged import (
    LOG2_E,
    ONE_BINARY,
    check_head_dim,
    fold_tile,
    gather_offsets,
)
from tiercel_kernels.tuning.prefill_attention import (
    FLOAT32,
    PACK_BELOW,
    VARIANTS,
    PrefillVariant,
    variant,
)


@triton.jit(**ONE_BINARY)
def _prefill_kernel(
    queries,
    key_cache,
    value_cache,
    block_tables,
    starts,
    first_tokens,
    slopes,
    out,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PACK_BELOW: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
):
    piece = tl.program_id(1)
    first = tl.load(first_tokens + piece)
    count = tl.load(first_tokens + piece + 1) - first
    pack = tl.where(count < PACK_BELOW, GROUP, 1)  # heads in a tile
    tiles = tl.cdiv(count * pack, BLOCK_M)
    columns = KV_HEADS * GROUP // pack
    if tl.program_id(0) < tiles * columns:
        # The last tiles first: they see the most keys, and should not be what all others wait for.
        tile = tiles - 1 - tl.program_id(0) // columns
        column = tl.program_id(0) % columns
        tile_row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        token = tile_row // pack
        head = column * pack + tile_row % pack
        kv_head = column * pack // GROUP
        real = token < count
        start = tl.load(starts + piece)
        position = start + token
        dims = tl.arange(0, HEAD_DIM)[None, :]
        flat = (first + token).to(tl.int64)[:, None]
        offset = head[:, None] * HEAD_DIM + dims
        q = tl.load(queries + flat * query_stride + offset, mask=real[:, None], other=0.0)
        slope = tl.zeros([BLOCK_M], dtype=tl.float32)
        if HAS_ALIBI:
            slope = tl.load(slopes + head)
        peak = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
        total = tl.zeros([BLOCK_M], dtype=tl.float32)
        acc = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
        table = block_tables + piece.to(tl.int64) * table_stride

        # Tiles of keys that every row sees whole need no mask.
        clear = (start + tile * BLOCK_M // pack + 1) // BLOCK_N * BLOCK_N
        end = start + tl.minimum(((tile + 1) * BLOCK_M - 1) // pack, count - 1) + 1
        for n in range(0, clear, BLOCK_N):
            keys = n + tl.arange(0, BLOCK_N)
            at = gather_offsets(
                table, keys, keys >= 0, kv_head, block_stride, token_stride, head_stride,
                BLOCK_TOKENS,
            )[:, None] + dims  # fmt: skip
            peak, total, acc = fold_tile(
                q, tl.load(key_cache + at), tl.load(value_cache + at), keys >= 0, slope, keys,
                scale, peak, total, acc, False, HAS_ALIBI,
            )  # fmt: skip
        for n in range(clear, end, BLOCK_N):
            keys = n + tl.arange(0, BLOCK_N)
            valid = keys < end
            at = gather_offsets(
                table, keys, valid, kv_head, block_stride, token_stride, head_stride, BLOCK_TOKENS
            )[:, None] + dims  # fmt: skip
            # Zeros for what lies behind the end: its weight is 0, and 0 * NaN would still be NaN.
            k = tl.load(key_cache + at, mask=valid[:, None], other=0.0)
            v = tl.load(value_cache + at, mask=valid[:, None], other=0.0)
            visible = keys[None, :] <= position[:, None]
            peak, total, acc = fold_tile(
                q, k, v, visible, slope, keys, scale, peak, total, acc, True, HAS_ALIBI
            )
        result = (acc / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + flat * out_stride + offset, result, mask=real[:, None])


def prefill_attention(
    queries: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    starts: torch.Tensor,
    first_tokens: torch.Tensor,
    max_count: int,
    out: torch.Tensor,
    slopes: torch.Tensor | None = None,
) -> None:
    """See the specification.

    Heads and dimensions of queries and out are contiguous, as are the caches' last dimension and
    rows of the block tables; both caches have the same strides; head_dim is a power of two.
    """
    chosen = variant(capability(queries.device), queries.shape[2], bytes_per_number(queries))
    attend_slices(
        queries,
        key_cache,
        value_cache,
        block_tables,
        starts,
        first_tokens,
        max_count,
        out,
        slopes,
        chosen,
    )


def attend_slices(
    queries: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    starts: torch.Tensor,
    first_tokens: torch.Tensor,
    max_count: int,
    out: torch.Tensor,
    slopes: torch.Tensor | None,
    chosen: PrefillVariant,
) -> None:
    """prefill_attention with these launch parameters."""
    _, heads, head_dim = queries.shape
    check_head_dim(head_dim)
    _, block_tokens, kv_heads, _ = key_cache.shape
    group = heads // kv_heads
    programs = kv_heads * triton.cdiv(min(max_count, PACK_BELOW - 1) * group, chosen.block_m)
    if max_count >= PACK_BELOW:
        programs = max(programs, heads * triton.cdiv(max_count, chosen.block_m))
    _prefill_kernel[(programs, starts.shape[0])](
        queries,
        key_cache,
        value_cache,
        block_tables,
        starts,
        first_tokens,
        queries if slopes is None else slopes,  # a pointer that nobody follows
        out,
        head_dim**-0.5 * LOG2_E,
        queries.stride(0),
        out.stride(0),
        block_tables.stride(0),
        *key_cache.stride()[:3],
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_TOKENS=block_tokens,
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        PACK_BELOW=PACK_BELOW,
        HAS_ALIBI=slopes is not None,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )


_STRIDES = (
    "query_stride",
    "out_stride",
    "table_stride",
    "block_stride",
    "token_stride",
    "head_stride",
)
_POINTERS = ("queries", "key_cache", "value_cache", "block_tables", "starts", "first_tokens")
_INTEGERS = ("block_tables", "starts", "first_tokens")
# 7B, 180B, 40B, 11B, RW: query heads per KV head, KV heads, head_dim, ALiBi.
_SHAPES = (
    (71, 1, 64, False),
    (29, 8, 64, False),
    (16, 8, 64, False),
    (4, 8, 128, False),
    (1, 32, 64, True),
)


def _case(
    cards: tuple[int, ...], each: PrefillVariant, shape: tuple[int, int, int, bool], dtype: str
) -> CompileCase:
    group, kv_heads, head_dim, alibi = shape
    types = {name: "*i32" if name in _INTEGERS else f"*{dtype}" for name in _POINTERS}
    return CompileCase(
        kernel=_prefill_kernel,
        name=f"{group} heads per KV head, {dtype}, {each.block_m} x {each.block_n}",
        signature=types
        | {"slopes": "*fp32" if alibi else f"*{dtype}", "out": f"*{dtype}", "scale": "fp32"}
        | dict.fromkeys(_STRIDES, "i32"),
        constexprs={
            "KV_HEADS": kv_heads,
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "BLOCK_TOKENS": 16,
            "BLOCK_M": each.block_m,
            "BLOCK_N": each.block_n,
            "PACK_BELOW": PACK_BELOW,
            "HAS_ALIBI": alibi,
        },
        num_warps=each.num_warps,
        num_stages=each.num_stages,
        # Not the block table's: a row may have any number of blocks.
        aligned=tuple(name for name in _STRIDES if name != "table_stride"),
        architectures=cards,
    )


COMPILE_CASES = buildable(
    [
        _case((card,) if i else in_use(VARIANTS, card), each, shape, dtype)
        for card, by_dim in VARIANTS.items()
        for shape in _SHAPES
        for i, each in enumerate(by_dim[shape[2]])
        for dtype in (("bf16",) if i else ("bf16", "fp16"))
    ]
    + [_case(ARCHITECTURES, FLOAT32, shape, "fp32") for shape in _SHAPES]
)
