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
