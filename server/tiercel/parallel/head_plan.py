"""HeadPlan: which query and KV heads a rank has. A pure function of three numbers; torch-free."""

from dataclasses import dataclass

from tiercel.errors import ConfigError

MOST_RANKS = 64
PADDING = -1  # a head of zeros: it adds nothing to the output projection's sum


@dataclass(frozen=True)
class HeadPlan:
    """Heads by rank, as numbers of the model's own, in the order in which the rank computes them.

    Every rank has as many heads as the others, and each of its KV heads serves as many consecutive
    ones of its query heads. Falcon-7B's 71 query heads become 72 for 2, 4 or 8 ranks, with its one
    KV head on each; Falcon-40B's 8 KV heads are dealt out with the 16 query heads of each.
    """

    query: tuple[tuple[int, ...], ...]  # PADDING where a rank has a head too many
    kv: tuple[tuple[int, ...], ...]

    @property
    def ranks(self) -> int:
        return len(self.query)

    @property
    def heads(self) -> int:
        """Query heads of one rank, padding included."""
        return len(self.query[0])

    @property
    def kv_heads(self) -> int:
        """KV heads of one rank."""
        return len(self.kv[0])

    @classmethod
    def of(cls, heads: int, kv_heads: int, ranks: int) -> "HeadPlan":
        """Raises ConfigError, with the numbers there can be, for ranks that cannot be dealt to."""
        if not _fits(heads, kv_heads, ranks):
            raise ConfigError(
                f"--num-shard {ranks} does not deal {heads} query heads and {kv_heads} KV heads "
                f"out evenly; it can be {', '.join(map(str, legal_ranks(heads, kv_heads)))}"
            )
        group = heads // kv_heads
        if ranks <= kv_heads:  # whole groups
            each_has = kv_heads // ranks
            kv = [tuple(range(rank * each_has, (rank + 1) * each_has)) for rank in range(ranks)]
            query = [tuple(range(each[0] * group, (each[-1] + 1) * group)) for each in kv]
            return cls(tuple(query), tuple(kv))
        sharing = ranks // kv_heads  # ranks that have the same KV head, and a part of its group
        query = []
        for rank in range(ranks):
            before, place = rank // sharing * group, rank % sharing
            first, last = _share(group, place, sharing)
            mine = tuple(range(before + first, before + last))
            query.append(mine + (PADDING,) * (-(-group // sharing) - len(mine)))
        return cls(tuple(query), tuple((rank // sharing,) for rank in range(ranks)))


def _share(size: int, place: int, places: int) -> tuple[int, int]:
    """First and last (exclusive) of `size` dealt to places that differ by one at most."""
    least, more = divmod(size, places)
    first = place * least + min(place, more)
    return first, first + least + (place < more)


def legal_ranks(heads: int, kv_heads: int) -> list[int]:
    """The numbers of ranks that the heads can be dealt to."""
    return [ranks for ranks in range(1, MOST_RANKS + 1) if _fits(heads, kv_heads, ranks)]


def _fits(heads: int, kv_heads: int, ranks: int) -> bool:
    """Whether all ranks get as much, and each of them at least one head that is not padding."""
    if not 1 <= ranks <= MOST_RANKS:
        return False
    return kv_heads % ranks == 0 or (ranks % kv_heads == 0 and ranks <= heads)
