"""Launch parameters of the QKV split with rotary positions and cache write. Not measured yet."""

from dataclasses import dataclass

from tiercel_kernels.tuning.cards import nearest


@dataclass(frozen=True, slots=True)
class QkvVariant:
    """block_heads: heads of one token that a program handles."""

    block_heads: int
    num_warps: int


# By compute capability; the first variant of a list is the one in use. At batch 1 the kernel is
# latency only, so that few heads per program and more programs are the better start.
VARIANTS: dict[int, list[QkvVariant]] = {
    75: [QkvVariant(8, 2)],
    80: [QkvVariant(8, 2), QkvVariant(16, 4)],
    86: [QkvVariant(8, 2), QkvVariant(16, 4)],
    90: [QkvVariant(8, 2), QkvVariant(16, 4)],
}


def variant(capability: int) -> QkvVariant:
    """The variant in use on a card of this compute capability, see `nearest`."""
    return VARIANTS[nearest(VARIANTS, capability)][0]
