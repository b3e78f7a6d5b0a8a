"""Cutting decoding rows into units: every key once, and little padding however skewed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tiercel.attention.backend import StepGeometry
from tiercel.attention.units import MERGE_COST, UNIT_COST, UNIT_TOKENS, cut, key_mask, unit_blocks

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
def test_the_longest_row_does_not_pad_the_others(contexts: list[int]) -> None:
    """Work stays within a small factor of the keys there are, plus a constant."""
    lengths = np.array(contexts, dtype=np.int64)
    units = cut(lengths, BLOCK, 1, 1)
    work = len(units.row) * units.tokens
    smallest = min(UNIT_TOKENS)
    assert work <= sum(contexts) + len(contexts) * (smallest + UNIT_COST) * 2 + MERGE_COST + 128


@given(CONTEXTS)
def test_unit_blocks_are_the_rows_blocks_in_order(contexts: list[int]) -> None:
    lengths = np.array(contexts, dtype=np.int64)
    units = cut(lengths, BLOCK, 1, 2)
    width = -(-3000 // BLOCK) + max(UNIT_TOKENS) // BLOCK
    tables = np.arange(len(contexts) * width).reshape(len(contexts), width)
    geometry = StepGeometry(lengths - 1, np.ones_like(lengths), tables, len(contexts), 0)
    blocks = unit_blocks(units, geometry, BLOCK).reshape(len(units.row), -1)
    for row, context in enumerate(contexts):
        own = blocks[units.row == row].reshape(-1)
        held = -(-context // BLOCK)
        assert own[:held].tolist() == tables[row, :held].tolist()


def test_one_long_row_is_cut_where_cores_would_be_idle() -> None:
    long = np.array([3000], dtype=np.int64)
    assert cut(long, BLOCK, 1, 1).pieces == 1
    assert cut(long, BLOCK, 1, 4).pieces > 1
    assert cut(long, BLOCK, 8, 4).pieces == 1
