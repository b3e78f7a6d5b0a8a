"""Which batch sizes are captured: every batch fits, and little of a step is padding."""

import pytest

from tiercel.worker.cuda.graphs import graph_sizes


@pytest.mark.parametrize("max_rows", [1, 3, 8, 127, 128, 200, 512])
def test_every_batch_fits_with_little_padding(max_rows: int) -> None:
    sizes = graph_sizes(max_rows, None)
    assert sizes == sorted(set(sizes)) and sizes[-1] == max_rows
    for rows in range(1, max_rows + 1):
        size = min(each for each in sizes if each >= rows)
        assert size - rows < (8 if rows <= 128 else 16)


def test_sizes_can_be_given_as_tgi_does() -> None:
    assert graph_sizes(20, (32, 1, 2, 4, 8, 16, 4)) == [1, 2, 4, 8, 16]
    assert graph_sizes(20, (0,)) == []
    assert graph_sizes(600, None)[-1] == 512  # beyond it, steps run without graphs
