"""The best tokens of each row beside the one that was chosen."""

import math

import torch

_MARGIN = 8  # entries looked at beyond the cut, where ties would be


def top_tokens(
    logits: torch.Tensor, logprobs: torch.Tensor, counts: list[int]
) -> list[tuple[list[int], list[float]]]:
    """Per row [vocab] the `counts[i]` best ids and their logprobs, best first, once processed.

    Ties at the cut are all there, tokens with logprob -inf are not. Equal logprobs are ordered by
    logit and then by id, so that the argmax is always the first.
    """
    vocab = logprobs.shape[1]
    width = min(max(counts) + _MARGIN, vocab)
    best, ids = logprobs.topk(width, -1)
    rows = zip(best.tolist(), logits.gather(1, ids).tolist(), ids.tolist(), counts, strict=True)
    results = []
    for i, (values, scores, names, n) in enumerate(rows):
        cut = values[min(n, vocab) - 1]
        if values[-1] == cut > -math.inf and width < vocab:  # ties may go on beyond the width
            tied = (logprobs[i] >= cut).nonzero().squeeze(1)
            values, scores, names = (
                logprobs[i, tied].tolist(),
                logits[i, tied].tolist(),
                tied.tolist(),
            )
        keys = zip(values, scores, names, strict=True)
        ranked = sorted(
            (-value, -score, name)
            for value, score, name in keys
            if value >= cut and value > -math.inf
        )
        results.append(([name for _, _, name in ranked], [-value for value, _, _ in ranked]))
    return results
