"""Causal attention of slices of several tokens over the paged cache: the specification."""

import torch

from tiercel_kernels.reference.paged import attend, context


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
    """Write the attention of every slice's tokens to `out`. Nothing else changes.

    Prompts, chunks of prompts and the rest behind a cached prefix are all this: slice i has tokens
    [first_tokens[i], first_tokens[i + 1]) of `queries`, at positions starts[i] and on. Its keys and
    values, those of positions 0 up to its last, are in the cache. A slice may be empty.

    queries, out: [tokens, heads, head_dim]; tokens outside all slices are left alone.
    key_cache, value_cache: [blocks, block_tokens, kv_heads, head_dim], any strides.
    block_tables: int32 [slices, max_blocks]; starts: int32 [slices]; first_tokens: int32
    [slices + 1]; max_count: tokens of the longest slice, or more.
    slopes: ALiBi's, float32 [heads], rounded to bfloat16. The bias is added before the scale.
    """
    firsts = first_tokens.tolist()
    for i, start in enumerate(starts.tolist()):
        first, end = firsts[i], firsts[i + 1]
        if first == end:
            continue
        if end - first > max_count:
            raise ValueError(f"slice {i} has {end - first} tokens, more than {max_count}")
        keys = context(key_cache, block_tables[i], start + end - first)
        values = context(value_cache, block_tables[i], start + end - first)
        out[first:end] = attend(queries[first:end], keys, values, slopes).to(out.dtype)
