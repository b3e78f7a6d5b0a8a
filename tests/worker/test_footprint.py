"""The memory table of the start: what is planned is what is there."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from support.checkpoints import VARIANTS, make_checkpoint
from tiercel.engine.assemble import assemble
from tiercel.plan.sizes import Storage
from tiercel.wire.options import EngineOptions
from tiercel.worker.footprint import Measured, log_rows, memory_rows
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
    # The plan is of the weights' own bytes; FBGEMM fills columns up to 512, a third of these tiny
    # ones and a hundredth of a published model's.
    monkeypatch.setattr("tiercel.quantization.unquantized.fbgemm_has_half", lambda: False)
    make_checkpoint(tmp_path, variant, dtype="bfloat16")
    worker = Worker(EngineOptions(model_path=str(tmp_path), quantize=quantize, threads=1))
    spec = worker.load()
    found = Measured(
        weights=worker.model.nbytes,
        copied_head=worker.model.copied_head,
        cache=0,
        cache_tokens=0,
        warm_up=None,
        warm_up_tokens=8,
        prefill_tokens=64,
        max_rows=4,
    )
    row = memory_rows(spec, worker.storage, found)[0]
    assert row.part == f"weights in {quantize or 'bfloat16'}"
    assert row.measured == pytest.approx(row.planned, rel=0.01)
    assert worker.storage == Storage(quantize, double_quant, "bfloat16")


def test_the_engine_logs_the_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_checkpoint(tmp_path, "40b")
    options = EngineOptions(
        model_path=str(tmp_path), quantize="bitsandbytes-nf4", double_quant=True,
        max_batch_total_tokens=1024, threads=1, max_concurrent_requests=4, grammar_support=False,
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="tiercel.worker.footprint"):
        _, ready = assemble(options, lambda step: None)
    assert ready.quantize == "bitsandbytes-nf4+double-quant"
    text = "\n".join(caplog.messages)
    assert "memory of the weights in bitsandbytes-nf4 --double-quant: " in text
    cache = next(line for line in caplog.messages if "KV cache, 1024 tokens" in line)
    assert cache.endswith("0.5 MB planned, 0.5 MB measured")
    assert len(caplog.messages) == 5


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
