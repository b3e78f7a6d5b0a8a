"""Launch parameters of decode attention. Not measured yet: first guesses, all compiled for each card.

A variant is chosen by card and shape, never by batch, so that a row's bits stay the same.
"""

from dataclasses import dataclass

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
VARIANTS: dict[int, dict[str, list[DecodeVariant]]] = {
    80: {
        "vector": [DecodeVariant(64, 4, 2, 4), DecodeVariant(32, 2, 2, 8)],
        "small": [DecodeVariant(64, 4, 3, 3), DecodeVariant(128, 4, 2, 2)],
        "large": [DecodeVariant(64, 4, 3, 2), DecodeVariant(64, 8, 3, 1)],
    },
    86: {
        "vector": [DecodeVariant(64, 4, 2, 3), DecodeVariant(32, 2, 2, 6)],
        "small": [DecodeVariant(64, 4, 2, 2), DecodeVariant(32, 4, 3, 3)],
        "large": [DecodeVariant(32, 4, 3, 2), DecodeVariant(64, 8, 2, 1)],
    },
    90: {
        "vector": [DecodeVariant(64, 4, 2, 4), DecodeVariant(32, 2, 2, 8)],
        "small": [DecodeVariant(64, 4, 3, 4), DecodeVariant(128, 4, 3, 2)],
        "large": [DecodeVariant(64, 4, 3, 2), DecodeVariant(128, 8, 3, 1)],
    },
}


def kind(group: int) -> str:
    """The kind of shape by query heads per KV head."""
    if group == 1:
        return "vector"
    return "large" if group > 32 else "small"


def unit_tokens(group: int) -> int:
    """Keys per unit of work, for all steps of a model."""
    return UNIT_TOKENS_LARGE_GROUP if group >= LARGE_GROUP else UNIT_TOKENS


def variant(capability: int, group: int) -> DecodeVariant:
    """The variant in use on a card of this compute capability, or on the nearest below it."""
    known = max((each for each in VARIANTS if each <= capability), default=min(VARIANTS))
    return VARIANTS[known][kind(group)][0]
