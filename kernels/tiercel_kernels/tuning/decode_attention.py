"""Launch parameters of decode attention. Not measured yet: guesses, compiled for each card.

A variant is chosen by card and shape, never by batch, so that a row's bits stay the same.
"""

from dataclasses import dataclass

from tiercel_kernels.tuning.cards import nearest

# Keys of one unit of work. Short units fill the device at batch 1; long ones write fewer partial
# results: with 71 heads of 64, 36 KB per unit for writing and reading beside 256 B per key.
UNIT_TOKENS = 256
UNIT_TOKENS_LARGE_GROUP = 512
LARGE_GROUP = 64  # query heads per KV head


@dataclass(frozen=True, slots=True)
class DecodeVariant:
    """block_n: keys per tile; programs_per_sm: size of the persistent grid."""

    block_n: int
    num_warps: int
    num_stages: int
    programs_per_sm: int


# By compute capability, then by kind of shape; the first variant of a list is the one in use.
#
# Stages: block ids are loaded before the keys that they lead to, so that Triton halves the depth:
# with a dot in the loop, 3 and 4 stages keep one tile of keys and values in flight, 5 keep two, 7
# three (seen in Triton 3.9's intermediate code). Programs per SM: as many as shared memory and
# registers admit at once, since a program of the persistent grid that waits is a tail.
# 64 + 16 rows of 71 heads take 207 to 244 registers, none spilled. sm_75 copies through registers,
# one tile at a time: with 4 warps large groups spill there.
VARIANTS: dict[int, dict[str, list[DecodeVariant]]] = {
    75: {
        "vector": [DecodeVariant(32, 4, 2, 4)],
        "small": [DecodeVariant(32, 4, 2, 2)],
        "wide": [DecodeVariant(32, 4, 2, 2)],
        "large": [DecodeVariant(16, 8, 2, 1)],
    },
    80: {
        "vector": [DecodeVariant(32, 2, 4, 6), DecodeVariant(32, 4, 4, 6)],
        "small": [DecodeVariant(64, 4, 5, 4), DecodeVariant(64, 4, 7, 2)],
        "wide": [DecodeVariant(64, 4, 5, 2), DecodeVariant(32, 4, 5, 4)],
        "large": [DecodeVariant(64, 4, 5, 2), DecodeVariant(64, 8, 5, 1)],
    },
    86: {
        "vector": [DecodeVariant(32, 2, 4, 3), DecodeVariant(32, 2, 3, 5)],
        "small": [DecodeVariant(32, 4, 5, 4), DecodeVariant(64, 4, 5, 2)],
        "wide": [DecodeVariant(32, 4, 5, 2), DecodeVariant(32, 4, 3, 3)],
        "large": [DecodeVariant(32, 4, 5, 2), DecodeVariant(64, 4, 3, 2)],
    },
    90: {
        "vector": [DecodeVariant(64, 4, 4, 4), DecodeVariant(32, 2, 4, 8)],
        "small": [DecodeVariant(64, 4, 7, 3), DecodeVariant(64, 4, 5, 4)],
        "wide": [DecodeVariant(64, 4, 5, 3), DecodeVariant(128, 4, 3, 2)],
        "large": [DecodeVariant(64, 4, 7, 2), DecodeVariant(128, 8, 5, 1)],
    },
}


# Of float32, which is for comparing: the tables' tiles spill, and compile for most of a minute.
FLOAT32 = DecodeVariant(16, 4, 2, 2)


def kind(group: int, head_dim: int) -> str:
    """The kind of shape, by query heads per KV head and their size."""
    if group == 1:
        return "vector"
    if head_dim > 64:
        return "wide"
    return "large" if group > 32 else "small"


def unit_tokens(group: int) -> int:
    """Keys per unit of work, for all steps of a model."""
    return UNIT_TOKENS_LARGE_GROUP if group >= LARGE_GROUP else UNIT_TOKENS


def variant(capability: int, group: int, head_dim: int, bytes_per_number: int = 2) -> DecodeVariant:
    """The variant in use on a card of this compute capability, see `nearest`."""
    if bytes_per_number > 2:
        return FLOAT32
    return VARIANTS[nearest(VARIANTS, capability)][kind(group, head_dim)][0]
