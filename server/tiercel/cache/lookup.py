"""What the cache already holds of a sequence: full blocks to share, part of one more to copy."""

from dataclasses import dataclass

from tiercel.cache.pool import BlockPool
from tiercel.cache.prefix import PrefixChain

NO_BLOCK = -1


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Cached tokens from a block boundary on. Holds nothing: use it before anything is allocated.

    A full block is never written again, so it is shared, however many hold it. Behind the last one
    the next tokens are copied into a block of the sequence's own, because it will write the rest:
    so a repeated prompt computes one token, its last, whoever else is using the original.
    """

    blocks: list[int]
    tokens: int  # in `blocks`, and the ones to copy
    source: int = NO_BLOCK  # begins with the tokens behind `blocks`


NO_MATCH = PrefixMatch([], 0)


def find_prefix(
    pool: BlockPool, chain: PrefixChain, token_ids: list[int], first: int
) -> PrefixMatch:
    """What is cached of `token_ids` from block `first` on.

    The last token is never among it: it has to be computed for the token after it.
    """
    size, usable = pool.block_tokens, len(token_ids) - 1
    limit = usable // size
    chain.extend(token_ids, limit)
    blocks = pool.match(chain.digests, first, limit)
    index = first + len(blocks)
    rest = token_ids[index * size : min((index + 1) * size, usable)]
    source, copied = pool.match_partial(chain.before(index), rest)
    if not copied:
        return PrefixMatch(blocks, len(blocks) * size) if blocks else NO_MATCH
    return PrefixMatch(blocks, len(blocks) * size + copied, source)
