"""`--quantize bitsandbytes`: weights in int8, one scale a row; activations stay as they are.

The multiplication is bitsandbytes' with dequantized weights, not its LLM.int8: nothing is lost in
the activations, no outliers have to be looked for, and a row's result does not depend on the batch.
"""

import torch
from torch.nn import functional

from tiercel.errors import ConfigError
from tiercel.layers.linear import Linear
from tiercel.quantization.chunks import chunk_rows
from tiercel.quantization.stored import Stored, StoredInt8
from tiercel.quantization.unquantized import Unquantized

PACKED_ROWS = 4


class Int8Linear:
    """On a CPU. Few rows go through torch's int8 GEMM, more through chunks of plain weights."""

    def __init__(self, stored: StoredInt8, bias: torch.Tensor | None, *, gelu: bool) -> None:
        self._stored = stored
        self._scale = stored.absmax / 127.0  # float32 [out]
        self._bias = bias  # [out]
        self._gelu = gelu
        self._ones: dict[torch.dtype, torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        return self._stored.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self._few(x) if len(x) <= PACKED_ROWS else self._many(x)
        return functional.gelu(y) if self._gelu else y

    def _few(self, x: torch.Tensor) -> torch.Tensor:
        # Scaled in float32 behind it: the operator's own scales have the type of x.
        ones = self._ones.setdefault(x.dtype, torch.ones(len(self._scale), dtype=x.dtype))
        y = torch._weight_int8pack_mm(x.contiguous(), self._stored.codes, ones) * self._scale
        return (y if self._bias is None else y.add_(self._bias)).to(x.dtype)

    def _many(self, x: torch.Tensor) -> torch.Tensor:
        out, width = self._stored.shape
        y = x.new_empty(len(x), out)
        for first, last in chunk_rows(out, width):
            bias = None if self._bias is None else self._bias[first:last]
            weight = self._stored.rows(first, last).to(x.dtype)
            y[:, first:last] = functional.linear(x, weight, bias)
        return y


class Int8:
    """See LinearMethod."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.plain = Unquantized(dtype)

    def build(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        return self.build_stored(StoredInt8.quantize(weight), bias, gelu=gelu, order=order)

    def build_stored(
        self,
        stored: Stored,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        if not isinstance(stored, StoredInt8):
            raise ConfigError("the checkpoint's weights are in 4 bits, --quantize says 8")
        if order is not None:
            stored, bias = stored.reordered(order), None if bias is None else bias[order]
        bias = None if bias is None else bias.to(self._dtype)
        return Int8Linear(stored, bias, gelu=gelu)
