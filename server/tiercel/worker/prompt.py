"""Logprobs of prompt tokens: logits of many positions, without many logits in memory."""

import math

import torch

from tiercel.attention.backend import IntArray
from tiercel.model.falcon import Falcon
from tiercel.wire.step import PromptLogprobs, RowFailure

CHUNK_LOGITS = 1 << 24  # 64 MB in float32


def prompt_logprobs(
    model: Falcon,
    hidden: torch.Tensor,
    targets: IntArray,
    row: int,
    first: int,
    *,
    chunk_logits: int = CHUNK_LOGITS,
) -> PromptLogprobs | RowFailure:
    """The raw log-softmax of `targets` [n], each after the hidden state [n, hidden] before it.

    `first`: position of the first target. `chunk_logits`: the most logits in memory at once. A
    RowFailure where a value is not finite.
    """
    ids = torch.from_numpy(targets).unsqueeze(1)
    values: list[float] = []
    size = max(1, chunk_logits // model.vocab_size)
    for start in range(0, len(ids), size):
        logits = model.logits(hidden[start : start + size]).float()
        picked = logits.gather(1, ids[start : start + size]).squeeze(1)
        values.extend((picked - logits.logsumexp(1)).tolist())
    if not all(math.isfinite(value) for value in values):
        return RowFailure(row, "the logits of this prompt are not finite")
    return PromptLogprobs(row, first, values)
