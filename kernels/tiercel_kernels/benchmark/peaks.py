"""What the card can do, measured before anything is held against it: copy, read, 16-bit GEMM."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from tiercel_kernels.benchmark.bounds import Limits
from tiercel_kernels.benchmark.timing import time_calls

COPY_BYTES = 2 << 30
GEMM_SIDE = 8192
_CPU_COPY_BYTES = 1 << 24  # where the same is only tried out
_CPU_GEMM_SIDE = 128


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes and FLOP per second. A copy counts what it reads and what it writes."""

    copy: float
    read: float
    gemm: float

    @property
    def limits(self) -> Limits:
        """The larger of the two bandwidths: decoding reads far more than it writes."""
        return Limits(max(self.copy, self.read), self.gemm)

    def to_json(self) -> dict[str, Any]:
        """Rounded, in TB/s and TFLOP/s."""
        units = {"copy": "copy_tb_s", "read": "read_tb_s", "gemm": "gemm_tflop_s"}
        return {units[name]: round(value / 1e12, 3) for name, value in asdict(self).items()}


def measure_peaks(device: torch.device) -> Peaks:
    """Copy of 2 GiB, sum of as many, and the product of two bfloat16 [8192, 8192]."""
    on_gpu = device.type == "cuda"
    size_bytes = COPY_BYTES if on_gpu else _CPU_COPY_BYTES
    side = GEMM_SIDE if on_gpu else _CPU_GEMM_SIDE
    copy_us, read_us = _memory_us(device, size_bytes // 4)
    gemm_us = _gemm_us(device, side)
    return Peaks(
        2 * size_bytes / copy_us * 1e6, size_bytes / read_us * 1e6, 2 * side**3 / gemm_us * 1e6
    )


def _memory_us(device: torch.device, numbers: int) -> tuple[float, float]:
    """A copy of so many float32 numbers, and their sum."""
    source = torch.rand(numbers, device=device)
    target = torch.empty_like(source)
    copy = time_calls([lambda: target.copy_(source)], device)
    return copy.median_us, time_calls([source.sum], device).median_us


def _gemm_us(device: torch.device, side: int) -> float:
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    return time_calls([lambda: torch.mm(left, right, out=out)], device).median_us
