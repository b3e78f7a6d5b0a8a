"""Quantized weights as bytes: made here while loading, or by bitsandbytes before they were saved.

Rows are those of the checkpoint. Arithmetic is bitsandbytes', so that both give the same bytes.
"""

import math
from dataclasses import dataclass

import torch

from tiercel.errors import ConfigError
from tiercel.parallel.part import Part
from tiercel.parallel.take import take
from tiercel.quantization.tables import (
    BLOCK,
    NESTED_BLOCK,
    dynamic_table,
    four_bit_table,
    pair_table,
)

# Of a weight in float32 while it is quantized: what there is beside the weight and the codes.
CHUNK_NUMBERS = 1 << 20


@dataclass(frozen=True)
class StoredInt8:
    """Rows in int8 with one absmax each: number = code x absmax / 127."""

    codes: torch.Tensor  # int8 [out, in]
    absmax: torch.Tensor  # float32 [out]

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @classmethod
    def quantize(cls, weight: torch.Tensor) -> "StoredInt8":
        """weight: [out, in] of any float type, rounded to float16 first as bitsandbytes does."""
        out, width = weight.shape
        codes = torch.empty(out, width, dtype=torch.int8)
        absmax = torch.empty(out)
        step = max(1, CHUNK_NUMBERS // width)
        for first in range(0, out, step):
            rows = weight[first : first + step]
            half = rows.half()
            # Beyond float16's range there is nothing to be equal to.
            rows = (
                half.float() if bool(half.isfinite().all()) else rows.to(torch.float32, copy=True)
            )
            largest = rows.abs().amax(1)
            absmax[first : first + step] = largest
            rows.mul_((127.0 / largest.clamp(min=1e-38)).unsqueeze(1)).round_()
            codes[first : first + step] = rows.to(torch.int8)
        return cls(codes, absmax)

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) as float32."""
        scale = self.absmax[first:last, None] / 127.0
        return self.codes[first:last].float().mul_(scale)

    def reordered(self, order: torch.Tensor) -> "StoredInt8":
        """Rows by number, int64 [rows]; -1 is a row of zeros."""
        return StoredInt8(take(self.codes, 0, order), take(self.absmax, 0, order))

    def columns(self, part: Part) -> "StoredInt8":
        """A part of every row: its scale is still that of the whole row."""
        index = torch.tensor(part.indices())
        return StoredInt8(take(self.codes, 1, index), self.absmax)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.absmax.nbytes


@dataclass(frozen=True)
class Nested:
    """Quantized statistics: absmax = table[code] x absmax + offset."""

    codes: torch.Tensor  # uint8 [blocks]
    absmax: torch.Tensor  # float32 [ceil(blocks / 256)]
    table: torch.Tensor  # float32 [256]
    offset: float

    @classmethod
    def quantize(cls, values: torch.Tensor) -> "Nested":
        """values: float32 [blocks]."""
        offset = values.mean().item()
        table = dynamic_table()
        count = len(values)
        padded = torch.zeros(-(-count // NESTED_BLOCK) * NESTED_BLOCK)
        padded[:count] = values - offset
        blocks = padded.view(-1, NESTED_BLOCK)
        absmax = blocks.abs().amax(1)
        blocks = blocks * (1.0 / absmax.clamp(min=1e-38)).unsqueeze(1)
        codes = torch.bucketize(blocks.view(-1), (table[:-1] + table[1:]) / 2, out_int32=True)
        return cls(codes[:count].to(torch.uint8), absmax, table, offset)

    def values(self) -> torch.Tensor:
        """float32 [blocks]."""
        found = self.table[self.codes.int()]
        scale = self.absmax.repeat_interleave(NESTED_BLOCK)[: len(found)]
        return found.mul_(scale).add_(self.offset)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.absmax.nbytes + self.table.nbytes


@dataclass(frozen=True)
class StoredFourBit:
    """Two codes a byte, the first in the high half, flat over the rows; an absmax per 64 of them.

    `statistics` is Nested with double quantization.
    """

    kind: str  # "nf4" | "fp4"
    shape: tuple[int, int]  # [out, in]
    codes: torch.Tensor  # uint8 [ceil(out x in / 2)]
    statistics: torch.Tensor | Nested  # float32 [ceil(out x in / 64)]

    @property
    def whole_blocks(self) -> bool:
        """Whether every row is whole blocks, so that rows can be taken apart."""
        return self.shape[1] % BLOCK == 0

    @classmethod
    def quantize(cls, weight: torch.Tensor, kind: str, *, double_quant: bool) -> "StoredFourBit":
        """weight: [out, in] of any float type."""
        flat = weight.reshape(-1)
        count = len(flat)
        table = four_bit_table(kind)
        order = table.argsort()
        ascending = table[order]
        middles = (ascending[:-1] + ascending[1:]) / 2
        codes = torch.empty(-(-count // 2), dtype=torch.uint8)
        absmax = torch.empty(-(-count // BLOCK))
        for first in range(0, count, CHUNK_NUMBERS):  # whole blocks and whole bytes
            numbers = flat[first : first + CHUNK_NUMBERS].float()
            blocks = torch.zeros(-(-len(numbers) // BLOCK), BLOCK)
            blocks.view(-1)[: len(numbers)] = numbers
            largest = blocks.abs().amax(1)
            absmax[first // BLOCK : first // BLOCK + len(largest)] = largest
            blocks = blocks.mul_((1.0 / largest.clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1)
            found = torch.bucketize(blocks.view(-1), middles, out_int32=True)
            chosen = found.to(torch.uint8) if kind == "nf4" else order[found].to(torch.uint8)
            pairs = (chosen[::2] << 4) | chosen[1::2]
            taken = -(-len(numbers) // 2)
            codes[first // 2 : first // 2 + taken] = pairs[:taken]
        shape = (weight.shape[0], weight.shape[1])
        return cls(kind, shape, codes, Nested.quantize(absmax) if double_quant else absmax)

    def absmax(self) -> torch.Tensor:
        """float32 [blocks], decoded where it is nested."""
        if isinstance(self.statistics, Nested):
            return self.statistics.values()
        return self.statistics

    def numbers(self) -> torch.Tensor:
        """All of it as float32 [out, in]."""
        out, width = self.shape
        found = pair_table(self.kind)[self.codes.int()].view(-1)
        padded = torch.nn.functional.pad(found, (0, -len(found) % BLOCK)).view(-1, BLOCK)
        padded.mul_(self.absmax().unsqueeze(1))
        return padded.view(-1)[: math.prod(self.shape)].view(out, width)

    def reordered(self, order: torch.Tensor) -> "StoredFourBit":
        """Rows by number, int64 [rows]; -1 is a row of zeros.

        Statistics of double quantization are decoded: their blocks of 256 are cut across the rows.
        Raises ConfigError where rows are not whole blocks.
        """
        out, width = self.shape
        if not self.whole_blocks:
            raise _cut()
        codes = take(self.codes.view(out, width // 2), 0, order).view(-1)
        absmax = take(self.absmax().view(out, width // BLOCK), 0, order).view(-1)
        return StoredFourBit(self.kind, (len(order), width), codes, absmax)

    def columns(self, part: Part) -> "StoredFourBit":
        """A part of every row. Raises ConfigError where that would cut a block."""
        out, width = self.shape
        if not self.whole_blocks or part.cuts(BLOCK):
            raise _cut()
        blocks = torch.tensor(part.indices()[::BLOCK]).div(BLOCK, rounding_mode="floor")
        codes = take(self.codes.view(out, width // BLOCK, BLOCK // 2), 1, blocks).reshape(-1)
        absmax = take(self.absmax().view(out, width // BLOCK), 1, blocks).reshape(-1)
        return StoredFourBit(self.kind, (out, part.size), codes, absmax)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.statistics.nbytes


def _cut() -> ConfigError:
    return ConfigError(
        f"the checkpoint's weights are saved in 4 bits, in blocks of {BLOCK}, and this number of "
        "ranks would cut them; use fewer, or the original weights with --quantize"
    )


Stored = StoredInt8 | StoredFourBit
