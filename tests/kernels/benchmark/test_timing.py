"""What is timed, how it is told, and that the inputs of a case take turns."""

import time
from unittest.mock import sentinel

import pytest
import torch

from tiercel_kernels.benchmark.peaks import Peaks, measure_peaks
from tiercel_kernels.benchmark.timing import Timing, time_calls

CPU = torch.device("cpu")
CUDA = pytest.param(
    torch.device("cuda"),
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


def test_median_and_spread() -> None:
    timing = Timing.of([3.0, 1.0, 10.0], "clock")
    assert (timing.median_us, timing.low_us, timing.high_us, timing.runs) == (3.0, 1.0, 10.0, 3)


def test_the_time_of_one_call_and_all_of_them_in_turn() -> None:
    ran = []

    def call(name: str) -> object:
        ran.append(name)
        time.sleep(0.002)
        return sentinel.nothing

    timing = time_calls([lambda: call("a"), lambda: call("b")], CPU, runs=3)
    assert ran == ["a", "b"] * 4  # once to settle
    assert 2_000 <= timing.low_us <= timing.median_us <= timing.high_us
    assert timing.how == "clock"


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_peaks_are_plausible(device: torch.device) -> None:
    peaks = measure_peaks(device)
    assert all(1e8 < each < 1e16 for each in (peaks.copy, peaks.read, peaks.gemm))
    assert peaks.limits.bandwidth == max(peaks.copy, peaks.read)


def test_peaks_in_units_of_a_table() -> None:
    shown = Peaks(3.0e12, 3.2e12, 789.123456e12).to_json()
    assert shown == {"copy_tb_s": 3.0, "read_tb_s": 3.2, "gemm_tflop_s": 789.123}


@pytest.mark.parametrize("device", [CUDA])
def test_a_graph_is_used_where_one_can_be_and_says_so(device: torch.device) -> None:
    x = torch.rand(1 << 20, device=device)
    assert time_calls([lambda: x.mul_(1.0)], device).how == "graph"
    # Reading a number on the host cannot be captured; the device goes on afterwards.
    assert time_calls([lambda: x[0].item()], device).how == "events"
    assert time_calls([lambda: x.mul_(1.0)], device).how == "graph"


@pytest.mark.parametrize("device", [CUDA])
def test_a_large_copy_is_timed_as_by_the_peaks(device: torch.device) -> None:
    source = torch.rand(1 << 28, device=device)
    target = torch.empty_like(source)
    timing = time_calls([lambda: target.copy_(source)], device)
    found = 2 * source.nbytes / timing.median_us * 1e6
    assert found == pytest.approx(measure_peaks(device).copy, rel=0.15)
