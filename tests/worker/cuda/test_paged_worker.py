"""The CUDA platform's steps against the CPU's: the same tokens from the same plans."""

import random
from pathlib import Path

import pytest
import torch

from support.checkpoints import SHAPES, VARIANTS, make_checkpoint
from support.paged_workers import make_paged_worker
from support.plans import GREEDY, PlanDriver, Sequence
from support.workers import make_worker
from tiercel.errors import ConfigError
from tiercel.model.config import load_spec
from tiercel.model.falcon import JoinedLayer
from tiercel.parallel.shard import Shard
from tiercel.plan.sizes import Storage
from tiercel.wire.options import EngineOptions
from tiercel.wire.request import SamplingParams
from tiercel.wire.step import RowSlice, RowStart, SampledToken, StepPlan
from tiercel.worker.platform import make_platform
from tiercel.worker.worker import Worker
from tiercel_kernels.choose import fused_ops

SAMPLED = SamplingParams(do_sample=True, seed=2**64 - 5, temperature=0.8, top_k=40, top_p=0.9)
WISHES = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "typical": SamplingParams(do_sample=True, seed=7, typical_p=0.7),
    "penalties": SamplingParams(
        repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.5, count_penalty=0.2
    ),
    "sampled and penalties": SamplingParams(do_sample=True, seed=3, repetition_penalty=1.2),
    "bias": SamplingParams(logit_bias=((5, 4.0), (77, -100.0))),
    "watermark": SamplingParams(do_sample=True, seed=1, watermark=True),
    "top tokens": SamplingParams(top_n_tokens=3),
}


def prompt(count: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(512) for _ in range(count)]


def generate(worker: Worker, chunk: int = 1 << 30, new_tokens: int = 12) -> list[Sequence]:
    """A row for each wish, prompts of different lengths, one of a prefix; all at once."""
    driver = PlanDriver(worker)
    first = driver.sequence(15, prompt(40, seed=99))
    driver.run([first], 2)
    rows = [
        driver.sequence(row, prompt(3 + 17 * row, row), sampling=wish, prompt_logprobs=row % 3 == 1)
        for row, wish in enumerate(WISHES.values())
    ]
    shared = [*prompt(40, seed=99)[:37], 1, 2, 3]
    rows.append(driver.sequence(9, shared, prefix=first, copy=True))
    assert rows[-1].computed == 37 and rows[-1].copy_from >= 0
    driver.run(rows, new_tokens, chunk=chunk)
    return rows


