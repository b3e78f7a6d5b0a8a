"""Worker: limits, faults of single rows, prompt logprobs, warm-up. Numbers are in tests/parity."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.checkpoints import load_reference, make_checkpoint
from support.plans import PlanDriver
from support.workers import make_worker
from tiercel.errors import ConfigError, OutOfMemory
from tiercel.parallel.context import OneRank
from tiercel.wire.options import EngineOptions
from tiercel.wire.request import SamplingParams
from tiercel.wire.step import (
    PromptLogprobs,
    RowFailure,
    RowSlice,
    RowStart,
    StepOutput,
    StepPlan,
)
from tiercel.worker import cpu
from tiercel.worker.inputs import padded
from tiercel.worker.prompt import prompt_logprobs
from tiercel.worker.warmup import warm_up
from tiercel.worker.worker import Worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("worker"), "7b", max_positions=512)


@pytest.fixture(scope="module")
def worker(folder: Path) -> Worker:
    return make_worker(folder)


def prompt(count: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(512) for _ in range(count)]


def test_limits_are_resolved(folder: Path) -> None:
    worker = make_worker(folder, max_batch_total_tokens=1000, max_total_tokens=300)
    assert worker.num_blocks == 1000 // 16
    assert worker.max_total_tokens == 300
    assert worker.max_rows == 16
    assert (worker.device, worker.dtype) == ("cpu", "float32")
    assert make_worker(folder, max_total_tokens=9999).max_total_tokens == 512
    assert make_worker(folder, max_batch_size=3).max_rows == 3
    assert make_worker(folder, dtype="bfloat16").dtype == "bfloat16"
    unlimited = make_worker(folder, max_batch_total_tokens=None, max_batch_size=2)
    assert unlimited.num_blocks == 2 * 512 // 16


def test_progress_ends_at_the_total(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    worker = Worker(EngineOptions(model_path=str(folder), threads=1))
    worker.load(lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (
        seen[-1][0] == seen[-1][1] == (folder / "model.safetensors").stat().st_size - header(folder)
    )
    # The tied head is packed beside the embedding; the rotary table is not in the file.
    assert worker.weights_bytes > seen[-1][1]


def header(folder: Path) -> int:
    return 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "--device tpu is not one of auto, cpu, cuda"),
        ({"dtype": "int3"}, "--dtype int3 is not one of"),
        ({"quantize": "nf4"}, "--quantize nf4 is not supported; it can be bitsandbytes"),
        ({"block_tokens": 24}, "a block of 24 tokens"),
    ],
)
def test_options_that_cannot_be_are_refused(
    folder: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_worker(folder, **options)


def test_a_cache_that_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(OutOfMemory, match="--max-batch-total-tokens"):
        make_worker(folder, max_batch_total_tokens=10**12)
    with pytest.raises(OutOfMemory, match="fewer than 64"):
        make_worker(folder, max_batch_total_tokens=None, memory_fraction=0.0)


@pytest.mark.parametrize(("others", "steps"), [(0, 2 + 6), (1, 2 + 32)])
def test_ranks_end_their_warmup_together(others: int, steps: int) -> None:
    """Whatever this rank's own clock says."""
    ran: list[StepPlan] = []

    def step(plan: StepPlan) -> StepOutput:
        ran.append(plan)
        return StepOutput(0, [], [], [], 0.0, 0.0)

    warm_up(step, 64, 64, 16, 64, lambda _: others)
    assert len(ran) == steps


def test_warmup_leaves_no_trace(folder: Path) -> None:
    warm, cold = make_worker(folder), make_worker(folder)
    warm.warmup()
    results = []
    for worker in (warm, cold):
        driver = PlanDriver(worker)
        sequences = [driver.sequence(row, prompt(3 + 20 * row, row)) for row in range(4)]
        driver.run(sequences, 10)
        results.append([each.sampled for each in sequences])
    assert results[0] == results[1]


def test_warmup_takes_every_padded_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no chunk of up to 512 tokens waits for oneDNN to make its kernels."""
    monkeypatch.setattr(cpu, "WARM_UP_S", 60.0)
    monkeypatch.setattr(cpu, "onednn_has", lambda dtype: True)
    worker = make_worker(folder, dtype="bfloat16", threads=2)
    seen: set[int] = set()
    first = worker.model.layers[0]

    def watched(x: torch.Tensor, *rest: Any) -> Any:
        seen.add(len(x))
        # As the step itself will: kernels are for a number of threads.
        assert torch.get_num_threads() == worker.runner._threads.use(len(x))
        return first(x, *rest)

    worker.model.layers[0] = watched  # type: ignore[call-overload]
    worker.warmup()
    assert {padded(tokens) for tokens in range(33, 513)} <= seen


def test_ranks_on_unlike_cpus_warm_up_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether oneDNN has the type is for all ranks to say: their layers wait for each other."""
    asked: list[int] = []

    class Unlike(OneRank):
        def smallest(self, value: int) -> int:
            asked.append(value)
            return min(value, 0) if warming else value

    warming = False
    options = EngineOptions(
        model_path=str(folder), max_batch_total_tokens=512, threads=1, dtype="bfloat16"
    )
    worker = Worker(options, ranks=Unlike())
    worker.load()
    worker.allocate()
    warming = True
    worker.model.layers[0] = None  # type: ignore[call-overload]  # nobody may run it
    for here in (True, False):
        monkeypatch.setattr(cpu, "onednn_has", lambda dtype, here=here: here)
        asked.clear()
        worker.runner.warm_up()
        assert asked == [int(here)]


