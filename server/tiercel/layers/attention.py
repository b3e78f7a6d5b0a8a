"""The attention of one layer: project, turn by position, write the cache, attend, project back."""

import torch

from tiercel.attention.backend import AttentionBackend
from tiercel.attention.cache import LayerCache
from tiercel.layers.inputs import StepInputs
from tiercel.layers.linear import Linear
from tiercel.layers.rotary import Rotation, rotate_


class Attention:
    """For every Falcon: the projection's rows are all queries, then all keys, then all values."""

    def __init__(
        self,
        project: Linear,
        output: Linear,
        backend: AttentionBackend,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
    ) -> None:
        self._project = project
        self._output = output
        self._backend = backend
        self._queries_size = num_heads * head_dim
        self._rotated = num_heads + num_kv_heads
        self._head_dim = head_dim

    @property
    def nbytes(self) -> int:
        return self._project.nbytes + self._output.nbytes

    def __call__(
        self, x: torch.Tensor, inputs: StepInputs, rotation: Rotation | None, cache: LayerCache
    ) -> torch.Tensor:
        """x: [tokens, hidden] -> the same shape. Writes the tokens' keys and values to `cache`."""
        qkv = self._project(x)
        if rotation is not None:
            rotate_(qkv.view(qkv.shape[0], -1, self._head_dim)[:, : self._rotated], rotation)
        new = qkv[: inputs.slots.shape[0], self._queries_size :]
        pairs = new.view(new.shape[0], 2, -1).transpose(0, 1)  # [2, tokens, kv_heads * head_dim]
        cache.slots.index_copy_(1, inputs.slots, pairs)
        return self._output(self._backend.attend(qkv, cache, inputs.attention))
