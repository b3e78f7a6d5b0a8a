"""How a quantized weight is cut into parts that are dequantized one after the other."""

from collections.abc import Iterator

CHUNK_NUMBERS = 1 << 20


def chunk_rows(out: int, width: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of every part of a weight [out, width].

    All but the last part have a number of rows that `multiple` divides.
    """
    step = max(1, CHUNK_NUMBERS // width // multiple) * multiple
    for first in range(0, out, step):
        yield first, min(out, first + step)
