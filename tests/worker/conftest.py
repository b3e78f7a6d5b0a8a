"""What the tests of workers share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
