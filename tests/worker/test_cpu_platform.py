"""What the CPU's platform hands on to attention and to the choice of threads."""

from pathlib import Path

import pytest
import torch

from support.checkpoints import make_checkpoint
from support.workers import make_worker
from tiercel import eyas
from tiercel.layers.half import fbgemm_has_half
from tiercel.layers.linear import OneOrMore
from tiercel.quantization import unquantized
from tiercel.worker import cpu


def test_prompts_and_decodes_have_the_types_this_cpu_is_fast_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Noting(cpu.CpuAttention):
        def __init__(self, *args: int, arithmetic: cpu.Arithmetic, **options: object) -> None:
            super().__init__(*args, arithmetic=arithmetic, **options)  # type: ignore[arg-type]
            made.append(arithmetic)

    monkeypatch.setattr(cpu, "CpuAttention", Noting)
    monkeypatch.setattr(cpu, "fast_dtype", lambda dtype: torch.float32)
    monkeypatch.setattr(cpu, "decoding_dtype", lambda dtype: dtype)
    make_checkpoint(tmp_path, "7b", dtype="bfloat16")
    make_worker(tmp_path)
    (arithmetic,) = made
    assert arithmetic.slices is torch.float32
    assert arithmetic.decodes is torch.bfloat16


def test_threads_go_by_the_weights_and_not_by_what_layers_keep_besides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """16 streams of eyas take one core, the HTTP process the other."""
    if not fbgemm_has_half():
        pytest.skip("FBGEMM has no half-float GEMM on this machine")
    monkeypatch.setattr(unquantized, "onednn_has", lambda dtype: False)
    worker = make_worker(eyas.path(), threads=2)
    assert isinstance(worker.model.layers[0].mlp.down, OneOrMore)  # type: ignore[attr-defined]
    assert worker.weights_bytes > 20e6
    assert worker.runner._threads.use(16) == 1  # type: ignore[attr-defined]
    assert worker.runner._threads.use(512) == 2  # type: ignore[attr-defined]
