"""penalties: repetition, frequency, and OpenAI's presence and count penalties."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Penalties:
    """One value per row, float32 [rows] each; 1 for repetition and 0 for the others do nothing."""

    repetition: torch.Tensor  # ids that occur: l * r where l < 0, else l / r
    frequency: torch.Tensor  # l - f * occurrences / length, prompt included
    presence: torch.Tensor  # l - p for ids in the generated text
    count: torch.Tensor  # l - c * occurrences in the generated text


def penalties(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    prompt_lengths: torch.Tensor,
    values: Penalties,
) -> None:
    """Changes the logits of ids that occurred, in the order of Penalties' fields. In place.

    logits: float32 [rows, vocab]; tokens: int32 [rows, capacity], of which the first `lengths` are
    known and the first `prompt_lengths` the prompt, int32 [rows] each. Ids outside the vocabulary
    (padding images, for one) count for the length only.
    """
    check(logits, tokens, lengths, prompt_lengths, values)
    for row, line in enumerate(logits):
        length, prompt = int(lengths[row]), int(prompt_lengths[row])
        known = tokens[row, :length].long()
        every, generated = (_counts(ids, len(line)) for ids in (known, known[prompt:]))
        repetition = values.repetition[row]
        repeated = torch.where(line < 0, line * repetition, line / repetition)
        changed = torch.where(every > 0, repeated, line)
        changed = changed - every * (values.frequency[row] / max(1, length))
        change = values.presence[row] + values.count[row] * generated
        line.copy_(torch.where(generated > 0, changed - change, changed))


def _counts(ids: torch.Tensor, vocab: int) -> torch.Tensor:
    """How often each id occurs: float32 [vocab]."""
    ids = ids[(ids >= 0) & (ids < vocab)]
    return torch.bincount(ids, minlength=vocab).float()


def check(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    prompt_lengths: torch.Tensor,
    values: Penalties,
) -> None:
    """Raises ValueError for what does not fit."""
    if logits.dtype != torch.float32 or logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError("logits must be float32 [rows, vocab] with the vocabulary contiguous")
    rows = len(logits)
    if tokens.dtype != torch.int32 or tokens.dim() != 2 or tokens.stride(1) != 1:
        raise ValueError("tokens must be int32 [rows, capacity] with the tokens contiguous")
    columns = [lengths, prompt_lengths]
    columns += [values.repetition, values.frequency, values.presence, values.count]
    if len(tokens) != rows or any(each.shape != (rows,) for each in columns):
        raise ValueError(f"every argument must have {rows} rows, as logits has")
