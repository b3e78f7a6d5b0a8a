"""LinearMethod: what turns a checkpoint's weight into a layer that runs. One registry of them."""

from collections.abc import Callable
from typing import Protocol

import torch

from tiercel.errors import ConfigError
from tiercel.layers.linear import Linear
from tiercel.quantization.four_bit import FourBit
from tiercel.quantization.int8 import Int8
from tiercel.quantization.llm_int8 import llm_int8
from tiercel.quantization.stored import Stored
from tiercel.quantization.unquantized import Unquantized


class LinearMethod(Protocol):
    """One way to store and multiply weights."""

    @property
    def plain(self) -> "LinearMethod":
        """For what is not quantized: the output head, and what a checkpoint left as it was."""
        ...

    def build(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        """weight: [out, in], bias: [out], any float dtype; may keep or copy them.

        With `gelu` the layer applies the exact GELU to its output. `order`, int64 [out]: the
        layer's row i is row order[i] of weight and bias.
        """
        ...

    def build_stored(
        self,
        stored: Stored,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        """As `build`, of a weight that the checkpoint holds quantized in this way.

        Raises ConfigError where this method is for another way.
        """
        ...


METHODS: dict[str, Callable[[torch.dtype, bool], LinearMethod]] = {
    "bitsandbytes": lambda dtype, _: Int8(dtype),
    "bitsandbytes-llm-int8": lambda dtype, _: llm_int8(dtype),
    "bitsandbytes-nf4": lambda dtype, double_quant: FourBit(dtype, "nf4", double_quant),
    "bitsandbytes-fp4": lambda dtype, double_quant: FourBit(dtype, "fp4", double_quant),
}


def linear_method(
    quantize: str | None, dtype: torch.dtype, *, double_quant: bool = False
) -> LinearMethod:
    """The method called `quantize`, for activations of `dtype`. Raises ConfigError if unknown."""
    if quantize is None:
        return Unquantized(dtype)
    if quantize not in METHODS:
        raise ConfigError(f"--quantize {quantize} is not supported; it can be {', '.join(METHODS)}")
    return METHODS[quantize](dtype, double_quant)
