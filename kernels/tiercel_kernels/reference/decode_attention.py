"""Attention of one new token per row over the paged cache: the specification."""

import torch

from tiercel_kernels.reference.decode_plan import DecodePlan
from tiercel_kernels.reference.paged import attend, context


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
    """Write the attention of every row to `out`; an empty row's is zero. Nothing else changes.

    queries, out: [rows, heads, head_dim], positions already applied to the queries.
    key_cache, value_cache: [blocks, block_tokens, kv_heads, head_dim], any strides; the new token's
    own key and value are in them. What lies behind a row's last token is never used.
    block_tables: int32 [rows, max_blocks]; contexts: int32 [rows], keys of each row, 0 for none.
    plan: of these contexts. It says how the work is cut, not what comes out; not used here.
    slopes: ALiBi's, float32 [heads], rounded to bfloat16. The bias is added before the scale.
    Query heads [h * g, (h + 1) * g) read KV head h, g = heads / kv_heads.
    """
    for row, tokens in enumerate(contexts.tolist()):
        if tokens == 0:
            out[row] = 0
            continue
        keys = context(key_cache, block_tables[row], tokens)
        values = context(value_cache, block_tables[row], tokens)
        out[row] = attend(queries[row : row + 1], keys, values, slopes)[0].to(out.dtype)
