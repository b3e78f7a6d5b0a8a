"""Part: the rows or columns of a tensor that a rank holds. Torch-free."""

from dataclasses import dataclass
from typing import NamedTuple


class Run(NamedTuple):
    """Indices [first, first + length), or `length` zeros where `first` is None."""

    first: int | None
    length: int


@dataclass(frozen=True)
class Part:
    """What a rank holds along one axis of a tensor, in its own order."""

    axis: int  # 0: rows, 1: columns
    runs: tuple[Run, ...]

    @property
    def size(self) -> int:
        return sum(run.length for run in self.runs)

    def indices(self) -> list[int]:
        """Every index, -1 for a zero."""
        places: list[int] = []
        for first, count in self.runs:
            places += [-1] * count if first is None else range(first, first + count)
        return places

    def cuts(self, block: int) -> bool:
        """Whether it begins, ends or goes on inside of a block of so many indices."""
        return any((first or 0) % block or count % block for first, count in self.runs)


def joined(axis: int, runs: list[Run]) -> Part:
    """A part of these runs; neighbours that follow each other become one."""
    merged: list[Run] = []
    for run in runs:
        if not run.length:
            continue
        last = merged[-1] if merged else None
        if last is not None and _follows(last, run):
            merged[-1] = Run(last.first, last.length + run.length)
        else:
            merged.append(run)
    return Part(axis, tuple(merged))


def even_part(axis: int, size: int, rank: int, ranks: int, unit: int = 1) -> Part:
    """The rank's share of `size` indices: all ranks have as many, the last ones filled with zeros.

    Of 10 indices three ranks have 4, 4 and 2 with two zeros. Shares are multiples of `unit`.
    """
    share = even_share(size, ranks, unit)
    first = min(rank * share, size)
    count = min(share, size - first)
    return joined(axis, [Run(first, count), Run(None, share - count)])


def even_share(size: int, ranks: int, unit: int = 1) -> int:
    """What each rank gets of `size` indices, zeros included."""
    return size if ranks == 1 else -(-size // (ranks * unit)) * unit


def _follows(last: Run, run: Run) -> bool:
    if last.first is None or run.first is None:
        return last.first is run.first
    return last.first + last.length == run.first
