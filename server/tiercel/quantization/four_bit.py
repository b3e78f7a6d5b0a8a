"""`--quantize bitsandbytes-nf4` and `-fp4`: weights in 4 bits, one scale for 64 of them."""

import torch
from torch.nn import functional

from tiercel.errors import ConfigError
from tiercel.layers.linear import Linear
from tiercel.quantization.chunks import chunk_rows
from tiercel.quantization.stored import Nested, Stored, StoredFourBit
from tiercel.quantization.tables import BLOCK, NESTED_BLOCK, pair_table
from tiercel.quantization.unquantized import Unquantized


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
        return self._stored.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out, width = self._stored.shape
        y = x.new_empty(len(x), out)
        if self._stored.whole_blocks:
            for first, last in chunk_rows(out, width):
                weight = self._rows(first, last).to(x.dtype)
                y[:, first:last] = functional.linear(x, weight)
        else:
            y = functional.linear(x, self._stored.numbers().to(x.dtype))
        if self._order is not None:
            y = y.index_select(1, self._order)
        if self._bias is not None:
            y.add_(self._bias)
        return functional.gelu(y) if self._gelu else y

    def _rows(self, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) as float32 [rows, in]."""
        width = self._stored.shape[1]
        codes = self._stored.codes[first * width // 2 : last * width // 2].int()
        blocks = torch.embedding(self._pairs, codes).view(-1, BLOCK)
        absmax = self._absmax(first * width // BLOCK, last * width // BLOCK)
        return blocks.mul_(absmax.unsqueeze(1)).view(-1, width)

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
            bias = None if bias is None else bias[order]
            if stored.whole_blocks:
                stored, order = stored.reordered(order), None
        bias = None if bias is None else bias.to(self._dtype)
        return FourBitLinear(stored, bias, gelu=gelu, order=order)
