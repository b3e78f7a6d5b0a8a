"""Blocks are given out once, given back once, and found again by their content."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tiercel.cache.pool import Allocation, BlockPool, InvariantError, OutOfBlocks
from tiercel.cache.prefix import PrefixChain


def digests(count: int, salt: bytes = b"") -> list[bytes]:
    chain = PrefixChain(2, salt)
    chain.extend(list(range(2 * count)), count)
    return chain.digests


def filled(pool: BlockPool, names: list[bytes]) -> Allocation:
    allocation = Allocation(pool)
    allocation.grow(len(names))
    for index, name in enumerate(names):
        allocation.publish(index, name)
    return allocation


def test_grow_takes_exactly_what_is_free_and_nothing_on_failure() -> None:
    pool = BlockPool(3, 2)
    allocation = Allocation(pool)
    assert sorted(allocation.grow(2)) == [0, 1]
    with pytest.raises(OutOfBlocks, match="2 blocks are needed and 1 are free"):
        allocation.grow(2)
    assert pool.free_blocks == 1
    allocation.grow(1)
    assert pool.free_blocks == 0
    pool.check_integrity([allocation.blocks])


def test_release_happens_once() -> None:
    pool = BlockPool(3, 2)
    allocation = Allocation(pool)
    allocation.grow(2)
    allocation.release()
    assert pool.free_blocks == 3
    with pytest.raises(InvariantError, match="after its release"):
        allocation.release()
    with pytest.raises(InvariantError, match="after its release"):
        allocation.grow(1)
    assert pool.free_blocks == 3


def test_content_is_found_while_held_and_after_release_until_reused() -> None:
    pool = BlockPool(3, 2)
    names = digests(2)
    first = filled(pool, names)
    assert pool.match(names, 0, 2) == first.blocks
    assert pool.cached_blocks == 0
    kept = list(first.blocks)
    first.release()
    assert (pool.free_blocks, pool.cached_blocks) == (3, 2)
    second = Allocation(pool)
    assert pool.count_free(kept) == 2
    second.share(pool.match(names, 0, 2))
    assert second.blocks == kept
    assert (pool.free_blocks, pool.cached_blocks) == (1, 0)
    second.release()
    third = Allocation(pool)
    third.grow(3)
    assert pool.match(names, 0, 2) == []


def test_shared_blocks_stay_until_the_last_holder_leaves() -> None:
    pool = BlockPool(2, 2)
    names = digests(2)
    first = filled(pool, names)
    second = Allocation(pool)
    second.share(pool.match(names, 0, 2))
    first.release()
    assert pool.free_blocks == 0
    pool.check_integrity([second.blocks])
    second.release()
    assert pool.free_blocks == 2


def test_blank_blocks_go_first_then_the_longest_free_and_tails_before_heads() -> None:
    pool = BlockPool(5, 2)
    older, newer = digests(2, b"older"), digests(2, b"newer")
    first, second = filled(pool, older), filled(pool, newer)
    first.release()
    second.release()
    taker = Allocation(pool)
    taker.grow(1)
    assert pool.cached_blocks == 4
    taker.grow(1)
    assert (len(pool.match(older, 0, 2)), len(pool.match(newer, 0, 2))) == (1, 2)
    taker.grow(1)
    assert (len(pool.match(older, 0, 2)), len(pool.match(newer, 0, 2))) == (0, 2)


def test_content_computed_twice_is_kept_once_and_no_block_is_lost() -> None:
    pool = BlockPool(4, 2)
    names = digests(2)
    first = filled(pool, names)
    second = Allocation(pool)
    second.grow(2)
    assert not second.publish(0, names[0])
    assert pool.match(names, 0, 2) == first.blocks
    pool.check_integrity([first.blocks, second.blocks])
    second.release()
    first.release()
    assert (pool.free_blocks, pool.cached_blocks) == (4, 2)
    pool.check_integrity([])


def test_a_match_ends_at_the_first_gap() -> None:
    pool = BlockPool(4, 2)
    names = digests(3)
    allocation = Allocation(pool)
    allocation.grow(3)
    allocation.publish(0, names[0])
    allocation.publish(2, names[2])
    assert pool.match(names, 0, 3) == allocation.blocks[:1]
    assert pool.match(names, 2, 3) == allocation.blocks[2:]


@pytest.mark.parametrize("damage", ["lost", "twice", "count", "index"])
def test_check_integrity_names_the_block(damage: str) -> None:
    pool = BlockPool(4, 2)
    held = filled(pool, digests(2))
    if damage == "lost":
        pool._blank.remove(3)
    elif damage == "twice":
        pool._blank.append(3)
    elif damage == "count":
        pool._holders[3] = 1
    else:
        pool._found[digests(1)[0]] = 3
    block = 0 if damage == "index" else 3
    with pytest.raises(InvariantError, match=f"block {block} "):
        pool.check_integrity([held.blocks])


def test_salts_separate_tenants_and_order_matters() -> None:
    assert digests(3, b"a") == digests(3, b"a")
    assert not set(digests(3, b"a")) & set(digests(3, b"b"))
    swapped = PrefixChain(2, b"a")
    swapped.extend([2, 3, 0, 1, 4, 5], 3)
    assert not set(swapped.digests) & set(digests(3, b"a"))


def test_hashing_in_pieces_gives_the_same_chain_and_never_rereads() -> None:
    whole = PrefixChain(4, b"")
    tokens = list(range(40))
    whole.extend(tokens, 10)
    pieces = PrefixChain(4, b"")
    for blocks in (1, 3, 3, 7, 10):
        pieces.extend([-1] * (4 * len(pieces.digests)) + tokens[4 * len(pieces.digests) :], blocks)
    assert pieces.digests == whole.digests


class PoolMachine(RuleBasedStateMachine):
    """Allocations that come, share, publish and go, against plain sets."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(8, 2)
        self.live: list[Allocation] = []
        self.contents: dict[int, list[int]] = {}  # what blocks were last remembered for
        self.names = [digests(4, bytes([tenant])) for tenant in range(2)]

    @rule(tenant=st.integers(0, 1), more=st.integers(0, 4))
    def arrive(self, tenant: int, more: int) -> None:
        hits = self.pool.match(self.names[tenant], 0, 4)
        if self.pool.count_free(hits) + more > self.pool.free_blocks:
            return
        allocation = Allocation(self.pool)
        free = self.pool.free_blocks
        taken = self.pool.count_free(hits)
        allocation.share(hits)
        allocation.grow(more)
        assert self.pool.free_blocks == free - taken - more
        for index in range(len(hits), min(4, len(allocation.blocks))):
            allocation.publish(index, self.names[tenant][index])
        self.live.append(allocation)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.live.pop(data.draw(st.integers(0, len(self.live) - 1))).release()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=st.integers(1, 8))
    def grow(self, data: st.DataObject, more: int) -> None:
        allocation = self.live[data.draw(st.integers(0, len(self.live) - 1))]
        held = {block for other in self.live for block in other.blocks}
        if more > self.pool.free_blocks:
            with pytest.raises(OutOfBlocks):
                allocation.grow(more)
        else:
            assert not held & set(allocation.grow(more))

    @precondition(lambda self: any(each.blocks for each in self.live))
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 2), min_size=1, max_size=2))
    def remember(self, data: st.DataObject, tokens: list[int]) -> None:
        """Some live block turns out to begin with these tokens; what is found begins so too."""
        allocation = data.draw(st.sampled_from([each for each in self.live if each.blocks]))
        number = data.draw(st.integers(0, len(allocation.blocks) - 1))
        block = allocation.blocks[number]
        allocation.remember(number, b"parent", tokens)
        self.contents[block] = tokens
        found, count = self.pool.match_partial(b"parent", tokens)
        assert count == len(tokens)
        assert self.contents[found][:count] == tokens

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity([allocation.blocks for allocation in self.live])
        held = {block for allocation in self.live for block in allocation.blocks}
        assert self.pool.free_blocks == 8 - len(held)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
