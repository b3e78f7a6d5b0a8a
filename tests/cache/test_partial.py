"""Blocks are found by what they begin with, each content once, and forgotten when they go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.cache.lookup import NO_BLOCK, find_prefix
from tiercel.cache.partial import MAX_CHOICES, PartialIndex
from tiercel.cache.pool import Allocation, BlockPool, InvariantError
from tiercel.cache.prefix import PrefixChain

A, B = b"a", b"b"


def index(*entries: list[int]) -> PartialIndex:
    made = PartialIndex()
    for block, tokens in enumerate(entries):
        made.add(block, A, tokens)
    return made


def test_the_longest_common_beginning_wins() -> None:
    made = index([1, 2, 9], [1, 2, 3, 4], [1, 5])
    assert made.find(A, [1, 2, 3, 7]) == (1, 3)
    assert made.find(A, [1, 5, 5]) == (2, 2)
    assert made.find(A, [1]) in ((0, 1), (1, 1), (2, 1))
    for parent, tokens in ((A, [2, 1]), (B, [1, 2]), (A, [])):
        assert made.find(parent, tokens)[1] == 0


def test_content_is_kept_once_and_the_longer_one_stays() -> None:
    made = index([1, 2])
    assert made.add(1, A, [1, 2, 3]) == [0]
    assert made.add(2, A, [1]) == []
    assert [block in made for block in range(3)] == [False, True, False]
    assert made.add(1, A, [1, 2, 3, 4]) == []
    assert (made.count(1), made.count(0)) == (4, 0)
    assert made.add(1, B, [7]) == []
    assert made.find(A, [1, 2])[1] == 0


def test_choices_after_one_prefix_are_bounded() -> None:
    made = PartialIndex()
    dropped = [made.add(block, A, [0, block]) for block in range(MAX_CHOICES + 2)]
    assert dropped == [[]] * MAX_CHOICES + [[0], [1]]
    assert made.find(A, [0, 1]) != (1, 2)


@given(st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 1), max_size=4)), max_size=40))
def test_it_answers_like_a_list_of_all_that_is_known(steps: list[tuple[int, list[int]]]) -> None:
    made = PartialIndex()
    for block, tokens in steps:
        if tokens:
            made.add(block, A, tokens)
        else:
            made.discard(block)
        assert made.contradiction() is None
        for other in range(6):
            known = made._content.get(other, (A, ()))[1]
            assert made.count(other) == len(known)
            for count in range(1, len(known) + 1):
                best, found = made.find(A, known[:count])
                assert found == count
                assert made._content[best][1][:count] == known[:count]


def chain(tokens: list[int], salt: bytes = b"") -> PrefixChain:
    made = PrefixChain(4, salt)
    made.extend(tokens, len(tokens) // 4)
    return made


def kept(pool: BlockPool, tokens: list[int]) -> list[int]:
    """The blocks of a sequence that has computed these tokens and ended."""
    names, allocation = chain(tokens), Allocation(pool)
    blocks = allocation.grow(pool.blocks_for(len(tokens)))
    for number in range(len(blocks)):
        if number < len(names.digests):
            allocation.publish(number, names.digests[number])
        allocation.remember(number, names.before(number), tokens[4 * number : 4 * number + 4])
    allocation.release()
    return blocks


@pytest.mark.parametrize(("length", "shared"), [(1, 0), (4, 3), (5, 4), (8, 7), (9, 8), (11, 10)])
def test_all_but_the_last_token_is_found(length: int, shared: int) -> None:
    pool, tokens = BlockPool(8, 4), list(range(20, 31))
    blocks = kept(pool, tokens)
    found = find_prefix(pool, chain([]), tokens[:length], 0)
    assert (found.blocks, found.tokens) == (blocks[: shared // 4], shared)
    assert found.source == (blocks[shared // 4] if shared % 4 else NO_BLOCK)
    assert find_prefix(pool, chain([], b"other"), tokens[:length], 0).tokens == 0


def test_a_remembered_block_is_evictable_and_forgotten_when_it_is_taken() -> None:
    pool, tokens = BlockPool(3, 4), [1, 2, 3]
    kept(pool, tokens)
    assert (pool.free_blocks, pool.cached_blocks) == (3, 1)
    taker = Allocation(pool)
    taker.grow(2)
    assert find_prefix(pool, chain([]), [*tokens, 4], 0).tokens == 3
    taker.grow(1)
    assert find_prefix(pool, chain([]), [*tokens, 4], 0).tokens == 0
    pool.check_integrity([taker.blocks])


def test_what_is_copied_is_evicted_last() -> None:
    pool = BlockPool(2, 4)
    kept(pool, [1, 2])
    kept(pool, [5, 6])
    assert find_prefix(pool, chain([]), [1, 2, 3], 0).tokens == 2
    Allocation(pool).grow(1)
    assert find_prefix(pool, chain([]), [1, 2, 3], 0).tokens == 2
    assert find_prefix(pool, chain([]), [5, 6, 3], 0).tokens == 0


def test_a_block_that_is_superfluous_becomes_blank() -> None:
    pool = BlockPool(4, 4)
    kept(pool, [1, 2])
    kept(pool, [1, 2, 3])
    assert pool.cached_blocks == 1
    pool.check_integrity([])


def test_remembering_what_cannot_be_is_refused() -> None:
    pool = BlockPool(2, 4)
    allocation = Allocation(pool)
    allocation.grow(1)
    for tokens in ([], [1, 2, 3, 4, 5]):
        with pytest.raises(InvariantError, match="cannot hold"):
            allocation.remember(0, b"", tokens)


def test_check_integrity_names_a_block_whose_entry_is_wrong() -> None:
    pool = BlockPool(2, 4)
    (block,) = kept(pool, [1, 2])
    pool._partial._choices.clear()
    with pytest.raises(InvariantError, match=f"block {block} "):
        pool.check_integrity([])
