"""StepInputs: the tensors of one step, the same for all layers."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the model reads in one step. Rows that decode come first, then longer slices.

    There may be more tokens than slices have: the rest is padding, computed and dropped. It has no
    slot, or a negative one, as the backend wants it.
    """

    tokens: torch.Tensor  # int64 [tokens + padding]
    slots: torch.Tensor  # int64, where each token's key and value go in the cache
    attention: Any  # what AttentionBackend.plan returned, opaque to all but the backend
    # int64, the tokens whose hidden state somebody wants, in his order; None: all. Of the others
    # the last layer computes keys, values and attention only: 0.95 to 0.97 of a prompt's time (146M
    # with 16 layers, 1,500 and 512 tokens, Zen 4), 0.98 of a chunk's among eight streams.
    wanted: torch.Tensor | None = None


def chosen(x: torch.Tensor, wanted: torch.Tensor | None) -> torch.Tensor:
    """x: [tokens, ...] -> [wanted, ...], or x itself where all are wanted."""
    return x if wanted is None else x.index_select(0, wanted)
