"""LinearMethod: what turns a checkpoint's weight into a layer that runs. One registry of them."""

from typing import Protocol

import torch

from tiercel.errors import ConfigError
from tiercel.layers.linear import Linear
from tiercel.quantization.unquantized import Unquantized


class LinearMethod(Protocol):
    """One way to store and multiply weights."""

    def build(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False
    ) -> Linear:
        """weight: [out, in], bias: [out], any float dtype; may keep or copy them.

        With `gelu` the layer applies the exact GELU to its output.
        """
        ...


def linear_method(quantize: str | None, dtype: torch.dtype) -> LinearMethod:
    """The method called `quantize`, for activations of `dtype`. Raises ConfigError if unknown."""
    if quantize is None:
        return Unquantized(dtype)
    raise ConfigError(f"--quantize {quantize} is not supported yet; leave it out")
