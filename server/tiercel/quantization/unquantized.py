"""Unquantized: weights in the dtype of the activations, packed for oneDNN where that is faster."""

import torch

from tiercel.errors import ConfigError
from tiercel.layers.half import ONE_ROW_NUMBERS, HalfLinear, fbgemm_has_half, fits_half
from tiercel.layers.linear import Linear, OneOrMore, PackedLinear, PlainLinear
from tiercel.layers.widened import Scratch, WidenedLinear, onednn_has
from tiercel.quantization.stored import Stored

# float32 weights below this many numbers stay in torch's GEMM: one token through 768 x 192 takes
# 12 us against 21 packed (the fixed cost of oneDNN), 16 tokens 62 against 57. Above it, packed
# wins: 16 tokens through 3072 x 768 take 0.70 ms against 1.31. bfloat16 gains at every size: 17
# against 21 us and 0.35 against 0.47 ms. One Zen 4 core, torch 2.13.
PLAIN_FLOAT32_NUMBERS = 1 << 18


class Unquantized:
    """See LinearMethod."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._onednn = onednn_has(dtype)
        self._scratch = Scratch()

    @property
    def plain(self) -> "Unquantized":
        return self

    def build(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        if order is not None:
            weight, bias = weight[order], None if bias is None else bias[order]
        weight = weight.to(self._dtype)
        bias = None if bias is None else bias.to(self._dtype)
        small = self._dtype is torch.float32 and weight.numel() < PLAIN_FLOAT32_NUMBERS
        if self._onednn and not small:
            return PackedLinear(weight, bias, gelu=gelu)
        if self._dtype is torch.float32:
            return PlainLinear(weight.contiguous(), bias, gelu=gelu)
        if fbgemm_has_half() and fits_half(weight):
            half = HalfLinear(weight, bias, gelu=gelu)
            if weight.numel() > ONE_ROW_NUMBERS:
                return half
            return OneOrMore(PlainLinear(weight.contiguous(), bias, gelu=gelu), half)
        return WidenedLinear(weight.contiguous(), bias, self._scratch, gelu=gelu)

    def build_stored(
        self,
        stored: Stored,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        raise ConfigError("the checkpoint's weights are quantized, and this method has none")
