"""Beginnings of blocks that a step copies: what comes along, what does not, in which order."""

from pathlib import Path

import pytest
import torch

from support.checkpoints import make_checkpoint
from support.plans import PlanDriver, Sequence
from support.workers import make_worker
from tiercel.attention.cache import KvCache
from tiercel.wire.request import SamplingParams
from tiercel.wire.step import RowSlice, RowStart, StepPlan
from tiercel.worker.worker import Worker

PROMPT = [(7 + 13 * index) % 512 for index in range(45)]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    folder: Path = tmp_path_factory.mktemp("copied")
    return make_worker(make_checkpoint(folder, "7b", max_positions=256))


def filled() -> KvCache:
    """Two layers, five blocks of four tokens; every number is its slot, plus 100 in layer 1."""
    cache = KvCache(2, 5, 4, 3, torch.float32)
    for number, layer in enumerate(cache.layers):
        layer.slots.copy_((torch.arange(24) + 100 * number).view(1, -1, 1).expand(2, -1, 3))
    return cache


def held(cache: KvCache, block: int) -> list[list[float]]:
    """Per layer the slots of a block; keys and values are equal here."""
    for layer in cache.layers:
        torch.testing.assert_close(layer.slots[0], layer.slots[1], equal_nan=True)
    return [layer.slots[0, 4 * block : 4 * block + 4, 2].tolist() for layer in cache.layers]


def test_the_first_tokens_are_copied_and_zeros_follow() -> None:
    cache = filled()
    cache.layers[1].slots[:, 7] = torch.nan  # behind what is copied
    cache.copy([(1, 3, 3)])
    assert held(cache, 3) == [[4, 5, 6, 0], [104, 105, 106, 0]]
    assert held(cache, 0) == [[0, 1, 2, 3], [100, 101, 102, 103]]
    assert held(cache, 1)[0] == [4, 5, 6, 7]


def test_all_sources_are_read_before_anything_is_written() -> None:
    cache = filled()
    cache.copy([(1, 3, 2), (3, 1, 1), (2, 2, 2)])
    assert held(cache, 3)[0] == [4, 5, 0, 0]
    assert held(cache, 1)[0] == [12, 0, 0, 0]
    assert held(cache, 2)[0] == [8, 9, 0, 0]


def generated(worker: Worker, sequence: Sequence, driver: PlanDriver) -> list[int]:
    driver.run([sequence], 20)
    assert sequence.failure is None
    return sequence.generated


def test_what_lies_behind_the_copied_tokens_reaches_nobody(worker: Worker) -> None:
    driver = PlanDriver(worker)
    donor = driver.sequence(0, PROMPT)
    expected = generated(worker, donor, driver)
    with torch.inference_mode():
        for layer in worker.cache.layers:
            slots = layer.slots.view(2, -1, 16, layer.slots.shape[-1])
            slots[:, donor.blocks[2], 12:] = torch.nan  # 44 tokens come before them
    again = driver.sequence(1, PROMPT, prefix=donor, copy=True)
    assert again.computed == 44
    assert generated(worker, again, driver) == expected


def test_a_source_that_another_row_takes_in_the_same_step_is_copied_first(worker: Worker) -> None:
    driver = PlanDriver(worker)
    donor = driver.sequence(0, PROMPT)
    expected = generated(worker, donor, driver)
    copying = driver.sequence(1, PROMPT, prefix=donor, copy=True)
    source, fresh = donor.blocks[2], driver.free.pop()
    other = [3] * 10
    starts = [RowStart(2, other, 10, SamplingParams()), RowStart(1, PROMPT, 45, SamplingParams())]
    slices = [
        RowSlice(2, 0, 10, [source], True),  # clears it, and then fills it
        RowSlice(1, 44, 1, [*copying.blocks, fresh], True, source),
    ]
    output = worker.step(StepPlan(1, starts, slices))
    assert {token.row: token.token_id for token in output.sampled}[1] == expected[0]
