"""bfloat16 and float16 stay close to float32; batches of skewed lengths equal solo runs."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FalconForCausalLM

from support.checkpoints import SHAPES, load_reference, make_checkpoint
from support.plans import PlanDriver
from support.workers import RecordingSampler, make_worker
from tiercel.layers.half import HalfLinear, fbgemm_has_half
from tiercel.quantization import unquantized
from tiercel.wire.request import SamplingParams
from tiercel.worker.worker import Worker


def recorded(worker: Worker, row: int) -> torch.Tensor:
    assert isinstance(worker.runner.sampler, RecordingSampler)
    return worker.runner.sampler.recorded(row)


def prompt(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(512) for _ in range(count)]


def logits_after(model: FalconForCausalLM, tokens: list[int], first: int) -> torch.Tensor:
    """Logits at positions [first, end): float32 [positions, vocab]."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0, first:]
    return logits.float()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("variant", ["7b", "7b-71", "40b", "rw-1b"])
def test_half_precision_is_as_close_to_float32_as_in_transformers(
    tmp_path: Path, variant: str, dtype: str
) -> None:
    make_checkpoint(tmp_path, variant, dtype=dtype)
    worker = make_worker(tmp_path)
    assert worker.dtype == dtype
    check_precision(tmp_path, worker, variant)


@pytest.mark.parametrize(
    ("variant", "dtype"), [("7b", "bfloat16"), ("40b", "float16"), ("rw-1b", "bfloat16")]
)
def test_so_it_is_where_a_cpu_has_no_16_bit_arithmetic_but_half_floats(
    tmp_path: Path, variant: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As wide as FBGEMM's blocks, which may not fill a larger weight up by more than a third."""
    if not fbgemm_has_half():
        pytest.skip("FBGEMM has no half-float GEMM on this machine")
    built = []

    class Built(HalfLinear):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            built.append(self)

    monkeypatch.setattr(unquantized, "onednn_has", lambda dtype: False)
    monkeypatch.setattr(unquantized, "HalfLinear", Built)
    make_checkpoint(tmp_path, variant, dtype=dtype, heads=8, head_dim=64)
    worker = make_worker(tmp_path)
    assert len(built) == 2 * 4 + 1  # all of two layers, and the head
    check_precision(tmp_path, worker, variant)


def check_precision(folder: Path, worker: Worker, variant: str) -> None:
    """Eight rows, so that decoding is batched. All three have the same, rounded, weights."""
    driver = PlanDriver(worker)
    sequences = [driver.sequence(row, prompt(5 + 37 * row, row)) for row in range(8)]
    driver.run(sequences, 12, chunk=100)
    # Eager, which rounds scores as ours do; but it adds ALiBi twice.
    attention = "sdpa" if SHAPES[variant].alibi else "eager"
    half = load_reference(folder, attention=attention)
    config = folder / "config.json"
    config.write_text(config.read_text().replace(worker.dtype, "float32"))
    exact = load_reference(folder, attention="sdpa")
    half.transformer.rotary_emb = exact.transformer.rotary_emb  # .to() has rounded its frequencies
    ours, theirs = 0.0, 0.0
    for sequence in sequences:
        place = sequence.tokens[:-1], sequence.prompt_tokens - 1
        right = logits_after(exact, *place)
        ours += (recorded(worker, sequence.row) - right).square().mean().item()
        theirs += (logits_after(half, *place) - right).square().mean().item()
    assert ours < 1.1 * theirs


def test_a_skewed_batch_equals_solo_runs(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b-71")
    worker = make_worker(tmp_path, max_batch_total_tokens=16 * 1024)
    lengths = (3, 1500, 40, 9, 700, 17, 300, 1, 2, 5, 1100)
    driver = PlanDriver(worker)
    together = [driver.sequence(row, prompt(count, row)) for row, count in enumerate(lengths)]
    # Long prompts first, so that the last steps decode all of them at once.
    driver.run(together, 24, chunk=512)
    batched = {each.row: recorded(worker, each.row) for each in together}
    for each in together:
        driver.release(each)
    assert isinstance(worker.runner.sampler, RecordingSampler)
    for each in together:
        worker.runner.sampler.logits.clear()
        solo = driver.sequence(0, each.tokens[: each.prompt_tokens])
        driver.run([solo], 24, chunk=512)
        assert solo.generated == each.generated
        assert (recorded(worker, 0) - batched[each.row]).abs().max().item() < 1e-4
        driver.release(solo)


def test_seeded_draws_do_not_depend_on_neighbours(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "40b")
    worker = make_worker(tmp_path)
    driver = PlanDriver(worker)
    params = [
        SamplingParams(do_sample=True, temperature=1.5, top_k=50, top_p=0.9, seed=100 + row)
        for row in range(6)
    ]
    together = [
        driver.sequence(row, prompt(10 + 20 * row, row), sampling=each)
        for row, each in enumerate(params)
    ]
    driver.run(together, 30, chunk=16)
    for each in together:
        solo = driver.sequence(15, each.tokens[: each.prompt_tokens], sampling=each.sampling)
        driver.run([solo], 30)
        assert solo.generated == each.generated
        driver.release(solo)


def test_a_long_context_is_filled_to_its_end(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b", max_positions=2048)
    worker = make_worker(tmp_path, max_batch_total_tokens=2048)
    driver = PlanDriver(worker)
    sequence = driver.sequence(0, prompt(548, 1))
    driver.run([sequence], 1500, chunk=256)
    assert len(sequence.generated) == 1500
    assert sequence.failure is None
    reference = load_reference(tmp_path)
    logits = logits_after(reference, sequence.tokens[:-1], 547)
    assert (recorded(worker, 0) - logits).abs().max().item() < 1e-4
    assert sequence.generated == logits.argmax(-1).tolist()
