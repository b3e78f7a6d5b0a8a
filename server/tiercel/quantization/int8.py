"""`--quantize bitsandbytes`: weights in int8, one scale a row; activations stay as they are.

The multiplication is bitsandbytes' with dequantized weights, not its LLM.int8: nothing is lost in
the activations, no outliers have to be looked for, and no row has to do with another's numbers.
"""

import functools
from typing import Protocol

import torch
from torch.nn import functional

from tiercel.errors import ConfigError
from tiercel.layers.linear import Linear, bytes_of
from tiercel.layers.widened import Scratch, chunk_rows, fast_dtype, onednn_has
from tiercel.parallel.take import take
from tiercel.quantization.stored import Stored, StoredInt8
from tiercel.quantization.unquantized import Unquantized

# Up to so many rows of bfloat16 go through torch's int8 GEMM. 4096 x 4096, one Zen 3 core (no
# bfloat16 in hardware), torch 2.13, ms for 1 / 8 / 32 rows, busy machine:
#     plain bfloat16           8.7 / 41 / 202
#     torch's int8 GEMM        7.0 / 14 /  57   (2.6 / 9.7 / 68 in another run)
#     codes as float32         4.5 / 14 /  21   (into new memory each time: 31 / 25 / 29)
#     codes as bfloat16         16 / 55 / 207
#     bitsandbytes' own matmul  18 / 126 / 807  (quantized activations, torch._int_mm)
# In float32 and float16 torch's int8 GEMM has no fast kernel: 25 / 636 / 2629 ms. oneDNN's dynamic
# int8 GEMM has one scale for all rows of the activations, so that a row's result would depend on
# the others. Where oneDNN multiplies bfloat16, codes as bfloat16 take over from the second row: an
# earlier measurement on Zen 4 found torch's int8 GEMM good for one row only.
PACKED_ROWS = 8
PACKED_ROWS_WITH_ONEDNN = 1
# With AVX-512 torch's int8 GEMM reads beyond rows of another width: a wrong result, or a crash
# (torch 2.13). Every published Falcon has a multiple of this; of its ranks' parts, those of three,
# five, six or seven have not.
PACKED_WIDTH = 16


class Int8Linear:
    """On a CPU. The codes are multiplied as they are, and the result gets the scale.

    But for float16 where the CPU multiplies it: see `_half`.
    """

    def __init__(
        self, scratch: Scratch, stored: StoredInt8, bias: torch.Tensor | None, *, gelu: bool
    ) -> None:
        self._scratch = scratch
        self._stored = stored
        self._scale = stored.absmax / 127.0  # float32 [out]
        self._bias = bias  # [out]
        self._gelu = gelu
        onednn = onednn_has(torch.bfloat16)
        self._packed_rows = PACKED_ROWS_WITH_ONEDNN if onednn else PACKED_ROWS
        if stored.shape[1] % PACKED_WIDTH:
            self._packed_rows = 0
        self._ones = torch.ones(len(self._scale), dtype=torch.bfloat16)

    @property
    def nbytes(self) -> int:
        return bytes_of(self._stored, self._bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype is torch.bfloat16 and len(x) <= self._packed_rows:
            y = self._few(x)
        else:
            y = self._many(x)
        return functional.gelu(y) if self._gelu else y

    def _few(self, x: torch.Tensor) -> torch.Tensor:
        # Scaled in float32 behind it: the operator's own scales would be in bfloat16.
        y = torch._weight_int8pack_mm(x.contiguous(), self._stored.codes, self._ones) * self._scale
        return (y if self._bias is None else y.add_(self._bias)).to(x.dtype)

    def _many(self, x: torch.Tensor) -> torch.Tensor:
        out, width = self._stored.shape
        y = x.new_empty(len(x), out)
        arithmetic = fast_dtype(x.dtype)
        wide = x.to(arithmetic)
        for first, last in chunk_rows(out, width):
            if arithmetic is torch.float16:
                part = functional.linear(wide, self._half(first, last)).float()
            else:
                codes = self._scratch.widen(self._stored.codes[first:last], arithmetic)
                part = functional.linear(wide, codes) * self._scale[first:last]
            y[:, first:last] = part if self._bias is None else part.add_(self._bias[first:last])
        return y

    def _half(self, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) as float16 numbers: sums of codes leave its range.

        At an absmax of 0.1 already a result above 52 would be infinite before it got its scale.
        By way of float32 it is also faster: 4096 x 4096 take 8.8 ms, codes straight to float16 20
        (one Zen 3 core; none that multiplies float16 was at hand).
        """
        numbers = self._scratch.widen(self._stored.codes[first:last], torch.float32)
        return self._scratch.widen(numbers.mul_(self._scale[first:last, None]), torch.float16)


class Int8Layer(Protocol):
    """Makes a layer of rows in int8."""

    def __call__(self, stored: StoredInt8, bias: torch.Tensor | None, *, gelu: bool) -> Linear: ...


class Int8:
    """See LinearMethod. `layer`: how its rows are multiplied, if not by Int8Linear."""

    def __init__(self, dtype: torch.dtype, layer: Int8Layer | None = None) -> None:
        self._dtype = dtype
        self._layer: Int8Layer = layer or functools.partial(Int8Linear, Scratch())
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
            stored, bias = stored.reordered(order), None if bias is None else take(bias, 0, order)
        bias = None if bias is None else bias.to(self._dtype)
        return self._layer(stored, bias, gelu=gelu)
