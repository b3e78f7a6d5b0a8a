"""--one-shot-all-reduce where it cannot be: ranks say why, and add up as they do without it.

Where it can be takes two GPUs, and has not run.
"""

from pathlib import Path

import pytest
import torch

from support.checkpoints import make_checkpoint
from support.engines import engine_options, run_engine
from tiercel.parallel.one_shot import fits, hindrance
from tiercel.wire.options import World
from tiercel.wire.request import GenerationRequest, SamplingParams

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FOUR = World(rank=0, size=4, local_rank=0, local_size=4, address="", port=0)
THREE = World(rank=0, size=3, local_rank=0, local_size=3, address="", port=0)
TWO_HOSTS = World(rank=0, size=4, local_rank=0, local_size=2, address="", port=0)


@pytest.mark.parametrize(
    ("world", "device", "dtype", "reason"),
    [
        (FOUR, CPU, torch.bfloat16, "it takes GPUs, and this is a cpu"),
        (THREE, GPU, torch.bfloat16, "there are 3 ranks, and it takes 2, 4, 8"),
        (TWO_HOSTS, GPU, torch.bfloat16, "the ranks are on several machines"),
        (FOUR, GPU, torch.float16, "it does not add float16"),
    ],
)
def test_the_reason_is_named(
    world: World, device: torch.device, dtype: torch.dtype, reason: str
) -> None:
    assert hindrance(world, device, dtype) == reason


@pytest.mark.skipif(torch.cuda.device_count() >= 4, reason="needs a machine with few GPUs")
def test_gpus_that_are_not_there_are_no_reason_to_fail() -> None:
    assert hindrance(FOUR, GPU, torch.bfloat16) == "this rank does not see the others' GPUs"


def test_small_sums_of_whole_units_fit() -> None:
    row = 4_544 * 2  # bytes of Falcon-7B in bfloat16
    assert fits(row) and fits(57 * row) and not fits(58 * row)
    assert [fits(size) for size in (0, 8, 16, 24, 512 << 10, (512 << 10) + 16)] == [
        False, False, True, False, True, False,
    ]  # fmt: skip


def test_ranks_on_cpus_say_so_and_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_checkpoint(tmp_path, variant="7b")
    asked = [GenerationRequest(0, [21, 22, 23], 8, SamplingParams(), [])]
    answers = []
    for wanted in (False, True):
        options = engine_options(
            tmp_path, "cpu", num_shard=2, dtype="float32", one_shot_all_reduce=wanted
        )
        answers.append(run_engine(options, asked).answers[0])
    plain, same = answers
    assert same.error is None and len(same.ids) == 8
    assert same.ids == plain.ids
    said = [line for line in caplog.messages if "one-shot" in line]
    assert said == ["--one-shot-all-reduce has no effect: it takes GPUs, and this is a cpu"]
