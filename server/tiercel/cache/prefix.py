"""Names for the content of full blocks: a chain of SHA-256 over token ids.

A block's digest covers every token before it, so equal digests mean equal keys and values.
"""

from array import array
from hashlib import sha256


class PrefixChain:
    """The digests of one sequence's full blocks, computed once each as the tokens become known."""

    __slots__ = ("_block_tokens", "_root", "digests")

    def __init__(self, block_tokens: int, salt: bytes) -> None:
        """`salt` separates tenants: chains with different salts never share a digest."""
        self._block_tokens = block_tokens
        self._root = sha256(b"tiercel prefix\0" + salt).digest()
        self.digests: list[bytes] = []

    def before(self, index: int) -> bytes:
        """The digest of all tokens before block `index`, which must have been hashed."""
        return self.digests[index - 1] if index else self._root

    def extend(self, token_ids: list[int], blocks: int) -> None:
        """Hash the blocks up to the first `blocks`; the ones already hashed are not looked at.

        `token_ids` are the sequence's tokens from position 0 on, and only ever grow.
        """
        size = self._block_tokens
        parent = self.digests[-1] if self.digests else self._root
        for index in range(len(self.digests), blocks):
            tokens = array("I", token_ids[index * size : (index + 1) * size])
            parent = sha256(parent + tokens.tobytes()).digest()
            self.digests.append(parent)
