"""Counter-based uniform numbers, Philox-4x32-10, keyed by (seed, position) and nothing else.

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import torch

_WORD = 0xFFFFFFFF


def uniforms(seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1), multiples of 2^-52: float64 [rows]. seed, position: int64 [rows].

    The counter is the position in words 0 and 1 and zero in the others; the draw is words 0 and 1
    of the result.
    """
    numbers = [
        _uniform(each_seed, each_position)
        for each_seed, each_position in zip(seed.tolist(), position.tolist(), strict=True)
    ]
    return torch.tensor(numbers, dtype=torch.float64, device=seed.device)


def _uniform(seed: int, position: int) -> float:
    words = philox([position & _WORD, position >> 32 & _WORD, 0, 0], seed)
    return ((words[0] << 32 | words[1]) >> 12) * 2.0**-52


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
