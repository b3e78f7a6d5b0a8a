"""The memory table of the start: what is planned is what is there."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.checkpoints import VARIANTS, make_checkpoint
from support.paged_workers import make_paged_worker
from tiercel.engine.assemble import assemble
from tiercel.parallel.shard import Shard
from tiercel.plan.memory import Workload
from tiercel.plan.models import PUBLISHED
from tiercel.plan.offload import offloaded_bytes
from tiercel.plan.sizes import Storage
from tiercel.wire.options import EngineOptions
from tiercel.worker.footprint import Found, log_rows, memory_rows, start_plan
from tiercel.worker.memory import HEADROOM
from tiercel.worker.worker import Worker

MODES = ((None, False), ("bitsandbytes", False), ("bitsandbytes-nf4", False))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("quantize", "double_quant"), MODES, ids=str)
def test_planned_weights_are_the_measured_ones(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
    quantize: str | None,
    double_quant: bool,
) -> None:
    # The plan is of the weights' own bytes; FBGEMM fills columns up to 512, most of these tiny ones
    # and a hundredth of a published model's.
    monkeypatch.setattr("tiercel.quantization.unquantized.fbgemm_has_half", lambda: False)
    make_checkpoint(tmp_path, variant, dtype="bfloat16")
    worker = Worker(EngineOptions(model_path=str(tmp_path), quantize=quantize, threads=1))
    spec = worker.load()
    rows = memory_rows(spec, worker.storage, worker._options, Workload(64, 4), worker.found)
    (row,) = (row for row in rows if row.part == "weights")
    assert row.note == f", in {quantize or 'bfloat16'}"
    assert row.measured == pytest.approx(row.planned, rel=0.01)
    assert worker.storage == Storage(quantize, double_quant, "bfloat16")


PARTS = [
    "memory", "headroom", "CUDA context and libraries", "weights",
    "activations, 1,024 prompt tokens a step", "logits, 4 rows", "CUDA graphs",
    "left for the KV cache",
]  # fmt: skip


def test_the_engine_logs_the_table_of_the_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_checkpoint(tmp_path, "40b")
    options = EngineOptions(
        model_path=str(tmp_path), quantize="bitsandbytes-nf4", double_quant=True,
        max_batch_total_tokens=1024, threads=1, max_concurrent_requests=4, grammar_support=False,
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="tiercel.worker.footprint"):
        _, ready = assemble(options, lambda step: None)
    assert ready.quantize == "bitsandbytes-nf4+double-quant"
    lines = [line.removeprefix("memory plan, ") for line in caplog.messages]
    # A CPU has no context and no graphs; no largest step is tried on it.
    parts = [part for part in PARTS if "CUDA" not in part]
    assert [line.partition(": ")[0] for line in lines] == [
        *parts, "KV cache, 1,024 tokens", "activations, 256 prompt tokens to warm up",
    ]  # fmt: skip
    said = dict(zip([*parts, "cache", "warm-up"], lines, strict=True))
    assert said["cache"].endswith("0.5 MB planned, 0.5 MB measured")
    assert said["weights"].endswith(" measured, in bitsandbytes-nf4 --double-quant")
    assert said["logits, 4 rows"].endswith(" planned, not measured")
    assert said["headroom"].endswith(" measured, free now")


def test_the_table_of_a_gpu(tmp_path: Path) -> None:
    """All that a GPU's worker does but what torch.cuda alone can say, and the parts add up."""
    make_checkpoint(tmp_path, "40b")
    worker = make_paged_worker(tmp_path)
    worker.warmup()
    worker.found.context, worker.found.graphs = 300_000_000, 200_000_000
    load = Workload(1024, 4)
    rows = memory_rows(worker.spec, worker.storage, worker._options, load, worker.found)
    assert [row.part for row in rows] == [*PARTS, f"KV cache, {worker.found.cache_tokens:,} tokens"]
    memory, *others = (row.planned for row in rows[: len(PARTS)])
    assert memory == worker.found.memory == sum(others)
    text = dict(zip(PARTS, map(str, rows), strict=False))
    assert text["CUDA context and libraries"].endswith(
        "500.0 MB planned, 300.0 MB measured, with all else on the card"
    )
    assert text["CUDA graphs"].endswith("200.0 MB measured")
    assert text["logits, 4 rows"].endswith("not measured by themselves")
    if worker.found.steps is not None:  # this system says how large a process has been
        assert text["activations, 1,024 prompt tokens a step"].endswith("measured, with the logits")


@pytest.mark.parametrize(
    "options", [{"quantize": "bitsandbytes"}, {"cpu_offload_gb": 1e-6}], ids=["quantized", "host"]
)
def test_the_place_of_one_weight_is_as_large_as_planned(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    make_checkpoint(tmp_path, "40b")
    worker = make_paged_worker(tmp_path, **options)
    given = worker._options
    rows = memory_rows(worker.spec, worker.storage, given, Workload(1024, 4), worker.found)
    (row,) = (row for row in rows if row.part == "one weight in the activations' type")
    assert row.measured == row.planned > 0


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_parts_of_a_cpu_add_up(fraction: float) -> None:
    found = Found("cpu", memory=64_000_000_000, left=1)
    spec, storage = PUBLISHED["falcon-7b"], Storage("bitsandbytes", False, "bfloat16")
    options = EngineOptions("somewhere", memory_fraction=fraction)
    rows = memory_rows(spec, storage, options, Workload(), found)
    (memory, *others), (left,) = (
        [row.planned for row in rows[:6]],
        [row.planned for row in rows if row.part == "left for the KV cache"],
    )
    assert memory == sum(others)
    weights = next(row.planned for row in rows if row.part == "weights")
    assert left == int((memory - weights) * fraction * (1 - HEADROOM))


def test_what_stays_with_the_host_is_not_planned_for_the_card() -> None:
    spec, storage = PUBLISHED["falcon-7b"], Storage(None, False, "bfloat16")
    found, load = Found("cuda", memory=24_000_000_000), Workload()
    whole = start_plan(spec, storage, EngineOptions("somewhere"), load, found)
    options = EngineOptions("somewhere", cpu_offload_gb=4.0, cuda_graphs=False)
    part = start_plan(spec, storage, options, load, found)
    host = offloaded_bytes(Shard(spec), storage, 4.0)
    assert whole.weights - part.weights == host >= 4e9
    assert whole.staging == 0 and part.staging == 18176 * 4544 * 2
    assert part.graphs == 0 < whole.graphs


def test_growth_is_what_a_call_takes_for_itself() -> None:
    size = 200_000_000
    # In a process of its own: here, memory that other tests have given back would be used again.
    script = (
        "import torch\nfrom tiercel.worker.footprint import growth\n"
        f"print(growth(lambda: torch.zeros({size} // 4).add_(1.0).sum()))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown = None if run.stdout.strip() == "None" else int(run.stdout)
    if grown is None:
        pytest.skip("this system does not say how large a process has been")
    assert 0.9 * size < grown < 1.6 * size


def test_rows_are_logged_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tiercel.worker.footprint"):
        log_rows([])
    assert caplog.messages == []
