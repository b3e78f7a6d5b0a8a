"""Which card's launch parameters a device gets: never those that want more shared memory."""

from collections.abc import Collection

import pytest

from tiercel_kernels.tuning import (
    decode_attention,
    int8_linear,
    nf4_linear,
    prefill_attention,
    qkv_rotary_cache,
    skinny_linear,
)
from tiercel_kernels.tuning.cards import SHARED_KIB, nearest, stand_in

TABLES: dict[str, Collection[int]] = {
    module.__name__.rpartition(".")[2]: module.VARIANTS
    for module in (
        decode_attention,
        int8_linear,
        nf4_linear,
        prefill_attention,
        qkv_rotary_cache,
        skinny_linear,
    )
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize(
    ("capability", "card"),
    [
        (75, 75),  # 64 KiB: nothing that is made for 163
        (80, 80),
        (86, 86),
        (87, 80),  # 163 KiB again
        (89, 86),
        (90, 90),
        (100, 90),
        (103, 90),
        (120, 86),  # newer than 90, with 99 KiB
        (121, 86),
    ],
)
def test_the_most_alike_of_those_with_no_more_shared_memory(
    table: Collection[int], capability: int, card: int
) -> None:
    assert nearest(table, capability) == card
    assert SHARED_KIB[card] <= SHARED_KIB[capability]


def test_every_known_card_gets_parameters() -> None:
    for capability in SHARED_KIB:
        for size in (2, 4):
            for group, head_dim in ((71, 64), (29, 64), (4, 128), (1, 64)):
                assert decode_attention.variant(capability, group, head_dim, size)
                assert prefill_attention.variant(capability, head_dim, size)
            for shape in ((4672, 4544), (4544, 18176), (100, 64)):
                for table in (int8_linear, nf4_linear, skinny_linear):
                    assert table.variant(capability, *shape, size).split_k >= 1
        assert qkv_rotary_cache.variant(capability).block_heads


@pytest.mark.parametrize(
    ("capability", "shared_kib", "known"),
    [
        (90, 227, 90),
        (86, 1, 86),  # what is known is not asked
        (88, 99, 86),
        (110, 227, 103),
        (130, 227, 103),
        (130, 99, 121),
        (130, 64, 75),
        (110, 100, 89),
    ],
)
def test_a_card_that_is_not_known_goes_as_one_that_is(
    capability: int, shared_kib: int, known: int
) -> None:
    assert stand_in(capability, shared_kib) == known
