"""Counter-based random numbers: Philox-4x32-10, keyed by (seed, position) and nothing else.

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def key_schedule(seed: int) -> UInt64Array:
    """The round keys of an unsigned 64-bit seed: [10, 2], 32-bit words."""
    key = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], dtype=np.uint64)
    return (key + np.arange(_ROUNDS, dtype=np.uint64)[:, None] * _WEYL) & _MASK


def philox(counters: UInt64Array, schedules: UInt64Array) -> UInt64Array:
    """Random words: [4, n], 32 bits each, of 32-bit counter words [4, n] and keys [10, 2, n]."""
    even, odd = counters[[0, 2]], counters[[1, 3]]
    for keys in schedules:
        product = even * _MULTIPLIERS
        # Word 0 takes the high half of word 2's product and the other way round.
        even = (product >> _SHIFT)[::-1] ^ odd ^ keys
        odd = (product & _MASK)[::-1]
    return np.stack([even[0], odd[0], even[1], odd[1]])


def random_words(schedules: UInt64Array, positions: list[int], count: int) -> UInt64Array:
    """`count` words of 32 random bits per (seed, position): [n, count].

    `schedules` is [10, 2, n], see `key_schedule`. Counter words 0 and 1 are the position, word 2
    numbers the blocks of four. Word 3 stays zero: another kind of draw must set it.
    """
    rows, blocks = len(positions), -(-count // 4)
    position = np.array(positions, dtype=np.uint64)
    counters = np.zeros((4, rows, blocks), dtype=np.uint64)
    counters[0] = (position & _MASK)[:, None]
    counters[1] = (position >> _SHIFT)[:, None]
    counters[2] = np.arange(blocks, dtype=np.uint64)
    words = philox(counters.reshape(4, -1), np.repeat(schedules, blocks, axis=-1))
    return words.reshape(4, rows, blocks).transpose(1, 2, 0).reshape(rows, -1)[:, :count]
