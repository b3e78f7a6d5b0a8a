"""The numbers that 4-bit codes and double-quantized statistics stand for, as bitsandbytes has them.

nf4 and fp4: QLoRA (https://arxiv.org/abs/2305.14314). The 256 values of statistics: the dynamic
tree of "8-bit optimizers" (https://arxiv.org/abs/2110.02861).
"""

import functools

import torch

BLOCK = 64  # weights that share an absmax
NESTED_BLOCK = 256  # statistics that share a second one

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# A sign bit, then three bits that stand for twelfths: the order is no order of size.
_FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)


@functools.cache
def four_bit_table(kind: str) -> torch.Tensor:
    """float32 [16]: what each code of `kind`, "nf4" or "fp4", stands for."""
    if kind == "nf4":
        return torch.tensor(_NF4)
    halves = torch.tensor(_FP4_TWELFTHS) / 12.0
    return torch.cat((halves, -halves))


@functools.cache
def dynamic_table() -> torch.Tensor:
    """float32 [256], ascending: 0, 1 and 127 magnitudes of either sign over seven decades.

    Decade d from 1e-7 up is cut into 2^d equal parts of [0.1, 1], each stood for by its middle.
    """
    magnitudes: list[float] = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        scale = 10.0 ** (decade - 6)
        magnitudes += (scale * ((edges[:-1] + edges[1:]) / 2)).tolist()
    values = [*magnitudes, *(-each for each in magnitudes), 0.0, 1.0]
    return torch.tensor(sorted(values))


@functools.cache
def pair_table(kind: str) -> torch.Tensor:
    """float32 [256, 2]: the two numbers of a byte of codes; the high half comes first."""
    table = four_bit_table(kind)
    byte = torch.arange(256)
    return torch.stack((table[byte >> 4], table[byte & 15]), dim=1)