@pytest.mark.parametrize("limits", [{"max_batch_size": 1}, {"max_batch_total_tokens": 64}])
def test_warmup_fits_the_smallest_limits(folder: Path, limits: dict[str, int]) -> None:
    worker = make_worker(folder, **limits)
    worker.warmup()
    driver = PlanDriver(worker)
    sequence = driver.sequence(0, prompt(20))
    driver.run([sequence], 40)
    assert len(sequence.generated) == 40


def test_nothing_to_do_is_no_error(worker: Worker) -> None:
    output = worker.step(StepPlan(7, [], []))
    assert (output.step, output.sampled, output.failures) == (7, [], [])


def test_unknown_token_ids_fail_their_row_alone(worker: Worker) -> None:
    driver = PlanDriver(worker)
    good, bad = driver.sequence(0, prompt(20)), driver.sequence(1, [5, 512, 7])
    output = driver.step([(bad, 3), (good, 20)])
    assert [failure.row for failure in output.failures] == [1]
    assert "0 to 511" in output.failures[0].message
    assert [token.row for token in output.sampled] == [0]


def test_a_row_that_is_not_finite_fails_alone_and_its_blocks_can_be_used_again(
    folder: Path,
) -> None:
    worker = make_worker(folder)
    driver = PlanDriver(worker)
    healthy, sick = driver.sequence(0, prompt(40)), driver.sequence(1, prompt(40, 1))
    driver.run([healthy, sick], 3)
    with torch.inference_mode():
        for layer in worker.cache.layers:
            layer.blocks[:, sick.blocks] = torch.nan
    output = driver.step([(sick, 1), (healthy, 1)])
    assert [failure.row for failure in output.failures] == [1]
    assert "not finite" in output.failures[0].message
    assert [token.row for token in output.sampled] == [0]

    poisoned = set(sick.blocks)
    driver.release(sick)
    after = driver.sequence(1, prompt(21, 2))
    driver.run([healthy, after], 30)
    assert set(after.blocks[:2]) <= poisoned
    clean = PlanDriver(make_worker(folder))
    expected = clean.sequence(0, prompt(21, 2))
    clean.run([expected], 30)
    assert after.generated == expected.generated


def test_a_row_alone_can_fail_in_the_sampler(worker: Worker) -> None:
    """A temperature that is no number passes no validation; here it must still hurt nobody else."""
    driver = PlanDriver(worker)
    broken = SamplingParams(do_sample=True, top_k=3, temperature=float("nan"))
    good = driver.sequence(0, prompt(12))
    bad = driver.sequence(1, prompt(12, 1), sampling=broken)
    output = driver.step([(good, 12), (bad, 12)])
    assert [failure.row for failure in output.failures] == [1]
    assert [token.row for token in output.sampled] == [0]


def test_a_plan_that_contradicts_itself_raises(worker: Worker) -> None:
    start = RowStart(0, [1, 2, 3], 3, SamplingParams())
    with pytest.raises(ValueError, match="beyond tokens or blocks"):
        worker.step(StepPlan(1, [start], [RowSlice(0, 0, 3, [], True)]))


@pytest.mark.parametrize("chunk", [7, 100])
def test_prompt_logprobs_are_those_of_transformers(folder: Path, chunk: int) -> None:
    worker = make_worker(folder)
    driver = PlanDriver(worker)
    wanting = driver.sequence(0, prompt(50), prompt_logprobs=True)
    other = driver.sequence(1, prompt(30, 1))
    single = driver.sequence(2, prompt(1, 2), prompt_logprobs=True)
    driver.run([wanting, other, single], 5, chunk=chunk)
    assert other.logprobs == single.logprobs == []
    values: list[float] = []
    for part in wanting.logprobs:
        assert part.first == len(values) + 1
        values.extend(part.logprobs)
    tokens = torch.tensor([wanting.tokens[:50]])
    with torch.inference_mode():
        logits = load_reference(folder)(tokens).logits[0]
    expected = logits.log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None]).squeeze(1)
    torch.testing.assert_close(torch.tensor(values), expected, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_prompt_logprobs_in_pieces_of_the_prompt(worker: Worker) -> None:
    """Positions are taken a few at a time, so that logits of a long prompt never fill memory."""
    hidden = torch.randn(49, worker.spec.hidden_size)
    targets = np.array(prompt(49), dtype=np.int64)
    whole = prompt_logprobs(worker.model, hidden, targets, 3, 1)
    pieces = prompt_logprobs(worker.model, hidden, targets, 3, 1, chunk_logits=3 * 512 + 1)
    assert isinstance(whole, PromptLogprobs)
    assert isinstance(pieces, PromptLogprobs)
    assert (pieces.row, pieces.first, len(pieces.logprobs)) == (3, 1, 49)
    assert pieces.logprobs == pytest.approx(whole.logprobs, abs=1e-5)
    hidden[20] = torch.nan
    failed = prompt_logprobs(worker.model, hidden, targets, 3, 1)
    assert isinstance(failed, RowFailure)
