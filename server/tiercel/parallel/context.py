"""ParallelContext: the place of this process among the ranks that share one model."""

from dataclasses import dataclass
from typing import Protocol

import torch


class ParallelContext(Protocol):
    """What a model and its worker ask of the other ranks. All ranks make the same calls in turn."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def prepare(self, dtype: torch.dtype) -> None:
        """Before the model is there: its activations will have this type. Raises ConfigError."""
        ...

    def sum_branches(self, partial: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Branches whose sum is that of all `partial` of all ranks; may reuse their memory.

        Several ranks add up their own first, so that one all-reduce is enough.
        """
        ...

    def gather_columns(self, part: torch.Tensor, size: int) -> torch.Tensor | None:
        """part: [rows, share] of every rank -> [rows, size] on rank 0, None on the others."""
        ...

    def share(self, values: torch.Tensor) -> torch.Tensor:
        """Rank 0's `values`, in the memory of those given here: same shape and type everywhere."""
        ...

    def smallest(self, value: int) -> int:
        """The smallest `value` of all ranks; none goes on before all have asked."""
        ...

    def everyones(self, values: tuple[int, ...]) -> list[tuple[int, ...]]:
        """What every rank has given here, in their order; as many values on each."""
        ...

    def at_work(self) -> None:
        """A sign of life in long work without the others."""
        ...


@dataclass(frozen=True)
class OneRank:
    """A process that has its model to itself: what it would ask of others, it has."""

    rank: int = 0
    size: int = 1

    def prepare(self, dtype: torch.dtype) -> None:
        pass

    def sum_branches(self, partial: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return partial

    def gather_columns(self, part: torch.Tensor, size: int) -> torch.Tensor:
        return part

    def share(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def smallest(self, value: int) -> int:
        return value

    def everyones(self, values: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [values]

    def at_work(self) -> None:
        pass
