"""The memory promise with a pool that the server has sized itself, and steps that wait for nobody.

On a GPU most of the card is taken by somebody else, so that the pool is what memory leaves, not
what all rows could use; on a CPU it is the latter.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoints import make_checkpoint
from support.engines import DEVICES, engine_options, release, run_engine
from support.plans import PlanDriver
from support.widths import TRUE
from tiercel.wire.request import GenerationRequest, SamplingParams
from tiercel.wire.step import StepOutput, StepPlan
from tiercel.worker.cuda.platform import WIGGLE_ROOM
from tiercel.worker.worker import Worker

BLOCK_TOKENS = 16
# RW keeps most per token. Its rows would like 16 GiB of keys and values here.
ROWS, TOKENS = {"cpu": 4, "cuda": 512}, {"cpu": 96, "cuda": 2048}
LEFT_FREE = 8 << 30  # for weights, graphs, steps and the pool, beside what is left to others
NEW_TOKENS = {"cpu": 16, "cuda": 64}


@contextmanager
def neighbour(device: str, fraction: float) -> Iterator[None]:
    """Who has all of the card's memory but LEFT_FREE and what the server does not use anyway."""
    held = None
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        others = int((1 - fraction * (1 - WIGGLE_ROOM)) * total)
        held = torch.empty(max(0, free - LEFT_FREE - others), dtype=torch.uint8, device=device)
    yield
    del held
    release()


def _requests(rows: int, tokens: int, new: int, vocab: int) -> list[GenerationRequest]:
    """Every row as long as it can be, with all that takes memory in a draw."""
    draw = random.Random(11)
    return [
        GenerationRequest(
            number,
            [draw.randrange(vocab) for _ in range(tokens - new)],
            new,
            SamplingParams(do_sample=True, seed=number, top_p=0.9, repetition_penalty=1.1),
            [],
        )
        for number in range(rows + rows // 4)
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantize", [None, "bitsandbytes", "bitsandbytes-nf4"])
def test_a_pool_of_the_servers_own_size_is_filled_to_its_end(
    tmp_path: Path, quantize: str | None, device: str
) -> None:
    sizes: dict[str, Any] = {"heads": 4, "head_dim": 64, "vocab_size": 512}
    if device == "cuda":
        sizes = TRUE["rw-1b"] | {"vocab_size": 65024}
    folder = make_checkpoint(
        tmp_path, "rw-1b", dtype="bfloat16", max_positions=2048, layers=2, **sizes
    )
    rows, tokens = ROWS[device], TOKENS[device]
    requests = _requests(rows, tokens, NEW_TOKENS[device], sizes["vocab_size"])
    options = engine_options(
        folder,
        device,
        dtype="bfloat16",
        quantize=quantize,
        prefix_caching=False,
        max_batch_size=rows,
        max_batch_total_tokens=None,
        max_total_tokens=tokens,
    )
    with neighbour(device, options.memory_fraction):
        run = run_engine(options, requests)
    assert [answer.error for answer in run.answers] == [None] * len(requests)
    assert {len(answer.ids) for answer in run.answers} == {NEW_TOKENS[device]}
    wanted = rows * tokens // BLOCK_TOKENS
    if device == "cuda":
        assert run.stats.total_blocks < wanted  # by memory
    else:
        assert run.stats.total_blocks == wanted
    assert run.least_free <= run.stats.total_blocks // 20  # nearly all of it was in use
    assert run.stats.free_blocks == run.stats.total_blocks


class Strict:
    """A worker whose submissions may not wait for the device, once `strict` is set."""

    def __init__(self, worker: Worker, device: str) -> None:
        self.num_blocks = worker.num_blocks
        self.strict = False
        self._worker = worker
        self._cuda = device == "cuda"

    def step(self, plan: StepPlan) -> StepOutput:
        watched = self.strict and self._cuda
        if watched:
            torch.cuda.set_sync_debug_mode("error")
        try:
            self._worker.submit(plan)
        finally:
            if watched:
                torch.cuda.set_sync_debug_mode("default")
        return self._worker.collect()


@pytest.mark.parametrize("device", DEVICES)
def test_a_hit_in_the_middle_of_a_block_waits_for_no_step(tmp_path: Path, device: str) -> None:
    """Nor do the prompt behind it, its decoding steps, or a penalty."""
    folder = make_checkpoint(tmp_path, "7b", dtype="float32", max_positions=512)
    options = engine_options(folder, device, dtype="float32", max_batch_total_tokens=2048)
    worker = Worker(options)
    worker.load()
    worker.allocate()
    worker.warmup()
    strict = Strict(worker, device)
    driver = PlanDriver(strict)  # type: ignore[arg-type]
    prompt = [(7 + 13 * index) % 512 for index in range(45)]
    results = []
    for _ in range(2):  # the second time nothing is new
        donor = driver.sequence(0, prompt)
        driver.run([donor], 3)
        again = driver.sequence(1, prompt, prefix=donor, copy=True)
        assert again.copy_from >= 0
        penalized = driver.sequence(2, prompt, sampling=SamplingParams(repetition_penalty=1.2))
        driver.run([again, penalized], 4)
        results.append((donor.generated, again.generated, penalized.generated))
        strict.strict = True
    assert results[0] == results[1]
    assert results[0][0] == results[0][1][:3]
