"""vocab_mask: -inf for the tokens whose bit is not set."""

import torch


def vocab_mask(logits: torch.Tensor, words: torch.Tensor) -> None:
    """Sets logits to -inf where the row's mask does not allow the token. In place.

    logits: [rows, vocab], any float type; words: int32 [rows, at least ceil(vocab / 32)], bit i of
    word w allows token 32 w + i. A row of words that are all -1 changes nothing.
    """
    check(logits, words)
    bits = torch.arange(32, device=words.device, dtype=torch.int32)
    allowed = (words.unsqueeze(-1) >> bits & 1).bool().flatten(1)
    logits.masked_fill_(~allowed[:, : logits.shape[1]], -torch.inf)


def check(logits: torch.Tensor, words: torch.Tensor) -> None:
    """Raises ValueError for what does not fit: the kernel would read beside the mask."""
    if logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError("logits must be [rows, vocab] with the vocabulary contiguous")
    if words.dtype != torch.int32 or words.dim() != 2 or words.stride(1) != 1:
        raise ValueError("words must be int32 [rows, words] with the words contiguous")
    if len(words) != len(logits) or words.shape[1] * 32 < logits.shape[1]:
        raise ValueError(f"words are {list(words.shape)} for logits {list(logits.shape)}")