def check_equal(ours: list[Sequence], theirs: list[Sequence]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.failure is None and other.failure is None
        assert mine.generated == other.generated
        for token, same in zip(mine.sampled, other.sampled, strict=True):
            assert token.logprob == pytest.approx(same.logprob, abs=1e-4)
            assert token.top_ids == same.top_ids
        found, expected = (
            [value for part in each.logprobs for value in part.logprobs] for each in (mine, other)
        )
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_and_wish_as_on_the_cpu(variant: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, variant, max_positions=512)
    paged = make_paged_worker(tmp_path)
    assert (paged.device, paged.depth) == ("cuda", 2)
    for chunk in (1 << 30, 13):
        check_equal(generate(paged, chunk), generate(make_worker(tmp_path), chunk))


@pytest.mark.parametrize("variant", ["7b", "40b", "11b"])
def test_one_output_gemm_changes_rounding_only(variant: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, variant, max_positions=512)
    joined = make_paged_worker(tmp_path, joined_output=True)
    assert {type(layer) for layer in joined.model.layers} == {JoinedLayer}
    plain = make_paged_worker(tmp_path)
    assert joined.weights_bytes == plain.weights_bytes
    check_equal(generate(joined, 50), generate(plain, 50))


@pytest.mark.parametrize("joined", [False, True])
def test_chunks_among_decoding_rows_want_some_states_only(joined: bool, tmp_path: Path) -> None:
    """Nobody owes logprobs here: the last layer leaves out what nothing is drawn from."""
    make_checkpoint(tmp_path, "7b", max_positions=512)

    def run(worker: Worker) -> list[Sequence]:
        driver = PlanDriver(worker)
        rows = [driver.sequence(row, prompt(20 + 25 * row, row)) for row in range(3)]
        driver.run(rows, 8, chunk=13)
        return rows

    check_equal(run(make_paged_worker(tmp_path, joined_output=joined)), run(make_worker(tmp_path)))


@pytest.mark.parametrize("variant", ["7b", "40b", "rw-1b"])
def test_layers_that_stay_with_the_host_change_nothing(
    variant: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_checkpoint(tmp_path, variant, max_positions=512, layers=3)
    plain = make_paged_worker(tmp_path)
    of_a_layer = sum(layer.nbytes for layer in plain.model.layers) / 3
    offloaded = make_paged_worker(tmp_path, cpu_offload_gb=1.2 * of_a_layer / 1e9)
    assert "2 of 3 layers (0.0 GB) stay in the host's memory: every step reads them" in caplog.text
    assert offloaded.weights_bytes < plain.weights_bytes - 1.9 * 0.95 * of_a_layer
    results = generate(offloaded, 50), generate(plain, 50)
    for mine, other in zip(*results, strict=True):
        assert mine.generated == other.generated
        assert [each.logprob for each in mine.sampled] == [each.logprob for each in other.sampled]


@pytest.mark.parametrize("variant", ["7b", "40b", "rw-1b"])
@pytest.mark.parametrize("quantize", ["bitsandbytes", "bitsandbytes-nf4"])
def test_quantized_layers_are_those_of_the_cpu(quantize: str, variant: str, tmp_path: Path) -> None:
    """Four heads of 64 or eight of 16: the width has to be a multiple of a block of 64."""
    heads = {"heads": 4, "head_dim": 64} if variant != "40b" else {}
    make_checkpoint(tmp_path, variant, max_positions=512, layers=1, **heads)
    paged = make_paged_worker(tmp_path, quantize=quantize, max_batch_total_tokens=4096)
    assert paged.quantization == quantize
    plain = make_worker(tmp_path, quantize=quantize, max_batch_total_tokens=4096)
    check_equal(generate(paged, 50), generate(plain, 50))


@pytest.mark.parametrize("variant", ["7b", "rw-1b"])
def test_the_same_with_the_kernels(variant: str, tmp_path: Path) -> None:
    """In Triton's interpreter, so short: prefill in two chunks, then a step of decoding."""
    assert SHAPES[variant].head_dim == 16
    make_checkpoint(tmp_path, variant, max_positions=64, layers=1, vocab_size=96)
    results = []
    for worker in (
        make_paged_worker(tmp_path, fused_ops(), max_batch_total_tokens=512),
        make_worker(tmp_path, max_batch_total_tokens=512),
    ):
        driver = PlanDriver(worker)
        rows = [
            driver.sequence(row, [token % 96 for token in prompt(9 + 9 * row, row)], sampling=wish)
            for row, wish in enumerate((GREEDY, WISHES["sampled and penalties"]))
        ]
        driver.run(rows, 2, chunk=10)
        results.append(rows)
    check_equal(*results)


def overlapped(worker: Worker, wishes: list[SamplingParams], steps: int) -> list[list[int]]:
    """Every step is submitted before the tokens of the one before it are collected."""
    size = 16
    starts, first, held = [], [], []
    for row, wish in enumerate(wishes):
        ids = prompt(5 + 14 * row, row)
        blocks = list(range(10 * row, 10 * row + -(-len(ids) // size)))
        starts.append(RowStart(row, ids, len(ids), wish))
        first.append(RowSlice(row, 0, len(ids), blocks, True))
        held.append(len(blocks))
    tokens: list[list[int]] = [[] for _ in wishes]
    worker.submit(StepPlan(0, starts, first))
    ends = [each.count for each in first]
    for number in range(1, steps):
        slices = []
        for row, end in enumerate(ends):
            new = [10 * row + held[row]] if end == held[row] * size else []
            held[row] += len(new)
            slices.append(RowSlice(row, end, 1, new, True))
            ends[row] += 1
        worker.submit(StepPlan(number, [], slices))
        for token in worker.collect().sampled:
            tokens[token.row].append(token.token_id)
    for token in worker.collect().sampled:
        tokens[token.row].append(token.token_id)
    return tokens


@pytest.mark.parametrize(
    "names", [["greedy", "sampled", "penalties"], list(WISHES)], ids=["usual", "all"]
)
def test_a_step_may_be_submitted_before_its_tokens_are_known(
    names: list[str], tmp_path: Path
) -> None:
    """Where a row's draw needs them on the host, the steps before it land first."""
    make_checkpoint(tmp_path, "7b", max_positions=256)
    wishes = [WISHES[name] for name in names]
    worker = make_paged_worker(tmp_path, max_batch_total_tokens=4096)
    found = overlapped(worker, wishes, 20)
    driver = PlanDriver(make_worker(tmp_path, max_batch_total_tokens=4096))
    rows = [
        driver.sequence(row, prompt(5 + 14 * row, row), sampling=wish)
        for row, wish in enumerate(wishes)
    ]
    driver.run(rows, 20)
    assert found == [each.generated for each in rows]


def test_a_row_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b", max_positions=256)
    worker = make_paged_worker(tmp_path, max_batch_total_tokens=4096)
    starts = [RowStart(row, prompt(20, row), 20, GREEDY) for row in (0, 1)]
    slices = [RowSlice(row, 0, 20, [2 * row, 2 * row + 1], True) for row in (0, 1)]
    clean = worker.step(StepPlan(0, starts, slices)).sampled
    with torch.inference_mode():
        worker.cache.layers[0].blocks[1, 3] = torch.nan  # the second block of row 1, values only
    output = worker.step(
        StepPlan(1, [], [RowSlice(0, 20, 1, [], True), RowSlice(1, 20, 1, [], True)])
    )
    assert [each.row for each in clean] == [0, 1]
    assert [each.row for each in output.sampled] == [0]
    assert [each.row for each in output.failures] == [1]


def test_bad_parameters_fail_their_row_only(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "7b", max_positions=256)
    worker = make_paged_worker(tmp_path, max_batch_total_tokens=4096)
    bad = SamplingParams(logit_bias=((999, 1.0),))
    starts = [RowStart(0, [1, 2], 2, bad), RowStart(1, [1, 2], 2, GREEDY)]
    slices = [RowSlice(row, 0, 2, [row], True) for row in (0, 1)]
    output = worker.step(StepPlan(0, starts, slices))
    assert [each.row for each in output.failures] == [0]
    assert [(each.row, type(each)) for each in output.sampled] == [(1, SampledToken)]


def test_the_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    """Memory is measured with the largest steps; the worker is as new after it."""
    make_checkpoint(tmp_path, "7b", max_positions=256)
    worker = make_paged_worker(tmp_path, max_batch_prefill_tokens=700, max_total_tokens=200)
    assert worker.num_blocks == 512
    assert not worker.cache.layers[0].blocks.any()
    worker.warmup()
    assert not worker.cache.layers[0].blocks.any()


def test_a_gpu_that_is_too_old_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below 7.5 at once, of 7.5 where bfloat16 is asked of it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    options = EngineOptions(model_path="", device="cuda")
    with pytest.raises(ConfigError, match=r"Tesla V100 has compute capability 7.0; .*--device cpu"):
        make_platform(options)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    platform = make_platform(options)
    spec = load_spec(make_checkpoint(tmp_path, "7b", max_positions=64))
    storage = Storage(None, False, "bfloat16")
    with pytest.raises(ConfigError, match=r"bfloat16 needs .* 8.0; this one has 7.5: .*float16"):
        platform.parts(Shard(spec, 0, 1, 1), storage, options, 64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"--device cuda: no GPU can be used .*--device cpu"):
        make_platform(EngineOptions(model_path="", device="cuda"))
    assert make_platform(EngineOptions(model_path="", device="auto")).name == "cpu"
