"""What a way to break a checkpoint folder is. The cases are in corrupt.py and wrong_config.py."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Break = Callable[[Path], None]


@dataclass(frozen=True)
class Corruption:
    """One case: `apply` breaks the folder, the error's line must hold every one of `says`.

    The good folder is a "7b" of `make_checkpoint` with this number of shards.
    """

    name: str
    apply: Break
    says: tuple[str, ...]
    shards: int = 1

    def __str__(self) -> str:
        return self.name
