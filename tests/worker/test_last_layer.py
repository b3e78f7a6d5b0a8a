"""The last layer computes whole states only for the tokens that the next ones are drawn from."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoints import make_checkpoint
from support.plans import PlanDriver
from support.workers import make_worker
from tiercel.wire.request import SamplingParams
from tiercel.worker import inputs
from tiercel.worker.worker import Worker

PROMPTS = (40, 7, 90)
CHUNK = 32
NEW_TOKENS = 6


@dataclass
class Watched:
    """A layer, and how many tokens went in and came out of it, step by step."""

    layer: Any
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, *rest: Any) -> Any:
        out, branches = self.layer(x, *rest)
        assert {len(out)} == {len(each) for each in branches}
        self.sizes.append((len(x), len(out)))
        return out, branches


def generate(worker: Worker) -> tuple[list[list[int]], list[torch.Tensor], list[tuple[int, int]]]:
    """Prompts that come while others decode: tokens and logits of each, and the last layer's
    sizes.
    """
    watched = Watched(worker.model.layers[-1])
    worker.model.layers[-1] = watched  # type: ignore[call-overload]
    driver, draw = PlanDriver(worker), random.Random(3)
    rows = []
    for row, count in enumerate(PROMPTS):
        rows.append(driver.sequence(row, [draw.randrange(512) for _ in range(count)]))
        while rows[-1].computed < count:
            chunk = min(CHUNK, count - rows[-1].computed)
            driver.step([*((each, 1) for each in rows[:-1]), (rows[-1], chunk)])
    driver.run(rows, NEW_TOKENS)
    logits = [worker.runner.sampler.recorded(row) for row in range(len(rows))]  # type: ignore[attr-defined]
    return [each.generated for each in rows], logits, watched.sizes


@pytest.mark.parametrize("variant", ["7b", "40b", "11b", "rw-1b"])
def test_answers_are_those_of_whole_layers(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path, variant, max_positions=512)
    tokens, logits, sizes = generate(make_worker(tmp_path))
    assert [size for size in sizes if size[0] > len(PROMPTS)] == [
        *((32, 32), (8, 1)),  # nothing is drawn from the middle of the only prompt
        (8, 2),
        *((36, 2), (36, 2), (28, 3)),
    ]
    monkeypatch.setattr(inputs, "only", lambda drawn, tokens: None)
    same_tokens, same_logits, whole = generate(make_worker(tmp_path))
    assert all(size[0] == size[1] for size in whole)
    assert tokens == same_tokens
    for ours, theirs in zip(logits, same_logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_prompt_logprobs_want_all_states(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b", max_positions=512)
    worker = make_worker(tmp_path)
    watched = Watched(worker.model.layers[-1])
    worker.model.layers[-1] = watched  # type: ignore[call-overload]
    driver = PlanDriver(worker)
    prompt = list(range(20))
    wishes = SamplingParams()
    asked = driver.sequence(0, prompt, sampling=wishes, prompt_logprobs=True)
    driver.step([(asked, 20)])
    assert watched.sizes == [(20, 20)]
    assert sum(len(each.logprobs) for each in asked.logprobs) == 19
    driver.step([(driver.sequence(1, prompt), 20), (asked, 1)])
    assert watched.sizes[1:] == [(21, 2)]
