"""The random numbers: the published test vectors, and the statistics that sampling relies on."""

import numpy as np
import pytest

from tiercel.sampling.philox import key_schedule, philox, random_words

# From the Random123 distribution, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    (
        [0x00000000] * 4,
        0x0000000000000000,
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
    ),
    (
        [0xFFFFFFFF] * 4,
        0xFFFFFFFFFFFFFFFF,
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        0x299F31D0A4093822,
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter: list[int], key: int, words: list[int]) -> None:
    counters = np.array(counter, dtype=np.uint64)[:, None]
    assert philox(counters, key_schedule(key)[:, :, None])[:, 0].tolist() == words


def draws(seeds: list[int], positions: list[int]) -> np.ndarray:
    schedules = np.stack([key_schedule(seed) for seed in seeds], axis=-1)
    return random_words(schedules, positions, 6)[:, 5] * 2.0**-32


def test_a_draw_depends_on_its_seed_and_position_only() -> None:
    seeds, positions = [1, 2**64 - 1, 7, 2**40], [0, 5, 2**33, 5]
    together = draws(seeds, positions)
    alone = [draws([seed], [position])[0] for seed, position in zip(seeds, positions, strict=True)]
    assert together.tolist() == alone
    assert len(set(alone)) == 4


def test_seeds_and_positions_use_all_their_bits() -> None:
    assert len(set(draws([0, 1, 2**32, 2**63], [9] * 4).tolist())) == 4
    assert len(set(draws([3] * 4, [0, 1, 2**31, 2**32]).tolist())) == 4


def test_more_words_are_the_same_words_and_all_differ() -> None:
    schedules = key_schedule(3)[:, :, None]
    words = random_words(schedules, [2**33], 1_000)[0].tolist()
    assert random_words(schedules, [2**33], 7)[0].tolist() == words[:7]
    assert len(set(words)) > 990


@pytest.mark.parametrize("along", ["positions", "seeds"])
def test_uniform_and_independent_of_the_neighbour(along: str) -> None:
    """Chi-square of the numbers and of successive pairs, for consecutive positions and seeds."""
    n = 40_000
    if along == "positions":
        numbers = draws([42] * n, list(range(n)))
    else:
        numbers = draws(list(range(n)), [17] * n)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    singles = np.histogram(numbers, bins=100, range=(0, 1))[0]
    pairs = np.histogram2d(numbers[:-1:2], numbers[1::2], bins=10, range=((0, 1), (0, 1)))[0]
    # 99 degrees of freedom each: 148.2 is exceeded once in a thousand. The numbers are fixed.
    for counts in (singles, pairs.ravel()):
        expected = counts.sum() / 100
        assert float(((counts - expected) ** 2 / expected).sum()) < 148.2
