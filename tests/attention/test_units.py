"""Cutting decoding rows into units: every key once, and little padding however skewed."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tiercel.attention.backend import StepGeometry
from tiercel.attention.units import (
    MERGE_COST,
    UNIT_COST,
    UNIT_TOKENS,
    cut,
    few_lengths,
    key_mask,
    unit_blocks,
)

BLOCK = 16
CONTEXTS = st.lists(st.integers(1, 3000), min_size=1, max_size=40)


@given(CONTEXTS, st.sampled_from([1, 8]), st.integers(1, 4))
def test_units_cover_every_key_exactly_once(contexts: list[int], tasks: int, threads: int) -> None:
    lengths = np.array(contexts, dtype=np.int64)
    units = cut(lengths, BLOCK, tasks, threads)
    visible = np.isfinite(key_mask(units, lengths))
    assert visible.any(axis=1).all()  # a unit without keys would be 0 / 0
    seen = np.zeros(len(lengths), dtype=np.int64)
    np.add.at(seen, units.row, visible.sum(axis=1))
    assert seen.tolist() == contexts
    assert units.tokens % BLOCK == 0
    assert units.pieces == np.bincount(units.row).max()


@given(CONTEXTS)
@example([257, 2561, 2561, 2561])  # more than the keys and a constant: 21 units of 512
def test_the_longest_row_does_not_pad_the_others(contexts: list[int]) -> None:
    """Cut into the smallest unit, a row is padded by less than one unit, however long another is.

    Anything else, no cut included, is chosen only where its cost is less (or below MERGE_COST,
    where cutting is not weighed), and what units cost is their keys and UNIT_COST each. So the cost
    of the smallest unit is the bound, while every core has a row.
    """
    lengths = np.array(contexts, dtype=np.int64)
    units = cut(lengths, BLOCK, 1, 1)
    smallest = min(UNIT_TOKENS)
    pieces = sum(-(-context // smallest) for context in contexts)
    work = len(units.row) * (units.tokens + UNIT_COST)
    assert work <= pieces * (smallest + UNIT_COST) + MERGE_COST


@given(CONTEXTS)
def test_unit_blocks_are_the_rows_blocks_in_order(contexts: list[int]) -> None:
    lengths = np.array(contexts, dtype=np.int64)
    units = cut(lengths, BLOCK, 1, 2)
    width = -(-3000 // BLOCK) + max(UNIT_TOKENS) // BLOCK
    tables = np.arange(len(contexts) * width).reshape(len(contexts), width)
    geometry = StepGeometry(lengths - 1, np.ones_like(lengths), tables, len(contexts), 0, 0)
    blocks = unit_blocks(units, geometry, BLOCK).reshape(len(units.row), -1)
    for row, context in enumerate(contexts):
        own = blocks[units.row == row].reshape(-1)
        held = -(-context // BLOCK)
        assert own[:held].tolist() == tables[row, :held].tolist()


def test_lengths_are_few_and_little_more_than_is_needed() -> None:
    lengths = [few_lengths(keys, BLOCK) for keys in range(1, 8193)]
    for keys, length in enumerate(lengths, start=1):
        assert keys <= length < keys + max(UNIT_TOKENS)
        assert length % BLOCK == 0
        assert length <= max(32 * -(-keys // 32), keys * 1.25)
    assert lengths == sorted(lengths)
    assert len(set(lengths)) < 50
    assert few_lengths(20, 128) == 128


def test_one_long_row_is_cut_where_cores_would_be_idle() -> None:
    long = np.array([3000], dtype=np.int64)
    assert cut(long, BLOCK, 1, 1).pieces == 1
    assert cut(long, BLOCK, 1, 4).pieces > 1
    assert cut(long, BLOCK, 8, 4).pieces == 1
