"""Weights that stay with the host are locked, no more than they are. The runtime is a fake."""

import gc
import logging

import pytest
import torch

from tiercel.quantization.page_locked import PAGE, page_locked

CPU = torch.device("cpu")


class Runtime:
    """As cudart, but it only keeps the books; refuses ranges whose pages are locked already."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.locked: dict[int, int] = {}

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:
        assert flags == 0
        assert pointer % PAGE == size % PAGE == 0
        for first, length in self.locked.items():
            assert pointer + size <= first or first + length <= pointer
        if self.status == 0:
            self.locked[pointer] = size
        return self.status

    def cudaHostUnregister(self, pointer: int) -> int:
        del self.locked[pointer]
        return 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_much_as_it_is(dtype: torch.dtype) -> None:
    runtime = Runtime()
    weights = [torch.randn(shape).to(dtype) for shape in ((3, 5), (4672, 568), (1025, 1024))]
    # Columns that are taken out of a tensor, too.
    weights.append(torch.randn(64, 96).to(dtype)[:, ::2])
    kept = [page_locked(weight, runtime, CPU) for weight in weights]
    for weight, place in zip(weights, kept, strict=True):
        assert torch.equal(weight, place)
        assert place.is_contiguous()
        assert weight.nbytes <= runtime.locked[place.data_ptr()] < weight.nbytes + PAGE


def test_what_dies_is_let_go() -> None:
    runtime = Runtime()
    kept = [page_locked(torch.randn(64, 64), runtime, CPU) for _ in range(3)]
    assert len(runtime.locked) == 3
    last = kept.pop()
    kept.clear()
    gc.collect()
    assert list(runtime.locked) == [last.data_ptr()]


def test_what_the_runtime_refuses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then it is torch's pinned memory, and the log says that it takes more."""
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda each: pinned.append(each) or each)
    weight = torch.randn(500, 1000)
    with caplog.at_level(logging.WARNING):
        place = page_locked(weight, Runtime(status=2), CPU)
    assert torch.equal(place, weight)
    assert len(pinned) == 1
    assert "2 MB of the host's memory could not be page-locked" in caplog.text
    assert "CUDA error 2" in caplog.text
