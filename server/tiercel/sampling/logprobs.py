"""The best tokens of a row beside the one that was chosen."""

import numpy as np
import torch


def top_tokens(
    logits: torch.Tensor, logprobs: torch.Tensor, n: int
) -> tuple[list[int], list[float]]:
    """The `n` best ids and their logprobs, best first, of one processed row [vocab].

    Ties at the cut are all there, tokens with logprob -inf are not. Equal logprobs are ordered by
    logit and then by id, so that the argmax is always the first.
    """
    worst = logprobs.topk(min(n, len(logprobs))).values[-1]
    ids = ((logprobs >= worst) & (logprobs > -torch.inf)).nonzero().squeeze(1)
    candidates = ids.cpu().numpy()
    values = logprobs[ids].cpu().numpy()
    order = np.lexsort((candidates, -logits[ids].cpu().numpy(), -values))
    return candidates[order].tolist(), values[order].tolist()
