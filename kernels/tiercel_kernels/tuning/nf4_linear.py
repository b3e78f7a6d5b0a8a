"""Launch parameters of nf4_linear. Not measured yet: first guesses, all compiled for each card.

Chosen by card and shape of the weight, never by rows, so that a row's bits stay the same whatever
the batch. `block_k` is in weights and a multiple of 64.
"""

from tiercel_kernels.tuning.cards import nearest
from tiercel_kernels.tuning.skinny_linear import LinearVariant, guess

# By compute capability, then by (out, in); the first variant of a list is the one in use. Writing
# the codes out takes more arithmetic than reading them takes time, so there are more warps than
# skinny_linear has, and narrow tiles.
VARIANTS: dict[int, dict[tuple[int, int], list[LinearVariant]]] = {
    75: {},
    80: {
        (4672, 4544): [LinearVariant(32, 128, 4, 4, 3), LinearVariant(16, 128, 4, 4, 3)],  # 7b
        (18176, 4544): [LinearVariant(32, 128, 1, 4, 3), LinearVariant(64, 64, 1, 4, 3)],
        (4544, 18176): [LinearVariant(32, 128, 4, 4, 3)],
        (9216, 8192): [LinearVariant(32, 128, 2, 4, 3)],  # 40b
        (8192, 32768): [LinearVariant(32, 128, 4, 4, 3)],
    },
    86: {
        (4672, 4544): [LinearVariant(32, 128, 4, 4, 3), LinearVariant(32, 64, 4, 4, 3)],
        (18176, 4544): [LinearVariant(32, 128, 1, 4, 3)],
        (4544, 18176): [LinearVariant(32, 128, 4, 4, 3)],
    },
    90: {
        (4672, 4544): [LinearVariant(32, 128, 4, 4, 4), LinearVariant(16, 128, 4, 4, 4)],
        (18176, 4544): [LinearVariant(32, 128, 1, 4, 4), LinearVariant(64, 64, 1, 4, 4)],
        (4544, 18176): [LinearVariant(32, 128, 4, 4, 4)],
        (9216, 8192): [LinearVariant(32, 128, 2, 4, 4)],
        (8192, 32768): [LinearVariant(32, 128, 4, 4, 4)],
    },
}


def variant(capability: int, out: int, width: int, bytes_per_number: int) -> LinearVariant:
    """The variant for a weight [out, width] and x's type, see `nearest`."""
    card = nearest(VARIANTS, capability)
    listed = VARIANTS[card].get((out, width))
    if listed and bytes_per_number == 2:
        return listed[0]
    # A tile of float32 is twice as large: of 32 outputs it spills on sm_120.
    return guess(card, out, width, 64, 3, block_n=16 if bytes_per_number == 4 else 32)
