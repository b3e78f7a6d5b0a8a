"""The pool of KV blocks, the allocations that own them, and the index of reusable content.

A block is blank (no content anyone can find), evictable (free, content still findable) or held by
one or more allocations. It owns numbers only: the memory behind them is the worker's.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable

from tiercel.cache.partial import PartialIndex


class OutOfBlocks(Exception):
    """More blocks were asked for than are free."""


class InvariantError(AssertionError):
    """The bookkeeping contradicts itself: a bug of ours. The text names the block or the row."""


class BlockPool:
    """`num_blocks` blocks of `block_tokens` token slots each, numbered from 0.

    Free blocks are reused blank ones first, then the evictable one that was freed longest ago.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(
                f"a pool needs at least one block of one token, not {num_blocks} of {block_tokens}"
            )
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._holders = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._found: dict[bytes, int] = {}  # digest of every published block, held or free
        self._partial = PartialIndex()
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()  # longest free first

    @property
    def free_blocks(self) -> int:
        """Blocks nobody holds: blank or evictable."""
        return len(self._blank) + len(self._evictable)

    @property
    def cached_blocks(self) -> int:
        """Free blocks whose content a lookup can still find."""
        return len(self._evictable)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    def match(self, digests: list[bytes], first: int, limit: int) -> list[int]:
        """Blocks that hold `digests[first:limit]`, up to the first one that is not there.

        Takes nothing: pass them to `Allocation.share` before anything else is allocated.
        """
        blocks: list[int] = []
        for index in range(first, limit):
            block = self._found.get(digests[index])
            if block is None:
                break
            blocks.append(block)
        return blocks

    def match_partial(self, parent: bytes, token_ids: list[int]) -> tuple[int, int]:
        """A block whose first tokens are the first of `token_ids`, and how many; 0: none.

        `parent`: the digest of all tokens before them. The block may be held and written to behind
        those tokens, so they can only be copied: before the step that this is for writes anything.
        """
        block, count = self._partial.find(parent, token_ids)
        if block in self._evictable:
            self._evictable.move_to_end(block)
        return block, count

    def count_free(self, blocks: list[int]) -> int:
        """How many of `blocks` are free now, so that sharing them makes `free_blocks` smaller."""
        return sum(1 for block in blocks if self._holders[block] == 0)

    def _share(self, block: int) -> None:
        if self._digests[block] is None:
            raise InvariantError(f"block {block} has no content to share")
        if self._holders[block] == 0:
            del self._evictable[block]
        self._holders[block] += 1

    def _take(self, count: int) -> list[int]:
        if count > self.free_blocks:
            raise OutOfBlocks(f"{count} blocks are needed and {self.free_blocks} are free")
        taken = []
        for _ in range(count):
            if self._blank:
                block = self._blank.pop()
            else:
                block, _unused = self._evictable.popitem(last=False)
                self._forget(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        if digest is None:
            if block not in self._partial:
                raise InvariantError(f"block {block} is evictable but cannot be found")
        elif self._found.pop(digest, None) != block:
            raise InvariantError(f"block {block} is evictable but leads to another block")
        self._partial.discard(block)
        self._digests[block] = None

    def _give_back(self, blocks: list[int]) -> None:
        # The tail goes first: it is evicted first, and a prefix without its head is never found.
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] < 0:
                raise InvariantError(f"block {block} was given back once too often")
            if self._holders[block] == 0:
                if self._findable(block):
                    self._evictable[block] = None
                else:
                    self._blank.append(block)

    def _publish(self, block: int, digest: bytes) -> bool:
        if self._holders[block] == 0 or self._digests[block] is not None:
            raise InvariantError(f"block {block} is free or has been published before")
        if digest in self._found:
            self._partial.discard(block)  # the other one has all that this one has
            return False
        self._found[digest] = block
        self._digests[block] = digest
        return True

    def _remember(self, block: int, parent: bytes, token_ids: list[int]) -> None:
        if self._holders[block] == 0 or not 0 < len(token_ids) <= self.block_tokens:
            raise InvariantError(f"block {block} is free or cannot hold {len(token_ids)} tokens")
        for other in self._partial.add(block, parent, token_ids):
            if other in self._evictable and not self._findable(other):
                del self._evictable[other]
                self._blank.append(other)

    def _findable(self, block: int) -> bool:
        return self._digests[block] is not None or block in self._partial

    def check_integrity(self, tables: Iterable[list[int]]) -> None:
        """Compare the pool with `tables`, the blocks of every live allocation.

        Raises InvariantError that names the first block lost, held twice or filed wrongly.
        """
        held = Counter(block for table in tables for block in table)
        blank = Counter(self._blank)
        for block in range(self.num_blocks):
            digest = self._digests[block]
            if self._holders[block] != held[block]:
                raise InvariantError(
                    f"block {block} counts {self._holders[block]} holders and has {held[block]}"
                )
            places = (held[block] > 0) + blank[block] + (block in self._evictable)
            if places == 0:
                raise InvariantError(f"block {block} is lost: neither held nor free")
            if places > 1:
                raise InvariantError(f"block {block} is filed {places} times")
            findable = self._findable(block)
            if (blank[block] and findable) or (block in self._evictable and not findable):
                raise InvariantError(f"block {block} is free in the wrong list")
            if digest is not None and self._found.get(digest) != block:
                raise InvariantError(f"block {block} has content that leads to another block")
        if len(self._found) != sum(digest is not None for digest in self._digests):
            raise InvariantError("the index of content names a block that has none")
        wrong = self._partial.contradiction()
        if wrong is not None:
            raise InvariantError(f"block {wrong} is remembered for tokens it cannot be found by")


class Allocation:
    """The block table of one sequence. Owns its blocks until `release`, which happens once."""

    __slots__ = ("_pool", "_released", "blocks")

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._released = False
        self.blocks: list[int] = []  # in token order; read it, never change it

    def share(self, blocks: list[int]) -> None:
        """Append full blocks found by `BlockPool.match`. They must never be written to."""
        self._require_live()
        for block in blocks:
            self._pool._share(block)
            self.blocks.append(block)

    def grow(self, count: int) -> list[int]:
        """Append `count` blocks that nobody else holds and return them.

        Raises OutOfBlocks, and then nothing has changed.
        """
        self._require_live()
        taken = self._pool._take(count)
        self.blocks += taken
        return taken

    def publish(self, index: int, digest: bytes) -> bool:
        """Make the full block at `index` findable under `digest`; it is read-only from now on.

        False where another block already has that content: this one stays private.
        """
        self._require_live()
        return self._pool._publish(self.blocks[index], digest)

    def remember(self, index: int, parent: bytes, token_ids: list[int]) -> None:
        """The block at `index` begins with `token_ids`, whose keys and values are computed.

        `parent` is the digest of all tokens before the block. They can be copied from now on, so
        they must not be written again; the rest of the block may be.
        """
        self._require_live()
        self._pool._remember(self.blocks[index], parent, token_ids)

    def release(self) -> None:
        """Give every block back. Raises InvariantError the second time."""
        self._require_live()
        self._released = True
        self._pool._give_back(self.blocks)
        self.blocks = []

    def _require_live(self) -> None:
        if self._released:
            raise InvariantError("an allocation was used after its release")
