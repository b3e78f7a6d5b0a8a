"""Gathering a step's tensors from rows, against the same thing written token by token."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiercel.attention.backend import StepGeometry
from tiercel.layers.inputs import chosen
from tiercel.wire.step import RowSlice
from tiercel.worker.inputs import gather, padded
from tiercel.worker.rows import Rows

BLOCK, ZERO_BLOCK, MAX_TOKENS, MAX_ROWS = 4, 1000, 64, 6


@dataclass
class SeenGeometry:
    """A backend that keeps what it is told."""

    geometry: StepGeometry | None = None
    positions: torch.Tensor | None = None

    def plan(self, geometry: StepGeometry, positions: torch.Tensor) -> Any:
        self.geometry, self.positions = geometry, positions
        return "the plan"


def filled(lengths: list[int]) -> Rows:
    """Row r holds tokens 100 r, 100 r + 1, ... and just enough blocks, from 10 r on, backwards."""
    rows = Rows(MAX_ROWS, MAX_TOKENS, BLOCK, ZERO_BLOCK)
    for row, length in enumerate(lengths):
        rows.start(row, list(range(100 * row, 100 * row + length)), 0)
        blocks = [20 * row + 19 - i for i in range(-(-length // BLOCK))]
        rows.add_blocks(row, blocks[:1])
        rows.add_blocks(row, blocks[1:])
    return rows


@given(
    st.lists(
        st.integers(1, MAX_TOKENS).flatmap(
            lambda end: st.tuples(st.just(end), st.integers(0, end - 1))
        ),
        min_size=1,
        max_size=MAX_ROWS,
    ),
    st.randoms(),
)
def test_gather_is_what_a_loop_over_tokens_would_give(
    ends_and_starts: list[tuple[int, int]], random: Any
) -> None:
    rows = filled([end for end, _ in ends_and_starts])
    slices = [
        RowSlice(row, start, end - start, [], random.random() < 0.5)
        for row, (end, start) in enumerate(ends_and_starts)
    ]
    random.shuffle(slices)
    backend = SeenGeometry()
    batch = gather(slices, rows, BLOCK, backend)
    inputs, positions = batch.inputs, backend.positions
    assert positions is not None

    ordered = sorted(slices, key=lambda each: each.count != 1)
    assert batch.slices == ordered
    expected = [
        (
            100 * each.row + position,
            position,
            (20 * each.row + 19 - position // 4) * 4 + position % 4,
        )
        for each in ordered
        for position in range(each.start, each.start + each.count)
    ]
    tokens = len(expected)
    assert inputs.tokens[:tokens].tolist() == [token for token, _, _ in expected]
    assert positions[:tokens].tolist() == [position for _, position, _ in expected]
    assert inputs.slots.tolist() == [slot for _, _, slot in expected]
    assert len(inputs.tokens) == len(positions) == padded(tokens)
    assert inputs.attention == "the plan"
    drawn = chosen(inputs.tokens, inputs.wanted)[batch.drawn].tolist()
    sampling = [each for each in ordered if each.sample]
    assert drawn == [100 * each.row + each.start + each.count - 1 for each in sampling]
    assert inputs.wanted is None or 0 < len(inputs.wanted) == padded(len(drawn)) < padded(tokens)
    assert positions[batch.firsts].tolist() == [each.start for each in ordered]

    geometry = backend.geometry
    assert geometry is not None
    assert geometry.decodes == sum(each.count == 1 for each in slices)
    assert geometry.padding == padded(tokens) - tokens
    for table, each in zip(geometry.block_tables, ordered, strict=True):
        held = int(rows.held[each.row])
        assert table[:held].tolist() == [20 * each.row + 19 - i for i in range(held)]
        assert (table[held:] == ZERO_BLOCK).all()
        assert len(table) * BLOCK >= MAX_TOKENS + 512


def test_only_what_is_drawn_from_is_wanted() -> None:
    """But all where a row owes logprobs of its prompt, or where nothing is drawn."""

    def wanted(*samples: bool) -> list[int] | None:
        slices = [RowSlice(row, 0, 20, [], sample) for row, sample in enumerate(samples)]
        found = gather(slices, rows, BLOCK, SeenGeometry()).inputs.wanted
        return None if found is None else found.tolist()

    rows = filled([20, 20, 20])
    assert wanted(True, False, True) == [19, 59]
    assert wanted(False, False, False) is None
    rows.logprobs_until[1] = 20
    assert wanted(True, False, True) is None
    assert wanted(True) == [19]


@pytest.mark.parametrize("each", [RowSlice(0, 3, 4, [], False), RowSlice(1, 8, 1, [], False)])
def test_a_slice_beyond_its_row_is_refused(each: RowSlice) -> None:
    """Row 0 knows too few tokens; row 1 has too few blocks."""
    rows = filled([6, 8])
    rows.append([1], [5])
    with pytest.raises(ValueError, match="beyond tokens or blocks"):
        gather([each], rows, BLOCK, SeenGeometry())


def test_append_adds_one_token_to_each_row() -> None:
    rows = filled([3, 5, 7])
    rows.append([2, 0], [77, 88])
    assert rows.all_tokens(0).tolist() == [0, 1, 2, 88]
    assert rows.all_tokens(1).tolist() == [100, 101, 102, 103, 104]
    assert rows.all_tokens(2).tolist()[-2:] == [206, 77]


def test_a_new_sequence_forgets_the_blocks_of_the_last_one() -> None:
    rows = filled([40])
    rows.start(0, [1, 2], 2)
    assert rows.held[0] == 0
    assert (rows.blocks[0] == ZERO_BLOCK).all()
    assert rows.all_tokens(0).tolist() == [1, 2]
    assert rows.logprobs_until[0] == 2


def test_padding_is_small_and_kinds_of_sizes_are_few() -> None:
    sizes = [padded(tokens) for tokens in range(1, 4097)]
    assert sizes[:32] == list(range(1, 33))
    assert all(
        tokens <= size <= max(tokens + 3, tokens * 1.25)
        for tokens, size in enumerate(sizes, start=1)
    )
    assert len(set(sizes)) < 140  # times five matrices: fewer than oneDNN keeps kernels
    assert np.all(np.diff(sizes) >= 0)
