"""QKV split, rotary positions and the cache write in one pass over the projection's output.

One kernel instead of four (split, two rotations, cache write). Not measured yet.
A function of over 50 lines because a Triton kernel is one.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from tiercel_kernels.compile_case import CompileCase, buildable, in_use
from tiercel_kernels.device import capability
from tiercel_kernels.fused.paged import ONE_BINARY, check_head_dim
from tiercel_kernels.tuning.qkv_rotary_cache import VARIANTS, QkvVariant, variant


@triton.jit(**ONE_BINARY)
def _qkv_rotary_cache_kernel(
    qkv,
    cos,
    sin,
    positions,
    slots,
    key_cache,
    value_cache,
    queries,
    qkv_stride,
    cos_stride,
    sin_stride,
    block_stride,
    token_stride,
    head_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    ROTARY: tl.constexpr,
):
    half: tl.constexpr = HEAD_DIM // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    dims = tl.arange(0, half)[None, :]
    slot = tl.load(slots + token)
    real = slot >= 0
    there = (head < tl.where(real, HEADS + 2 * KV_HEADS, 0))[:, None]
    source = qkv + token * qkv_stride + head[:, None] * HEAD_DIM + dims
    low = tl.load(source, mask=there, other=0.0)  # zeros for padding, which become its queries
    high = tl.load(source + half, mask=there, other=0.0)
    if ROTARY:
        position = tl.where(real, tl.load(positions + token), 0)
        c = tl.load(cos + position * cos_stride + dims).to(tl.float32)
        s = tl.load(sin + position * sin_stride + dims).to(tl.float32)
        turns = (head < HEADS + KV_HEADS)[:, None]
        a, b = low.to(tl.float32), high.to(tl.float32)
        low = tl.where(turns, (a * c - b * s).to(low.dtype), low)
        high = tl.where(turns, (b * c + a * s).to(high.dtype), high)

    target = queries + (token * HEADS + head)[:, None] * HEAD_DIM + dims
    is_query = (head < HEADS)[:, None]
    tl.store(target, low, mask=is_query)
    tl.store(target + half, high, mask=is_query)

    slot = tl.maximum(slot, 0)
    cell = (slot // BLOCK_TOKENS) * block_stride + (slot % BLOCK_TOKENS) * token_stride
    is_key = there & (head >= HEADS)[:, None] & (head < HEADS + KV_HEADS)[:, None]
    target = key_cache + cell + (head - HEADS)[:, None] * head_stride + dims
    tl.store(target, low, mask=is_key)
    tl.store(target + half, high, mask=is_key)
    is_value = there & (head >= HEADS + KV_HEADS)[:, None]
    target = value_cache + cell + (head - HEADS - KV_HEADS)[:, None] * head_stride + dims
    tl.store(target, low, mask=is_value)
    tl.store(target + half, high, mask=is_value)


def qkv_rotary_cache(
    qkv: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    positions: torch.Tensor,
    slots: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
) -> torch.Tensor:
    """See the specification. Tables have contiguous rows; both caches have the same strides."""
    chosen = variant(capability(qkv.device))
    return split_rows(qkv, rotation, positions, slots, key_cache, value_cache, chosen)


def split_rows(
    qkv: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    positions: torch.Tensor,
    slots: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    chosen: QkvVariant,
) -> torch.Tensor:
    """qkv_rotary_cache with these launch parameters."""
    _, block_tokens, kv_heads, head_dim = key_cache.shape
    check_head_dim(head_dim)
    tokens = qkv.shape[0]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    queries = qkv.new_empty(tokens, heads, head_dim)
    cos, sin = (qkv, qkv) if rotation is None else rotation  # pointers that nobody follows
    grid = (tokens, triton.cdiv(heads + 2 * kv_heads, chosen.block_heads))
    _qkv_rotary_cache_kernel[grid](
        qkv,
        cos,
        sin,
        positions,
        slots,
        key_cache,
        value_cache,
        queries,
        qkv.stride(0),
        cos.stride(0),
        sin.stride(0),
        *key_cache.stride()[:3],
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_TOKENS=block_tokens,
        BLOCK_HEADS=chosen.block_heads,
        ROTARY=rotation is not None,
        num_warps=chosen.num_warps,
    )
    return queries


def _case(
    cards: tuple[int, ...],
    each: QkvVariant,
    heads: int,
    kv_heads: int,
    rotary: bool,
    dtype: str,
) -> CompileCase:
    constants: dict[str, Any] = {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": 128 if heads == 32 and rotary else 64,
        "BLOCK_TOKENS": 16,
        "BLOCK_HEADS": each.block_heads,
        "ROTARY": rotary,
    }
    floats = ("qkv", "cos", "sin", "key_cache", "value_cache", "queries")
    strides = (
        "qkv_stride",
        "cos_stride",
        "sin_stride",
        "block_stride",
        "token_stride",
        "head_stride",
    )
    order = ("qkv", "cos", "sin", "positions", "slots", "key_cache", "value_cache", "queries")
    signature = {name: f"*{dtype}" if name in floats else "*i64" for name in order}
    return CompileCase(
        kernel=_qkv_rotary_cache_kernel,
        name=f"{heads} heads on {kv_heads}, {dtype}, {each.block_heads} per program",
        signature=signature | dict.fromkeys(strides, "i32"),
        constexprs=constants,
        num_warps=each.num_warps,
        aligned=strides,
        architectures=cards,
    )


COMPILE_CASES = buildable(
    _case((card,) if i else in_use(VARIANTS, card), each, *shape, dtype)
    for card, variants in VARIANTS.items()
    for i, each in enumerate(variants)
    for shape in ((71, 1, True), (128, 8, True), (232, 8, True), (32, 8, True), (32, 32, False))
    for dtype in (("bf16",) if i else ("bf16", "fp16"))
)
