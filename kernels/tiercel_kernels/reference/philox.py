"""Counter-based random numbers, Philox-4x32-10, keyed by (seed, position) and nothing else.

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import torch

_WORD = 0xFFFFFFFF


def noise(seed: int, position: int, count: int) -> torch.Tensor:
    """Gumbel noise: float64 [count]. seed: 64 bits, signed or not.

    Counter words 0 and 1 are the position, word 2 numbers the blocks of four, word 3 is zero.
    """
    words: list[int] = []
    for block in range(-(-count // 4)):
        words += philox([position & _WORD, position >> 32 & _WORD, block, 0], seed)
    uniform = (torch.tensor(words[:count], dtype=torch.float64) + 0.5) * 2.0**-32  # never 0 or 1
    return -torch.log(-torch.log(uniform))


def philox(counter: list[int], seed: int) -> list[int]:
    """Four random 32-bit words of a counter of four words and a 64-bit seed."""
    keys = [seed & _WORD, seed >> 32 & _WORD]
    c0, c1, c2, c3 = counter
    for _ in range(10):
        product0, product2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = product2 >> 32 ^ c1 ^ keys[0], product0 >> 32 ^ c3 ^ keys[1]
        c1, c3 = product2 & _WORD, product0 & _WORD
        keys = [keys[0] + 0x9E3779B9 & _WORD, keys[1] + 0xBB67AE85 & _WORD]
    return [c0, c1, c2, c3]
