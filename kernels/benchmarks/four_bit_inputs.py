"""Random 4-bit weights, as bitsandbytes stores them."""

import torch

from tiercel_kernels.reference.nf4_dequantize import BLOCK, FourBitWeight


def four_bit(size: tuple[int, int], device: torch.device, seed: int) -> FourBitWeight:
    """A weight [out, in] whose product with normal rows is about normal; not nested."""
    out, width = size
    generator = torch.Generator(device).manual_seed(seed)
    codes = torch.randint(
        0, 256, (out * width // 2,), generator=generator, device=device, dtype=torch.uint8
    )
    table = torch.linspace(-1.7, 1.7, 16, device=device) / width**0.5
    absmax = torch.rand(out * width // BLOCK, generator=generator, device=device) + 0.5
    return FourBitWeight(codes, table, absmax, out, width)


def four_bit_bytes(size: tuple[int, int]) -> int:
    """Codes and statistics."""
    numbers = size[0] * size[1]
    return numbers // 2 + 4 * numbers // BLOCK
