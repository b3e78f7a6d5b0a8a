"""Launch parameters of prefill attention. Not measured yet: guesses, compiled for each card."""

from dataclasses import dataclass

from tiercel_kernels.tuning.cards import nearest

# Slices of fewer tokens pack all heads of a KV head into a tile; longer ones fill it with tokens of
# one head, whose keys then come from L2. By the slice's own length, never by its neighbours'.
PACK_BELOW = 64


@dataclass(frozen=True, slots=True)
class PrefillVariant:
    """block_m: queries per tile; block_n: keys per tile."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# By compute capability, then by head_dim; the first variant of a list is the one in use. Compiled
# with Triton 3.9 for sm_80, 4 warps hold no tile of 128 x 64: 40 to 80 bytes spilled.
# Of 3 stages, keys and values have one tile in flight, of 5 two (see tuning/decode_attention.py).
VARIANTS: dict[int, dict[int, list[PrefillVariant]]] = {
    75: {
        64: [PrefillVariant(64, 32, 8, 2)],
        128: [PrefillVariant(32, 32, 8, 2)],
    },
    80: {
        64: [PrefillVariant(128, 64, 8, 5), PrefillVariant(64, 64, 4, 3)],
        128: [PrefillVariant(128, 32, 8, 2), PrefillVariant(64, 32, 4, 3)],
    },
    86: {
        64: [PrefillVariant(128, 64, 8, 3), PrefillVariant(64, 64, 4, 2)],
        128: [PrefillVariant(128, 32, 8, 2), PrefillVariant(64, 32, 4, 2)],
    },
    90: {
        64: [PrefillVariant(128, 64, 4, 5), PrefillVariant(128, 128, 8, 3)],
        128: [PrefillVariant(128, 64, 8, 5), PrefillVariant(128, 128, 8, 2)],
    },
}


# Of float32, which is for comparing: the tables' tiles spill, and compile for a minute.
FLOAT32 = PrefillVariant(16, 16, 4, 2)


def variant(capability: int, head_dim: int, bytes_per_number: int = 2) -> PrefillVariant:
    """The variant in use on a card of this compute capability, see `nearest`."""
    if bytes_per_number > 2:
        return FLOAT32
    return VARIANTS[nearest(VARIANTS, capability)][64 if head_dim <= 64 else 128][0]
