"""What the first rank drew becomes what every rank goes on with."""

import torch

from tiercel.parallel.context import ParallelContext
from tiercel.wire.step import RowFailure, SampledToken

_FAILED = -1


def agree(
    ranks: ParallelContext, rows: list[int], drawn: list[SampledToken | RowFailure] | None
) -> list[SampledToken | RowFailure]:
    """One result per row; `drawn` is None on ranks that wait for the first one's.

    Those get ids without logprobs: nobody asks them for more.
    """
    if ranks.size == 1:
        return drawn or []
    ids = torch.zeros(len(rows), dtype=torch.int64)
    if drawn is not None:
        tokens = [each.token_id if isinstance(each, SampledToken) else _FAILED for each in drawn]
        ids = torch.tensor(tokens, dtype=torch.int64)
    shared = ranks.share(ids).tolist()
    if drawn is not None:
        return drawn
    return [
        RowFailure(row, "it failed on the first rank")
        if token == _FAILED
        else SampledToken(row, token, 0.0)
        for row, token in zip(rows, shared, strict=True)
    ]
