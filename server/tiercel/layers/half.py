"""16-bit weights on x86 CPUs without 16-bit arithmetic, through FBGEMM: it widens in registers.

torch's `quantized::linear_dynamic_fp16` quantizes nothing: weights are float16, activations and
sums float32.
"""

import functools

import torch
from torch.nn import functional

from tiercel.layers.linear import bytes_of

# A weight goes into FBGEMM's order by so many rows. FBGEMM multiplies six rows of x at a time, and
# each time reads 512 columns of all rows of the part: up to about 6 MB that may stay in the cache.
# Two Zen 3 cores, 1 / 8 / 16 / 32 rows of x, ms: 65024 x 768 by 21845 7.4 / 17 / 24 / 46, by 6144
# 7.6 / 16 / 20 / 33, by 1024 12 / 17 / 23 / 35; 18176 x 4544 at once 9.2 / 24 / 37 / 74, by 6144
# 11 / 22 / 29 / 47; 4544 x 18176 by 1024 10 / 18 / 27 / 46, by 2048 9.7 / 17 / 26 / 43.
PACKED_ROWS = 6144
# And by no more numbers: the operator that packs them takes float32.
PACKED_NUMBERS = 1 << 26
# FBGEMM keeps columns in whole blocks: a weight [65024, 768] takes 1.33 times its bytes, one of
# Falcon-7B's width 1.01 times.
BLOCK_COLUMNS = 512
PANEL_ROWS = 16  # of a weight, which it keeps together
MOST_PADDED = 1.34
# Weights of no more numbers, padding included, may grow further, to 8 MB each: small models have
# them, which gain most. One Zen 3 core, us for 4 / 16 rows, beside WidenedLinear: 192 x 192 72 / 88
# and 78 / 105, 768 x 192 101 / 157 and 161 / 218, 4352 x 192 403 / 751 and 1,004 / 1,447.
SMALL_NUMBERS = 1 << 22
# With no more than these, one row goes through torch's own product, by the weight as it is:
# FBGEMM's operator begins slowly. One row on the same core, torch's own and FBGEMM: 192 x 192 17
# and 52, 320 x 192 40 and 68, 192 x 768 66 and 90, 768 x 768 221 and 219.
ONE_ROW_NUMBERS = 1 << 18
LARGEST = float(torch.finfo(torch.float16).max)


@functools.cache
def fbgemm_has_half() -> bool:
    """Whether this build and this CPU have it: it takes AVX2 and half-float conversion."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    try:
        packed = torch.ops.quantized.linear_prepack_fp16(torch.zeros(1, 8), None)
        torch.ops.quantized.linear_dynamic_fp16(torch.zeros(1, 8), packed)
    except (AttributeError, RuntimeError):  # an operator that is gone, or not for this CPU
        return False
    return True


def fits_half(weight: torch.Tensor) -> bool:
    """Whether float16 has the range of a weight [out, in], and FBGEMM's order its size.

    bfloat16 has fewer digits, so nothing is lost but of numbers below 6e-5: 3e-8 of those.
    """
    rows, width = weight.shape
    padded = _padded(width)
    if not weight.numel() or (padded > MOST_PADDED * width and rows * padded > SMALL_NUMBERS):
        return False
    return float(torch.stack(torch.aminmax(weight)).abs().max()) <= LARGEST


def _padded(width: int) -> int:
    return -(-width // BLOCK_COLUMNS) * BLOCK_COLUMNS


class HalfLinear:
    """See layers.linear.Linear. Results are rounded once; bias and GELU are float32 too.

    Milliseconds on two Zen 3 cores in bfloat16 for 1 / 8 / 16 / 32 rows, beside WidenedLinear:
    4096 x 4096 7.5 / 3.6 / 7.6 / 8.7 against 7.9 / 27 / 14 / 15; 3072 x 768 0.14 / 0.46 / 0.60 /
    1.2 against 0.43 / 1.8 / 1.7 / 2.1.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False
    ) -> None:
        """weight: [out, in], 16 bits, for which `fits_half` holds."""
        self._out, width = weight.shape
        self._bias = bias  # [out]
        self._gelu = gelu
        self._nbytes = self._out * _padded(width) * weight.itemsize + bytes_of(bias)
        self._multiply = torch.ops.quantized.linear_dynamic_fp16.default
        pack = torch.ops.quantized.linear_prepack_fp16.default
        parts = -(-self._out // max(1, min(PACKED_ROWS, PACKED_NUMBERS // width)))
        step = -(-self._out // (parts * PANEL_ROWS)) * PANEL_ROWS  # all parts about equal
        self._parts = [
            pack(
                weight[first : first + step].float().contiguous(),
                None if bias is None else bias[first : first + step].float().contiguous(),
            )
            for first in range(0, self._out, step)
        ]

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float().contiguous()
        if len(self._parts) == 1:
            return self._product(wide, self._parts[0]).to(x.dtype)
        y = x.new_empty(len(x), self._out)
        first = 0
        for part in self._parts:
            product = self._product(wide, part)
            last = first + product.shape[1]
            y[:, first:last] = product
            first = last
        return y

    def _product(self, wide: torch.Tensor, part: torch.ScriptObject) -> torch.Tensor:
        product: torch.Tensor = self._multiply(wide, part)
        return functional.gelu(product) if self._gelu else product
