"""AttentionBackend, the seam between the model and a kind of device, and what it is told."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tiercel.attention.cache import LayerCache

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepGeometry:
    """The shape of one step: slice i computes tokens [starts[i], starts[i] + counts[i]) of a row.

    Tokens of a step lie slice behind slice. The first `decodes` slices have one token each; all
    others have more. Block tables hold `zero_block`, which is all zeros and the last of the cache,
    behind a row's own blocks, for at least `unit` tokens more, so that a backend may read past the
    end of a row.
    """

    starts: IntArray  # [slices]
    counts: IntArray  # [slices]
    block_tables: IntArray  # [slices, blocks]
    decodes: int
    padding: int  # tokens behind the last slice that belong to nothing
    zero_block: int


class AttentionBackend(Protocol):
    """Softmax attention of new tokens over the cached keys and values of their own rows.

    It also applies positions, as far as they are part of attention: rotation of queries and keys,
    or ALiBi's bias. How a step is planned is between the backend and who gathers its inputs.
    """

    @property
    def nbytes(self) -> int:
        """Memory of its tables."""
        ...

    def store(
        self, qkv: torch.Tensor, cache: LayerCache, slots: torch.Tensor, plan: Any
    ) -> torch.Tensor:
        """Turn queries and keys by their positions; write keys and values to their slots.

        qkv: [tokens + padding, (heads + 2 kv_heads) * head_dim], all queries, all keys, all values
        of a token; may be changed. Returns what `attend` takes.
        """
        ...

    def attend(
        self,
        queries: torch.Tensor,
        cache: LayerCache,
        plan: Any,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of one layer, over what `store` has completed in `cache`.

        Returns [tokens + padding, heads * head_dim]; padding rows are finite. Changes nothing but
        `out`, which is what is returned if it is given: rows may have any stride.
        """
        ...
