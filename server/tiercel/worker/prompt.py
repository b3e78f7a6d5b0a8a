"""Logprobs of prompt tokens: logits of many positions, without many logits in memory."""

import math

import torch

from tiercel.attention.backend import IntArray
from tiercel.model.falcon import Falcon
from tiercel.sampling.logprobs import top_tokens
from tiercel.wire.step import PromptLogprobs, RowFailure
from tiercel.worker.inputs import Batch
from tiercel.worker.rows import Rows

CHUNK_LOGITS = 1 << 24  # 64 MB in float32


def owed_prompts(
    model: Falcon, batch: Batch, hidden: torch.Tensor, rows: Rows
) -> tuple[list[PromptLogprobs], list[RowFailure]]:
    """Logprobs of prompt tokens, for the slices whose rows want them. hidden: [tokens, hidden]."""
    results: list[PromptLogprobs] = []
    failures: list[RowFailure] = []
    for each, first in zip(batch.slices, batch.firsts.tolist(), strict=True):
        count = rows.owed(each)
        if not count:
            continue
        result = prompt_logprobs(
            model,
            hidden[first : first + count],
            rows.tokens[each.row, each.start + 1 : each.start + 1 + count],
            each.row,
            each.start + 1,
            top_n=rows.prompt_top_n[each.row],
        )
        if isinstance(result, PromptLogprobs):
            results.append(result)
        else:
            failures.append(result)
    return results, failures


def prompt_logprobs(
    model: Falcon,
    hidden: torch.Tensor,
    targets: IntArray,
    row: int,
    first: int,
    *,
    top_n: int = 0,
    chunk_logits: int = CHUNK_LOGITS,
) -> PromptLogprobs | RowFailure:
    """The raw log-softmax of `targets` [n], each after the hidden state [n, hidden] before it.

    `first`: position of the first target. `top_n`: the best ids beside each target, exactly so
    many, equal ones in the order of their ids. `chunk_logits`: the most logits, and logprobs where
    `top_n` is set, in memory at once. A RowFailure where a value is not finite.
    """
    ids = torch.from_numpy(targets).to(hidden.device).unsqueeze(1)
    values: list[float] = []
    top_ids: list[list[int]] = []
    top_logprobs: list[list[float]] = []
    size = max(1, chunk_logits // (model.vocab_size * (2 if top_n else 1)))
    for start in range(0, len(ids), size):
        whole = model.logits(hidden[start : start + size])
        if whole is None:
            continue  # the first rank has them
        logits = whole.float()
        picked = logits.gather(1, ids[start : start + size]).squeeze(1)
        total = logits.logsumexp(1, keepdim=True)
        values.extend((picked - total.squeeze(1)).tolist())
        if top_n:
            for ids_there, best in top_tokens(logits, logits - total, [top_n] * len(logits)):
                top_ids.append(ids_there[:top_n])
                top_logprobs.append(best[:top_n])
    if not all(math.isfinite(value) for value in values):
        return RowFailure(row, "the logits of this prompt are not finite")
    return PromptLogprobs(row, first, values, top_ids, top_logprobs)
