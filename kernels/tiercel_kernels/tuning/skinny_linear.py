"""Launch parameters of skinny_linear. Not measured yet: first guesses, all compiled for each card.

A variant is chosen by card and shape of the weight, never by rows, so that a row's bits stay the
same whatever the batch.
"""

from dataclasses import dataclass

from tiercel_kernels.tuning.cards import nearest


@dataclass(frozen=True, slots=True)
class LinearVariant:
    """block_n x block_k: the tile of the weight; split_k: programs that share the sum over K."""

    block_n: int
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int


# By compute capability, then by (out, in); the first variant of a list is the one in use. Names:
# QKV, attention output, MLP up, MLP down, and up with QKV or down with output in one matrix.
# More than four programs per multiprocessor keep enough loads under way; K / (split x block_k)
# is whole for all of them but 4544 = 71 x 64.
VARIANTS: dict[int, dict[tuple[int, int], list[LinearVariant]]] = {
    75: {},
    80: {
        (4672, 4544): [LinearVariant(32, 64, 4, 4, 5), LinearVariant(16, 128, 4, 4, 4)],  # 7b
        (4544, 4544): [LinearVariant(32, 64, 4, 4, 5), LinearVariant(16, 128, 4, 4, 4)],
        (18176, 4544): [LinearVariant(64, 64, 2, 4, 4), LinearVariant(32, 64, 1, 4, 5)],
        (4544, 18176): [LinearVariant(32, 128, 4, 4, 4), LinearVariant(64, 64, 8, 4, 5)],
        (22848, 4544): [LinearVariant(64, 64, 2, 4, 4), LinearVariant(32, 64, 1, 4, 5)],
        (4544, 22720): [LinearVariant(32, 128, 4, 4, 4), LinearVariant(64, 64, 8, 4, 5)],
        (9216, 8192): [LinearVariant(32, 128, 2, 4, 4), LinearVariant(64, 64, 4, 4, 5)],  # 40b
        (8192, 32768): [LinearVariant(32, 128, 4, 4, 4), LinearVariant(64, 64, 8, 4, 5)],
    },
    86: {
        (4672, 4544): [LinearVariant(32, 64, 2, 4, 4), LinearVariant(16, 128, 4, 4, 3)],
        (18176, 4544): [LinearVariant(64, 64, 1, 4, 4), LinearVariant(32, 64, 1, 4, 4)],
        (4544, 18176): [LinearVariant(32, 128, 4, 4, 3), LinearVariant(64, 64, 4, 4, 4)],
    },
    90: {
        (4672, 4544): [LinearVariant(32, 64, 4, 4, 6), LinearVariant(16, 128, 4, 4, 5)],
        (4544, 4544): [LinearVariant(32, 64, 4, 4, 6), LinearVariant(16, 128, 4, 4, 5)],
        (18176, 4544): [LinearVariant(64, 64, 2, 4, 5), LinearVariant(32, 64, 1, 4, 6)],
        (4544, 18176): [LinearVariant(32, 64, 4, 4, 6), LinearVariant(64, 64, 8, 4, 6)],
        (22848, 4544): [LinearVariant(64, 64, 2, 4, 5), LinearVariant(32, 64, 1, 4, 6)],
        (4544, 22720): [LinearVariant(32, 64, 4, 4, 6), LinearVariant(64, 64, 8, 4, 6)],
        (9216, 8192): [LinearVariant(32, 64, 2, 4, 6), LinearVariant(64, 64, 4, 4, 6)],
        (8192, 32768): [LinearVariant(32, 64, 4, 4, 6), LinearVariant(64, 64, 8, 4, 6)],
    },
}

# Without asynchronous copies a tile waits in registers: of 32 x 64, 152 bytes of them spill.
TURINGS_BLOCK_K = 32
MULTIPROCESSORS = {75: 40, 80: 108, 86: 80, 90: 132}


def variant(capability: int, out: int, width: int, bytes_per_number: int) -> LinearVariant:
    """The variant for a weight [out, width] on a card, see `nearest`."""
    card = nearest(VARIANTS, capability)
    listed = VARIANTS[card].get((out, width))
    if listed and bytes_per_number == 2:
        return listed[0]
    block_k = TURINGS_BLOCK_K if card == 75 else 64
    return guess(card, out, width, block_k, 4 if bytes_per_number == 2 else 3)


def guess(
    card: int, out: int, width: int, block_k: int, stages: int, block_n: int = 32
) -> LinearVariant:
    """Enough programs for four on each multiprocessor, each with at least eight tiles.

    For shapes that no table lists, and for all of a card whose table is empty.
    """
    programs = -(-out // block_n)
    split_k = 1
    while programs * split_k < 4 * MULTIPROCESSORS[card] and width // (block_k * split_k) >= 16:
        split_k *= 2
    return LinearVariant(block_n, block_k, split_k, 4, stages)
