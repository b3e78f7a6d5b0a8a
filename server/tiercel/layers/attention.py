"""The attention of one layer: project, turn by position, write the cache, attend, project back."""

import torch

from tiercel.attention.backend import AttentionBackend
from tiercel.attention.cache import LayerCache
from tiercel.layers.inputs import StepInputs
from tiercel.layers.linear import Linear


class Attention:
    """For every Falcon: the projection's rows are all queries, then all keys, then all values."""

    def __init__(self, project: Linear, output: Linear, backend: AttentionBackend) -> None:
        self._project = project
        self._output = output
        self._backend = backend

    @property
    def nbytes(self) -> int:
        return self._project.nbytes + self._output.nbytes

    def __call__(self, x: torch.Tensor, inputs: StepInputs, cache: LayerCache) -> torch.Tensor:
        """x: [tokens, hidden] -> the same shape. Writes the tokens' keys and values to `cache`."""
        queries = self._backend.store(self._project(x), cache, inputs.slots, inputs.attention)
        return self._output(self._backend.attend(queries, cache, inputs.attention))
