"""Blocks by what they begin with: how a sequence finds the part of a block that it can copy.

It knows the content of blocks, full or not, that came after a given prefix. Which of them are free
or held is the pool's business.
"""

from collections.abc import Sequence

MAX_CHOICES = 8  # blocks remembered per prefix and next token; beyond that the oldest is dropped


class PartialIndex:
    """At most one entry per block: the digest of all tokens before it, and the tokens in it.

    All tuples: the garbage collector stops looking at those, and there is one for every block.
    """

    def __init__(self) -> None:
        self._choices: dict[tuple[bytes, int], tuple[int, ...]] = {}  # oldest first
        self._content: dict[int, tuple[bytes, tuple[int, ...]]] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._content

    def count(self, block: int) -> int:
        """How many tokens the block is known to begin with."""
        return len(self._content[block][1]) if block in self._content else 0

    def find(self, parent: bytes, token_ids: Sequence[int]) -> tuple[int, int]:
        """The block after `parent` that shares most of the first `token_ids`, and how many.

        The count is 0 where there is none.
        """
        best, most = -1, 0
        if token_ids:
            for block in self._choices.get((parent, token_ids[0]), ()):
                shared = _common(self._content[block][1], token_ids)
                if shared > most:
                    best, most = block, shared
        return best, most

    def add(self, block: int, parent: bytes, token_ids: Sequence[int]) -> list[int]:
        """The block begins with `token_ids`, at least one, after the prefix named `parent`.

        What it was known for before is replaced. Content is kept once: a block that begins with
        the same tokens and more makes this one superfluous, and this one those with less. Returns
        the other blocks that were dropped.
        """
        if block in self._content:
            self.discard(block)
        tokens = tuple(token_ids)
        key = (parent, tokens[0])
        dropped = self._superfluous(self._choices.get(key, ()), tokens)
        if dropped is None:
            return []
        for other in dropped:
            self.discard(other)
        self._choices[key] = (*self._choices.get(key, ()), block)
        self._content[block] = (parent, tokens)
        return dropped

    def _superfluous(self, choices: tuple[int, ...], tokens: tuple[int, ...]) -> list[int] | None:
        """Which of `choices` go when `tokens` come; None where one of them has all of those."""
        dropped = []
        for other in choices:
            known = self._content[other][1]
            if known[: len(tokens)] == tokens:
                return None
            if tokens[: len(known)] == known:
                dropped.append(other)
        if len(choices) - len(dropped) >= MAX_CHOICES:
            dropped.append(next(other for other in choices if other not in dropped))
        return dropped

    def discard(self, block: int) -> None:
        """Forget the block, if it is known."""
        entry = self._content.pop(block, None)
        if entry is None:
            return
        key = (entry[0], entry[1][0])
        left = tuple(other for other in self._choices[key] if other != block)
        if left:
            self._choices[key] = left
        else:
            del self._choices[key]

    def contradiction(self) -> int | None:
        """A block whose entry and place do not belong together; None when all is well."""
        placed = [block for choices in self._choices.values() for block in choices]
        if len(placed) != len(self._content):
            return max(set(placed) ^ set(self._content), default=placed[0] if placed else -1)
        for block, (parent, token_ids) in self._content.items():
            if block not in self._choices.get((parent, token_ids[0]), ()):
                return block
        return None


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of their common beginning."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
