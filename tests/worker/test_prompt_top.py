"""The best tokens at each prompt position, and options that only their own row can suffer from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.checkpoints import load_reference, make_checkpoint
from support.plans import PlanDriver
from support.workers import make_worker
from tiercel.wire.request import SamplingParams
from tiercel.wire.step import PromptLogprobs, RowSlice, RowStart, StepPlan
from tiercel.worker.prompt import prompt_logprobs
from tiercel.worker.worker import Worker

PROMPT = [(7 + 13 * index) % 512 for index in range(37)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("top"), "7b", max_positions=256)


@pytest.fixture(scope="module")
def worker(folder: Path) -> Worker:
    return make_worker(folder)


def in_chunks(worker: Worker, top_n: int, chunk: int) -> PromptLogprobs:
    """All of a prompt's results, put together."""
    driver = PlanDriver(worker)
    start = RowStart(0, PROMPT, len(PROMPT), SamplingParams(), True, top_n)
    parts: list[PromptLogprobs] = []
    for first in range(0, len(PROMPT), chunk):
        count = min(chunk, len(PROMPT) - first)
        blocks = [driver.free.pop() for _ in range(-(-(first + count) // 16) - -(-first // 16))]
        piece = RowSlice(0, first, count, blocks, first + count == len(PROMPT))
        plan = StepPlan(first, [] if first else [start], [piece])
        parts += worker.step(plan).prompt_logprobs
    return PromptLogprobs(
        0,
        parts[0].first,
        [value for part in parts for value in part.logprobs],
        [ids for part in parts for ids in part.top_ids],
        [values for part in parts for values in part.top_logprobs],
    )


@pytest.mark.parametrize("chunk", [9, 100])
def test_they_are_those_of_transformers(worker: Worker, folder: Path, chunk: int) -> None:
    found = in_chunks(worker, 5, chunk)
    assert (found.first, len(found.logprobs), len(found.top_ids)) == (1, 36, 36)
    with torch.inference_mode():
        logits = load_reference(folder)(torch.tensor([PROMPT])).logits[0, :-1]
    best = logits.log_softmax(-1).topk(5, -1)
    assert found.top_ids == best.indices.tolist()
    torch.testing.assert_close(torch.tensor(found.top_logprobs), best.values, rtol=0, atol=1e-4)


def test_none_are_made_where_none_are_wanted(worker: Worker) -> None:
    assert (in_chunks(worker, 0, 100).top_ids, in_chunks(worker, 0, 100).top_logprobs) == ([], [])


@torch.inference_mode()
def test_pieces_of_the_prompt_give_the_same(worker: Worker) -> None:
    hidden = torch.randn(30, worker.spec.hidden_size)
    targets = np.array(PROMPT[:30], dtype=np.int64)
    whole = prompt_logprobs(worker.model, hidden, targets, 3, 1, top_n=2)
    pieces = prompt_logprobs(worker.model, hidden, targets, 3, 1, top_n=2, chunk_logits=7 * 512)
    assert isinstance(whole, PromptLogprobs)
    assert isinstance(pieces, PromptLogprobs)
    assert whole.top_ids == pieces.top_ids
    assert [len(ids) for ids in whole.top_ids] == [2] * 30
    assert [len(values) for values in whole.top_logprobs] == [2] * 30
    everything = prompt_logprobs(worker.model, hidden[:1], targets[:1], 3, 1, top_n=9999)
    assert isinstance(everything, PromptLogprobs)
    assert sorted(everything.top_ids[0]) == list(range(512))
    assert everything.top_logprobs[0][everything.top_ids[0].index(PROMPT[0])] == pytest.approx(
        everything.logprobs[0]
    )


class Undecided:
    """A model to which all tokens are the same."""

    vocab_size = 20

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(hidden), self.vocab_size)


def test_of_equal_tokens_the_first_ones_are_taken_and_no_more() -> None:
    model: Any = Undecided()
    found = prompt_logprobs(model, torch.zeros(3, 4), np.array([5, 6, 7]), 0, 1, top_n=2)
    assert isinstance(found, PromptLogprobs)
    assert found.top_ids == [[0, 1]] * 3


def test_a_biased_id_that_does_not_exist_fails_its_row_alone(worker: Worker) -> None:
    driver = PlanDriver(worker)
    good = driver.sequence(0, PROMPT)
    bad = driver.sequence(1, PROMPT, sampling=SamplingParams(logit_bias=[(512, 1.0)]))
    output = driver.step([(bad, 37), (good, 37)])
    assert [failure.row for failure in output.failures] == [1]
    assert "`logit_bias` ids must be from 0 to 511" in output.failures[0].message
    assert [token.row for token in output.sampled] == [0]


def test_penalties_leave_the_prompt_out_also_after_resuming(worker: Worker) -> None:
    """A presence penalty beyond any logit: every token is new, but the prompt's may come."""
    driver = PlanDriver(worker)
    strict = SamplingParams(presence_penalty=1000.0)
    whole = driver.sequence(0, PROMPT, sampling=strict)
    driver.run([whole], 60)
    assert len(set(whole.generated)) == 60
    resumed = driver.sequence(1, whole.tokens[: len(PROMPT) + 25], sampling=strict)
    resumed.prompt_tokens = len(PROMPT)
    driver.run([resumed], 60)
    assert resumed.generated == whole.generated
    biased = [(token, 900.0) for token in PROMPT]
    wanted = SamplingParams(presence_penalty=1000.0, logit_bias=biased)
    allowed = driver.sequence(2, PROMPT, sampling=wanted)
    driver.run([allowed], len(set(PROMPT)))
    assert set(allowed.generated) == set(PROMPT)
