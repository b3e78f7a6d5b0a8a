"""The bench itself on a CPU: a tiny model through the real loop, and transformers beside it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tiercel.bench.gpu import baseline
from tiercel.bench.gpu.engine import MAX_TOTAL_TOKENS, PROMPT_TOKENS, BenchEngine, Recorder
from tiercel.bench.gpu.stages import FORTY_ROWS, STAGES, engine_rows, transformers_rows
from tiercel.plan.cards import CARDS
from tiercel.plan.memory import Workload, plan_memory
from tiercel.plan.models import PUBLISHED
from tiercel.plan.sizes import Storage
from tiercel.wire.messages import EngineStats, EngineStep, StepTiming, Token, TokenDelta
from tiercel_kernels.benchmark.bounds import FalconShape
from tiercel_kernels.benchmark.peaks import Peaks

CPU = torch.device("cpu")
TINY = FalconShape("tiny", 2, 64, 4, 1, 16, 96, 300, True)
PEAKS = Peaks(1e10, 1e10, 1e11)
STATS = EngineStats(*[0] * 11)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchEngine]:
    folder = tmp_path_factory.mktemp("model")
    yield BenchEngine(folder, TINY, CPU, dtype="float32", max_rows=4, max_total_tokens=200)


@pytest.mark.parametrize("batch", [1, 4])
def test_steps_of_a_full_batch(engine: BenchEngine, batch: int) -> None:
    found = engine.decode(batch, prompt_tokens=20, steps=6)
    assert found.timing.runs == 6
    assert 0 < found.timing.low_us <= found.timing.median_us
    assert 28 < found.context < 50  # behind the prompt, the settling steps and half of the timed


def test_the_device_is_watched_during_the_timed_steps_only(engine: BenchEngine) -> None:
    calls: list[str] = []

    def stop() -> list[tuple[float, float]]:
        calls.append("stop")
        return [(0.0, 1.0)]

    found = engine.decode(
        2, prompt_tokens=20, steps=5, start=lambda: calls.append("start"), stop=stop
    )
    assert calls == ["start", "stop"]
    assert (found.intervals, found.watched_steps) == ([(0.0, 1.0)], 6)


def test_too_few_steps_are_an_error(engine: BenchEngine) -> None:
    with pytest.raises(RuntimeError, match="of 500 steps before the end"):
        engine.decode(1, prompt_tokens=20, steps=500)


def test_a_prompt(engine: BenchEngine) -> None:
    timing = engine.prefill(100, runs=3)
    assert timing.runs == 3
    assert timing.low_us > 0


def test_steps_with_prefill_or_fewer_rows_do_not_count() -> None:
    recorder = Recorder(2, 100)

    def step(rows: int, prefill: int = 0) -> None:
        timing = StepTiming(prefill, rows, 0.0, 0.0, 0)
        deltas = [TokenDelta(row, [Token(1, 0.0)]) for row in range(rows)]
        recorder(EngineStep(0, deltas, STATS, timing))

    for _ in range(20):
        step(2, prefill=5)
        step(1)
    assert recorder.samples_us == []
    for _ in range(12):
        time.sleep(0.001)
        step(2)
    assert len(recorder.samples_us) == 3  # behind eight that settle, and the one that begins
    assert all(each > 1000 for each in recorder.samples_us)
    assert recorder.contexts[-1] == (20 * 3 + 12 * 2) / 2
    step(1)
    step(2)
    assert len(recorder.samples_us) == 3


def test_rows_of_a_model() -> None:
    lengths = {"batches": (1, 2), "prompt_tokens": 20, "prefill_tokens": 50}
    sizes = {"dtype": "float32", "max_rows": 2, "max_total_tokens": 200}
    rows = list(engine_rows(TINY, CPU, PEAKS, **lengths, **sizes))  # type: ignore[arg-type]
    assert [row["kind"] for row in rows] == ["decode", "decode", "prefill"]
    assert all(
        row["fraction"] == pytest.approx(row["bound_us"] / row["us"], abs=2e-3) for row in rows
    )


@pytest.mark.parametrize(
    ("quantize", "storage"), [("bitsandbytes", "int8"), ("bitsandbytes-nf4", "nf4")]
)
def test_rows_of_a_quantized_model(quantize: str, storage: str) -> None:
    lengths = {"batches": (1,), "prompt_tokens": 20, "prefill_tokens": 50}
    sizes = {"dtype": "float32", "max_rows": 2, "max_total_tokens": 200}
    rows = list(engine_rows(TINY, CPU, PEAKS, quantize=quantize, **lengths, **sizes))  # type: ignore[arg-type]
    assert {row["storage"] for row in rows} == {storage}
    assert rows[0]["case"].startswith(f"tiny in {storage}, decode, 1 x ")
    plain = list(engine_rows(TINY, CPU, PEAKS, **lengths, **sizes))  # type: ignore[arg-type]
    assert rows[0]["bound_us"] < plain[0]["bound_us"]  # by memory; a prompt is by arithmetic
    assert not any("switches" in row for row in rows)


@pytest.mark.parametrize("shape", [TINY, FalconShape("g", 2, 64, 4, 2, 16, 96, 300, True, norms=2)])
def test_transformers_generates_as_many_tokens(shape: FalconShape) -> None:
    model = baseline.make_model(shape, CPU)
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() is torch.float32
    timing = baseline.generate(model, 2, prompt_tokens=5, new_tokens=12)
    assert (timing.runs, timing.how) == (5, "eager")  # 12 tokens, 6 of them to settle
    timing = baseline.generate(model, 1, static=True, prompt_tokens=5, new_tokens=6)
    assert timing.how == "static, not compiled"


def test_rows_of_transformers_name_what_they_copy() -> None:
    shape = FalconShape("g", 2, 64, 4, 2, 16, 96, 300, True, norms=2)
    lengths = {"prompt_tokens": 5, "new_tokens": 8}
    (row,) = transformers_rows(shape, CPU, PEAKS, batches=(1,), static=False, **lengths)
    assert row["note"] == "it copies keys and values 2-fold"
    assert (row["of"], row["context"]) == ("transformers", 9.0)


def test_stages_are_ordered_by_what_matters() -> None:
    assert list(STAGES)[:2] == ["falcon-7b", "idle"]
    assert {"7b-int8", "7b-nf4", "40b-int8"} <= {*STAGES}


def test_40b_in_int8_fits_a_card_of_80_gb() -> None:
    """What the stage asks for, beside what the plan keeps for the rest."""
    spec, storage = PUBLISHED["falcon-40b"], Storage("bitsandbytes", False, "bfloat16")
    tokens = FORTY_ROWS * (PROMPT_TOKENS + 4 * 40 + 128) + MAX_TOTAL_TOKENS
    load = Workload(prefill_tokens=8192, max_rows=FORTY_ROWS)
    assert tokens < plan_memory(spec, storage, CARDS["h100"], 1, load).cache_tokens


def test_a_folder_without_weights_is_all_it_writes(tmp_path: Path) -> None:
    BenchEngine(tmp_path / "model", TINY, CPU, dtype="float32", max_rows=1, max_total_tokens=200)
    assert [each.name for each in (tmp_path / "model").iterdir()] == ["config.json"]
