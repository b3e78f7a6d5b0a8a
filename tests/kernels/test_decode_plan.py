"""The work list of decode attention: against its specification, and its own promises."""

import pytest
import torch

from support.kernels import DEVICE, Allocations
from tiercel_kernels.fused.decode_plan import decode_plan
from tiercel_kernels.reference import decode_plan as reference

CONTEXTS = {
    "one row": [5],
    "one token": [1],
    "empty rows": [0, 7, 0, 300, 0],
    "whole units": [256, 512, 1024],
    "one over": [257, 513, 1025],
    "all full": [1024] * 5,
}


@pytest.mark.parametrize("contexts", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("unit_tokens", [256, 512])
def test_equals_the_specification(contexts: list[int], unit_tokens: int) -> None:
    lengths = torch.tensor(contexts, dtype=torch.int32, device=DEVICE)
    with Allocations() as made:
        plan = decode_plan(lengths, unit_tokens, 1024 // unit_tokens + 1)
    assert made.intact()
    expected = reference.decode_plan(lengths, unit_tokens, 1024 // unit_tokens + 1)
    assert torch.equal(plan.first_units, expected.first_units)
    total = int(plan.first_units[-1])
    assert torch.equal(plan.unit_rows[:total], expected.unit_rows[:total])
    assert plan.max_units == expected.max_units == 1024 // unit_tokens + 1


def test_more_rows_than_a_program_adds_up_at_once() -> None:
    lengths = torch.tensor([(37 * i) % 1025 for i in range(270)], dtype=torch.int32, device=DEVICE)
    plan, expected = decode_plan(lengths, 256, 5), reference.decode_plan(lengths, 256, 5)
    assert torch.equal(plan.first_units, expected.first_units)
    total = int(plan.first_units[-1])
    assert torch.equal(plan.unit_rows[:total], expected.unit_rows[:total])


def test_every_key_is_in_one_unit() -> None:
    contexts = [1, 0, 256, 257, 900]
    plan = reference.decode_plan(torch.tensor(contexts, dtype=torch.int32), 256, 4)
    covered = [0] * len(contexts)
    for unit, row in enumerate(plan.unit_rows[: int(plan.first_units[-1])].tolist()):
        piece = unit - int(plan.first_units[row])
        covered[row] += max(0, min(256, contexts[row] - 256 * piece))
    assert covered == contexts
    assert plan.first_units.diff().tolist() == [1, 1, 1, 2, 4]  # the empty row has one too


def test_a_row_longer_than_its_block_table_does_not_write_past_the_list() -> None:
    lengths = torch.tensor([5000, 3], dtype=torch.int32, device=DEVICE)
    with Allocations() as made:
        plan = decode_plan(lengths, 256, 2)
    assert made.intact()
    assert plan.first_units.tolist() == [0, 2, 3]
    assert plan.unit_rows[:3].tolist() == [0, 0, 1]
