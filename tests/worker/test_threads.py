"""Short steps run on one core, long ones on all that the options allow."""

import pytest
import torch

from tiercel.worker.threads import StepThreads


@pytest.mark.parametrize(
    ("megabytes", "tokens", "expected"),
    [(10, 1, 1), (10, 16, 1), (10, 512, 3), (300, 1, 3), (14_000, 1, 3)],
)
def test_threads_follow_the_length_of_the_step(megabytes: int, tokens: int, expected: int) -> None:
    assert StepThreads(3, megabytes * 10**6, 2).use(tokens) == expected
    assert torch.get_num_threads() == expected


def test_the_limit_is_the_limit() -> None:
    assert StepThreads(1, 10**10, 2).use(4096) == 1
