"""`--quantize bitsandbytes-nf4` and `-fp4`: weights in 4 bits, one scale for 64 of them."""

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch.nn import functional

from tiercel.errors import ConfigError
from tiercel.layers.linear import Linear, bytes_of
from tiercel.layers.widened import chunk_rows, fast_dtype
from tiercel.parallel.take import take
from tiercel.quantization.bitsandbytes_package import import_bitsandbytes
from tiercel.quantization.stored import Nested, Stored, StoredFourBit
from tiercel.quantization.tables import BLOCK, NESTED_BLOCK, pair_table
from tiercel.quantization.unquantized import Unquantized


@functools.cache
def bitsandbytes_decode() -> Callable[..., torch.Tensor] | None:
    """bitsandbytes' CPU kernel that writes 4-bit codes out, or None without the package.

    4096 x 4096, one Zen 3 core, with the float32 GEMM behind it, ms for 1 / 8 / 32 rows: 26 / 37 /
    85, a table look-up in torch 49 to 67 / 58 to 73 / 127 to 134, bitsandbytes' whole matmul 132 /
    185 / 288 (it writes the whole weight out). torch's packed int4 GEMM knows evenly spaced codes
    only, which these are not. Imported with the first step, as the package takes 200 MB.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return None
    import_bitsandbytes()
    operator: Callable[..., torch.Tensor] = torch.ops.bitsandbytes.dequantize_4bit.default
    return operator


class FourBitLinear:
    """On a CPU: a part of the weight at a time is written out and multiplied while it is in cache.

    `order`: the output's columns in terms of the weight's rows, where those cannot be moved.
    """

    def __init__(
        self,
        stored: StoredFourBit,
        bias: torch.Tensor | None,
        *,
        gelu: bool,
        order: torch.Tensor | None = None,
    ) -> None:
        self._stored = stored
        self._bias = bias  # [out]
        self._gelu = gelu
        self._order = order
        self._pairs = pair_table(stored.kind)

    @property
    def nbytes(self) -> int:
        return bytes_of(self._stored, self._bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out, width = self._stored.shape
        y = x.new_empty(len(x), out)
        arithmetic = fast_dtype(x.dtype)
        wide = x.to(arithmetic)
        if self._stored.whole_blocks:
            for first, last in chunk_rows(out, width):
                weight = self._rows(first, last, arithmetic)
                y[:, first:last] = functional.linear(wide, weight)
        else:
            y = functional.linear(wide, self._stored.numbers().to(arithmetic)).to(x.dtype)
        if self._order is not None:
            y = y.index_select(1, self._order)
        if self._bias is not None:
            y.add_(self._bias)
        return functional.gelu(y) if self._gelu else y

    def _rows(self, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [first, last) as numbers [rows, in]."""
        width = self._stored.shape[1]
        codes = self._stored.codes[first * width // 2 : last * width // 2]
        absmax = self._absmax(first * width // BLOCK, last * width // BLOCK)
        decode = bitsandbytes_decode()
        if decode is not None:
            shape = (last - first, width)
            return decode(codes, absmax, BLOCK, self._stored.kind, shape, dtype)
        blocks = torch.embedding(self._pairs, codes.int()).view(-1, BLOCK)
        return blocks.mul_(absmax.unsqueeze(1)).view(-1, width).to(dtype)

    def _absmax(self, first: int, last: int) -> torch.Tensor:
        statistics = self._stored.statistics
        if not isinstance(statistics, Nested):
            return statistics[first:last]
        values = statistics.table[statistics.codes[first:last].int()]
        outer = torch.arange(first, last).div_(NESTED_BLOCK, rounding_mode="floor")
        return values.mul_(statistics.absmax[outer]).add_(statistics.offset)


class FourBit:
    """See LinearMethod."""

    def __init__(self, dtype: torch.dtype, kind: str, double_quant: bool) -> None:
        self._dtype = dtype
        self._kind = kind
        self._double_quant = double_quant
        self.plain = Unquantized(dtype)

    def build(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        stored = StoredFourBit.quantize(weight, self._kind, double_quant=self._double_quant)
        return self.build_stored(stored, bias, gelu=gelu, order=order)

    def build_stored(
        self,
        stored: Stored,
        bias: torch.Tensor | None,
        *,
        gelu: bool = False,
        order: torch.Tensor | None = None,
    ) -> Linear:
        if not isinstance(stored, StoredFourBit) or stored.kind != self._kind:
            raise ConfigError(f"the checkpoint's weights are not in {self._kind}")
        if order is not None:
            bias = None if bias is None else take(bias, 0, order)
            if stored.whole_blocks or len(order) != stored.shape[0]:
                stored, order = stored.reordered(order), None
        bias = None if bias is None else bias.to(self._dtype)
        return FourBitLinear(stored, bias, gelu=gelu, order=order)
