"""Behind the QKV projection: turn queries and keys, write keys and values to the cache."""

import torch


def qkv_rotary_cache(
    qkv: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    positions: torch.Tensor,
    slots: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
) -> torch.Tensor:
    """Write keys and values to their slots; return the queries [tokens, heads, head_dim].

    qkv: [tokens, (heads + 2 kv_heads) * head_dim], all queries, all keys, all values of a token.
    rotation: cosines and sines [positions, head_dim / 2] of each position, or None for ALiBi.
    Dimension i turns with i + head_dim / 2; computed in float32, rounded once.
    positions: int64 [tokens]; slots: int64 [tokens], block * block_tokens + place in the block.
    A token with a negative slot is padding: it writes nothing, and its queries are zero.
    key_cache, value_cache: [blocks, block_tokens, kv_heads, head_dim], any strides; all other
    slots are left alone.
    """
    _, block_tokens, kv_heads, head_dim = key_cache.shape
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    turned, values = heads[:, :-kv_heads], heads[:, -kv_heads:]
    real = slots >= 0
    if rotation is not None:
        cos, sin = (each[positions * real].unsqueeze(1).float() for each in rotation)
        low, high = turned.float().chunk(2, dim=-1)
        turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(qkv.dtype)
    queries, keys = turned[:, :-kv_heads], turned[:, -kv_heads:]
    blocks, places = slots[real] // block_tokens, slots[real] % block_tokens
    key_cache[blocks, places] = keys[real]
    value_cache[blocks, places] = values[real]
    return queries * real.view(-1, 1, 1)
