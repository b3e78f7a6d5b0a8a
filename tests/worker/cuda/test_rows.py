"""What the rows on the device are sent, also where a step has failed in the middle."""

import numpy as np
import pytest
import torch

from tiercel.attention.cache import KvCache
from tiercel.worker.cuda.rows import DeviceRows, columns
from tiercel.worker.cuda.transfer import IntArray, Uploads

CPU = torch.device("cpu")


class Watched(Uploads):
    """Remembers what it sends, and fails as often as it is told to."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.sent: list[list[list[int]]] = []
        self.failures = 0

    def send(self, *arrays: IntArray) -> list[torch.Tensor]:
        if self.failures:
            self.failures -= 1
            raise torch.OutOfMemoryError("injected")
        self.sent.append([each.tolist() for each in arrays])
        return super().send(*arrays)


def rows_of(uploads: Uploads) -> DeviceRows:
    return DeviceRows(uploads, CPU, max_rows=3, max_tokens=64, block=16)


def test_a_row_that_starts_again_forgets_what_a_failed_step_left() -> None:
    """On CUDA an index_put_ that names a place twice has no order."""
    uploads = Watched()
    rows = rows_of(uploads)
    rows.start(0, [1, 2, 3])
    rows.start(1, [4])
    rows.add_blocks(0, [10, 11])
    rows.add_blocks(1, [20])
    uploads.failures = 1
    with pytest.raises(torch.OutOfMemoryError):
        rows.flush()
    rows.start(0, [1, 2, 3])
    rows.add_blocks(0, [30, 31])
    rows.flush()
    row, place, block = uploads.sent[-1]
    assert len(set(zip(row, place, strict=True))) == len(row)
    assert (row, place, block) == ([1, 0, 0], [0, 0, 1], [20, 30, 31])
    assert rows.blocks[:2, :2].tolist() == [[30, 31], [20, 0]]


def test_nothing_is_sent_twice_or_without_need() -> None:
    uploads = Watched()
    rows = rows_of(uploads)
    rows.start(2, [7])
    rows.add_blocks(2, [5])
    rows.flush()
    rows.flush()
    rows.add_blocks(2, [6])
    rows.flush()
    assert uploads.sent[1:] == [[[2], [0], [5]], [[2], [1], [6]]]


@pytest.mark.parametrize("copies", [[(1, 3, 3)], [(1, 3, 2), (3, 1, 1), (2, 2, 2)]])
def test_copies_by_uploaded_numbers_are_those_of_a_list(copies: list[tuple[int, int, int]]) -> None:
    caches = [KvCache(2, 5, 4, 3, torch.float32) for _ in range(2)]
    for cache in caches:
        for number, layer in enumerate(cache.layers):
            layer.slots.copy_((torch.arange(24) + 100 * number).view(1, -1, 1).expand(2, -1, 3))
    caches[0].copy(copies)
    sources, targets, counts = columns(copies)
    read, written = Uploads(CPU).send(sources, targets)
    caches[1].copy_at(read, written, counts.tolist())
    for one, other in zip(*(cache.layers for cache in caches), strict=True):
        assert torch.equal(one.slots, other.slots)


def test_columns_of_triples() -> None:
    assert [each.tolist() for each in columns([(1, 2, 3), (4, 5, 6)])] == [[1, 4], [2, 5], [3, 6]]
    assert columns([(1, 2, 3)])[0].dtype == np.int64
