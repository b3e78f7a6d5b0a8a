"""Launch parameters of int8_linear. Not measured yet: first guesses, all compiled for each card.

Chosen by card and shape of the weight, never by rows, so that a row's bits stay the same whatever
the batch.
"""

from tiercel_kernels.tuning.cards import nearest
from tiercel_kernels.tuning.skinny_linear import TURINGS_BLOCK_K, LinearVariant, guess

# By compute capability, then by (out, in); the first variant of a list is the one in use. A byte a
# weight: tiles twice as long as skinny_linear's keep as many bytes under way. 4544 = 71 x 64, so
# its tiles of 128 end with half a one.
VARIANTS: dict[int, dict[tuple[int, int], list[LinearVariant]]] = {
    75: {},
    80: {
        (4672, 4544): [LinearVariant(32, 128, 4, 4, 4), LinearVariant(32, 64, 4, 4, 5)],  # 7b
        (18176, 4544): [LinearVariant(64, 128, 1, 4, 4), LinearVariant(32, 128, 1, 4, 4)],
        (4544, 18176): [LinearVariant(32, 128, 4, 4, 4), LinearVariant(64, 128, 8, 4, 4)],
        (9216, 8192): [LinearVariant(32, 128, 2, 4, 4), LinearVariant(64, 128, 4, 4, 4)],  # 40b
        (8192, 32768): [LinearVariant(32, 128, 4, 4, 4), LinearVariant(64, 128, 8, 4, 4)],
    },
    86: {
        (4672, 4544): [LinearVariant(32, 128, 4, 4, 3), LinearVariant(32, 64, 4, 4, 4)],
        (18176, 4544): [LinearVariant(64, 128, 1, 4, 3), LinearVariant(32, 128, 1, 4, 3)],
        (4544, 18176): [LinearVariant(32, 128, 4, 4, 3)],
    },
    90: {
        (4672, 4544): [LinearVariant(32, 128, 4, 4, 5), LinearVariant(32, 64, 4, 4, 6)],
        (18176, 4544): [LinearVariant(64, 128, 2, 4, 4), LinearVariant(32, 128, 1, 4, 5)],
        (4544, 18176): [LinearVariant(32, 128, 4, 4, 5), LinearVariant(64, 128, 8, 4, 4)],
        (9216, 8192): [LinearVariant(32, 128, 2, 4, 5), LinearVariant(64, 128, 4, 4, 4)],
        (8192, 32768): [LinearVariant(32, 128, 4, 4, 5), LinearVariant(64, 128, 8, 4, 4)],
    },
}


def variant(capability: int, out: int, width: int, bytes_per_number: int) -> LinearVariant:
    """The variant for codes [out, width] and x's type, see `nearest`."""
    card = nearest(VARIANTS, capability)
    listed = VARIANTS[card].get((out, width))
    if listed and bytes_per_number == 2:
        return listed[0]
    if card == 75:
        return guess(card, out, width, TURINGS_BLOCK_K, 3)
    # Codes become float32 in registers: a longer tile of them spills.
    return guess(card, out, width, 32 if bytes_per_number == 4 else 128, 3)
