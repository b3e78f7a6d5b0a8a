"""StepInputs: the tensors of one step, the same for all layers."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the model reads in one step. Rows that decode come first, then longer slices.

    `tokens` and `positions` may be longer than `slots`: the rest is padding, computed and dropped.
    """

    tokens: torch.Tensor  # int64 [tokens + padding]
    positions: torch.Tensor  # int64 [tokens + padding], each token's place in its own sequence
    slots: torch.Tensor  # int64 [tokens], where each token's key and value go in the cache
    attention: Any  # what AttentionBackend.plan returned, opaque to all but the backend
