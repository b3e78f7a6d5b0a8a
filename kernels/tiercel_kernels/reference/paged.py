"""What the attention specifications share: keys and values of a row, and ALiBi's bias."""

import torch


def context(cache: torch.Tensor, block_table: torch.Tensor, tokens: int) -> torch.Tensor:
    """The first `tokens` tokens of a row, from its blocks: [tokens, kv_heads, head_dim].

    cache: [blocks, block_tokens, kv_heads, head_dim]; block_table: [at least as many as needed].
    """
    block_tokens = cache.shape[1]
    blocks = block_table[: -(-tokens // block_tokens)].long()
    return cache[blocks].flatten(0, 1)[:tokens]


def alibi_bias(slopes: torch.Tensor, keys: int) -> torch.Tensor:
    """The bias of every key, before the softmax scale: float32 [heads, keys].

    As transformers builds it, whatever the dtype: positions and their products with the slopes are
    rounded to bfloat16. slopes: float32 [heads], themselves already rounded so.
    """
    places = torch.arange(keys, device=slopes.device).bfloat16().float()
    return (slopes.unsqueeze(1) * places).bfloat16().float()


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slopes: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax attention in float32; the last query stands at the last key, all see backwards only.

    queries: [count, heads, head_dim]; keys, values: [tokens, kv_heads, head_dim], tokens >= count.
    Returns float32 [count, heads, head_dim].
    """
    count, heads, head_dim = queries.shape
    tokens, kv_heads, _ = keys.shape
    grouped = queries.float().view(count, kv_heads, heads // kv_heads, head_dim)
    scores = torch.einsum("ckgd,tkd->kgct", grouped, keys.float()).flatten(0, 1)
    if slopes is not None:
        scores = scores + alibi_bias(slopes, tokens).unsqueeze(1)
    ahead = torch.ones(count, tokens, dtype=torch.bool, device=queries.device).triu(
        tokens - count + 1
    )
    scores = (scores * head_dim**-0.5).masked_fill(ahead, -torch.inf)
    weights = scores.softmax(-1).view(kv_heads, -1, count, tokens)
    return torch.einsum("kgct,tkd->ckgd", weights, values.float()).flatten(1, 2)
