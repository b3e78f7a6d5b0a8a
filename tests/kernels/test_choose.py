"""What choose_ops takes, what it says, and that both implementations have every op."""

import inspect
import logging
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import torch

from tiercel_kernels.choose import (
    MINIMUM_CAPABILITY,
    DeviceTooOld,
    choose_ops,
    fused_ops,
    reference_ops,
)
from tiercel_kernels.ops import Ops

ROOT = Path(__file__).parents[2]
NAMES = [field.name for field in fields(Ops) if field.name not in ("name", "reason")]


def test_a_cpu_gets_the_reference_and_one_line_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tiercel_kernels"):
        ops = choose_ops(torch.device("cpu"))
    assert ops.name == "reference"
    expected = (
        "kernels on cpu: reference, because the device is a cpu and Triton's kernels are for CUDA"
    )
    assert caplog.messages == [expected]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_kernels(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tiercel_kernels"):
        assert choose_ops(torch.device("cuda")).name == "fused"
    assert "compute capability" in caplog.messages[0]


def test_a_gpu_below_turing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    for capability in ((7, 2), (7, 0), (6, 1)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, it=capability: it)
        number = ".".join(map(str, capability))
        with pytest.raises(DeviceTooOld, match=f"Tesla V100 has compute capability {number}; the "):
            choose_ops(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: MINIMUM_CAPABILITY)
    assert choose_ops(torch.device("cuda")).name == "fused"


@pytest.mark.parametrize("name", NAMES)
def test_both_implementations_take_the_same_arguments(name: str) -> None:
    ours, theirs = getattr(fused_ops(), name), getattr(reference_ops(), name)
    assert ours is not theirs
    assert inspect.signature(ours) == inspect.signature(theirs)


def test_ops_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        reference_ops().gelu = reference_ops().gelu


def test_no_triton_is_needed_to_import_or_to_run_the_reference() -> None:
    """A finder that refuses triton stands in for an environment without it."""
    code = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("triton", "tiercel"):
            raise ModuleNotFoundError(name)
        return None

sys.meta_path.insert(0, Refuse())
import torch
from tiercel_kernels.choose import choose_ops
ops = choose_ops(torch.device("cpu"))
print(ops.gelu(torch.zeros(1, 2)).tolist())
"""
    path = str(ROOT / "kernels")
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": path},
    )
    assert run.stdout.strip() == "[[0.0, 0.0]]", run.stderr
