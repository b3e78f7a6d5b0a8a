"""nf4_dequantize: a 4-bit weight written out, for GEMMs of many rows. FourBitWeight: its bytes.

nf4 and fp4 differ in the table of 16 numbers only.
"""

from dataclasses import dataclass

import torch

BLOCK = 64  # weights that share an absmax
NESTED_BLOCK = 256  # statistics that share a second one


@dataclass(frozen=True, slots=True)
class FourBitWeight:
    """bitsandbytes' bytes of a weight [out, width]; width is a multiple of 64."""

    codes: torch.Tensor  # uint8 [out * width / 2], two a byte, the first in the high half
    table: torch.Tensor  # float32 [16], what a code stands for
    absmax: torch.Tensor  # float32 [out * width / 64], or uint8 codes where it is nested
    out: int
    width: int
    nested_absmax: torch.Tensor | None = None  # float32 [ceil(blocks / 256)]
    nested_table: torch.Tensor | None = None  # float32 [256]
    nested_offset: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for what does not fit."""
        blocks, rest = divmod(self.out * self.width, BLOCK)
        if rest or self.width % BLOCK:
            raise ValueError(f"width {self.width} is not a multiple of {BLOCK}")
        nested = self.nested_absmax is not None
        wanted = (
            ("codes", self.codes, torch.uint8, blocks * BLOCK // 2),
            ("table", self.table, torch.float32, 16),
            ("absmax", self.absmax, torch.uint8 if nested else torch.float32, blocks),
        )
        for name, tensor, dtype, count in wanted:
            if tensor.dtype != dtype or tensor.numel() != count or not tensor.is_contiguous():
                shape = list(tensor.shape)
                raise ValueError(f"{name} is {tensor.dtype} {shape}, it must be {dtype} [{count}]")
        if self.nested_absmax is not None:
            table = self.nested_table
            outer = -(-blocks // NESTED_BLOCK)
            if table is None or table.numel() != 256 or self.nested_absmax.numel() != outer:
                raise ValueError(f"nested statistics need {outer} absmax and a table of 256")


def absmax_of(weight: FourBitWeight) -> torch.Tensor:
    """float32 [blocks]."""
    if weight.nested_absmax is None or weight.nested_table is None:
        return weight.absmax
    found = weight.nested_table[weight.absmax.int()]
    outer = weight.nested_absmax.repeat_interleave(NESTED_BLOCK)[: len(found)]
    return found * outer + weight.nested_offset


def nf4_dequantize(weight: FourBitWeight, out: torch.Tensor) -> torch.Tensor:
    """Write the weight to `out` [out, width], contiguous: table x absmax in float32, rounded once.

    Returns `out`.
    """
    codes = torch.stack((weight.codes >> 4, weight.codes & 15), dim=1)
    blocks = weight.table[codes.view(-1).int()].view(-1, BLOCK)
    return out.copy_((blocks * absmax_of(weight).unsqueeze(1)).view(weight.out, weight.width))
