"""Random 4-bit weights, as bitsandbytes stores them."""

import torch

from tiercel_kernels.reference.nf4_dequantize import BLOCK, FourBitWeight

# Dettmers et al., QLoRA (2023), appendix E: bitsandbytes' kernels know these and no others.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def four_bit(size: tuple[int, int], device: torch.device, seed: int) -> FourBitWeight:
    """A weight [out, in] whose product with normal rows is about normal; not nested."""
    out, width = size
    generator = torch.Generator(device).manual_seed(seed)
    codes = torch.randint(
        0, 256, (out * width // 2,), generator=generator, device=device, dtype=torch.uint8
    )
    absmax = torch.rand(out * width // BLOCK, generator=generator, device=device) + 0.5
    absmax *= 1.6 / width**0.5  # the numbers' deviation is 0.6
    return FourBitWeight(codes, torch.tensor(NF4, device=device), absmax, out, width)


def four_bit_bytes(size: tuple[int, int]) -> int:
    """Codes and statistics."""
    numbers = size[0] * size[1]
    return numbers // 2 + 4 * numbers // BLOCK
