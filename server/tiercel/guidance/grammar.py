"""Grammar: the protocol of what constrains one sequence, and the null object that allows any text.

No library here: what is behind the protocol is `constraints.py`.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.int32]  # [ceil(vocab / 32)]; bit i of word w is token 32 w + i


class GrammarError(ValueError):
    """A grammar that is not valid or costs too much, or one that cannot go on. A sentence."""


class Grammar(Protocol):
    """The state of one sequence under its grammar. Used by one thread at a time."""

    def advance(self, token_id: int) -> None:
        """Take in the token that was chosen. Raises GrammarError if the grammar forbids it."""
        ...

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens. Raises GrammarError if there were not so many."""
        ...

    def fill_mask(self, words: Words) -> None:
        """Set the bits of the tokens that may come next and clear all others.

        Once the text is complete only the end-of-sequence tokens are set. Raises GrammarError.
        """
        ...


class AnyText:
    """The grammar of a sequence that has none."""

    def advance(self, token_id: int) -> None:
        """Every token is right."""

    def rollback(self, count: int) -> None:
        """Nothing is remembered."""

    def fill_mask(self, words: Words) -> None:
        """Every token may come next."""
        words.fill(-1)
