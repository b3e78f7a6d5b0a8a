"""16-bit arithmetic on CPUs that have none: weights stay in 16 bits, products are float32.

Without AVX-512 oneDNN does not multiply bfloat16, and torch's own kernel for it is slow. With it
oneDNN does, but in hardware only where there is AVX512_BF16 (Zen 4, Cooper Lake). Elsewhere it
emulates: 16 rows through 4096 x 4096 took 12 ms on two such cores, where FBGEMM takes 4.7 (half.py)
and float32 3.7; one row 1.9, 2.2 and 1.9.
"""

import functools
import platform
from collections.abc import Iterator

import torch
from torch.nn import functional

from tiercel.layers.linear import bytes_of

# 256 rows of 4096: what is written is still in cache when it is multiplied. A whole weight at once
# took 1.5 to 2.5 times as long, 32 rows at a time twice as long (one Zen 3 core, 1 row of x).
CHUNK_NUMBERS = 1 << 20


def onednn_has(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies `dtype` on this CPU, in hardware."""
    if not torch._C._has_mkldnn:
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and not _emulates_bfloat16()
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype is torch.float32


def _emulates_bfloat16() -> bool:
    """Whether this is an x86 CPU without instructions for it."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not torch.cpu._is_avx512_bf16_supported()


@functools.cache
def has_tiles() -> bool:
    """Whether this CPU multiplies bfloat16 in tiles: AMX."""
    return torch.cpu._is_amx_tile_supported()


def fast_dtype(dtype: torch.dtype) -> torch.dtype:
    """What activations of `dtype` are multiplied in on this CPU: float32 if it lacks their type.

    bfloat16 on one Zen 3 core: 4096 x 4096 numbers from 4 bits, 1 / 8 / 32 rows, take 26 / 37 / 85
    ms in float32 and 96 / 115 / 239 in bfloat16.
    """
    return dtype if onednn_has(dtype) else torch.float32


def decoding_dtype(dtype: torch.dtype) -> torch.dtype:
    """What attention of single tokens of `dtype` is multiplied in on this CPU.

    MKL, which torch's flash kernel uses, has products of bfloat16 with float32 sums: no faster for
    many queries, but for those of one token they beat writing keys and values out in float32. Two
    Zen 3 cores, us in bfloat16 / in float32, 12 query heads: one row of 192 keys 97 / 127, 16 of
    192 468 / 711, 16 of 1,024 1,511 / 2,524; 16 rows of 512 with 64 heads on 8 13,173 / 30,125.
    MKL has none of float16: 1,046 / 523 for 16 of 192. Not measured with AVX-512 alone.
    """
    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
    return dtype if dtype is torch.bfloat16 and mkl and avx2 else fast_dtype(dtype)


def chunk_rows(out: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of every part of a weight [out, width]."""
    step = max(1, CHUNK_NUMBERS // width)
    for first in range(0, out, step):
        yield first, min(out, first + step)


class Scratch:
    """Where layers write a part of their weight out, one after the other. Not thread-safe.

    New memory for each part would cost more than the rest: 22 ms against 7 for one row.
    """

    def __init__(self) -> None:
        self._numbers: dict[torch.dtype, torch.Tensor] = {}

    def widen(self, part: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """part: [rows, in] -> the same in `dtype`, valid until the next call."""
        numbers = self._numbers.get(dtype)
        if numbers is None or numbers.numel() < part.numel():
            numbers = torch.empty(max(CHUNK_NUMBERS, part.numel()), dtype=dtype)
            self._numbers[dtype] = numbers
        return numbers[: part.numel()].view(part.shape).copy_(part)


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x: [rows, in], weight: [out, in] -> [rows, out].

    torch's GEMM is given the weight first. 4096 x 4096 on two Zen 3 cores, 8 / 16 / 32 rows: 11 /
    11 / 17 ms with the rows first, 8.4 / 8.2 / 12 with the weight; 3072 x 768: 1.1 / 1.4 / 2.0
    and 1.2 / 1.0 / 1.6. The whole layer, 4096 x 4096 on two Zen 1 cores, 2 / 4 / 8 rows: 18 / 28 /
    28 ms and 9.7 / 10 / 15.
    """
    return torch.mm(weight, x.t()).t()


class WidenedLinear:
    """A part of the weight at a time becomes float32 and is multiplied; results are rounded once.

    Bias and GELU are float32 too, as oneDNN has them where it has the type. bfloat16, 4096 x 4096,
    one Zen 3 core, 1 / 8 / 32 rows: 7.3 / 15 / 26 ms; torch's own GEMM takes 6.1 / 28 / 118.
    So one row goes through torch's own.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scratch: Scratch,
        *,
        gelu: bool = False,
    ) -> None:
        self._weight = weight  # [out, in], 16 bits
        self._bias = bias  # [out]
        self._scratch = scratch
        self._gelu = gelu

    @property
    def nbytes(self) -> int:
        return bytes_of(self._weight, self._bias)

    def shares(self, weight: torch.Tensor) -> bool:
        """See layers.linear.KeepsWeight."""
        return self._weight.data_ptr() == weight.data_ptr()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            y = functional.linear(x, self._weight, self._bias)
            return functional.gelu(y) if self._gelu else y
        out, width = self._weight.shape
        y = x.new_empty(len(x), out)
        wide = x.float()
        bias = None if self._bias is None else self._bias.float()
        for first, last in chunk_rows(out, width):
            weight = self._scratch.widen(self._weight[first:last])
            product = _product(wide, weight)
            if bias is not None:
                product = product + bias[first:last]
            y[:, first:last] = functional.gelu(product) if self._gelu else product
        return y
