"""The attention of one layer: project, turn by position, write the cache, attend, project back."""

import torch

from tiercel.attention.backend import AttentionBackend
from tiercel.attention.cache import LayerCache
from tiercel.layers.inputs import StepInputs, chosen
from tiercel.layers.linear import Linear


class AttentionHeads:
    """Attention up to its output projection, which the layer may have elsewhere."""

    def __init__(self, project: Linear, backend: AttentionBackend) -> None:
        """`project`: its rows are all queries, then all keys, then all values."""
        self._project = project
        self._backend = backend

    @property
    def nbytes(self) -> int:
        return self._project.nbytes

    def __call__(
        self,
        x: torch.Tensor,
        inputs: StepInputs,
        cache: LayerCache,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x: [tokens, hidden] -> [wanted tokens, heads * head_dim], in `out` if it is given.

        Writes the keys and values of all tokens to `cache`.
        """
        queries = self._backend.store(self._project(x), cache, inputs.slots, inputs.attention)
        if inputs.wanted is None:
            return self._backend.attend(queries, cache, inputs.attention, out)
        attended = chosen(self._backend.attend(queries, cache, inputs.attention), inputs.wanted)
        return attended if out is None else out.copy_(attended)


class Attention:
    """For every Falcon."""

    def __init__(self, heads: AttentionHeads, output: Linear) -> None:
        self._heads = heads
        self._output = output

    @property
    def nbytes(self) -> int:
        return self._heads.nbytes + self._output.nbytes

    def __call__(self, x: torch.Tensor, inputs: StepInputs, cache: LayerCache) -> torch.Tensor:
        """x: [tokens, hidden] -> the same of those that are wanted. Writes the keys and values of
        all tokens to `cache`.
        """
        return self._output(self._heads(x, inputs, cache))
