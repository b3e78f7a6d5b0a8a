"""How long a call takes on a device: CUDA graphs timed by events, or a clock on a CPU.

Cold caches come from the caller: it hands in calls on so many different inputs that what one call
reads has left the L2 by its next turn.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]

RUNS = 7
_CPU_RUNS = 2  # where a benchmark is only tried out
_WARM_UPS = 2
_LEAST_LAUNCHES = 20  # in a graph: the start of a replay, some 5 us, is shared by all of them
_MOST_LAUNCHES = 400
_GRAPH_US = 2_000.0  # what a replay should take


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds per call over several runs."""

    median_us: float
    low_us: float
    high_us: float
    runs: int
    how: str  # "graph": launched from a CUDA graph; "events": one by one; "clock": on a CPU

    @classmethod
    def of(cls, samples_us: Sequence[float], how: str) -> "Timing":
        """Median and spread of the samples."""
        return cls(
            statistics.median(samples_us), min(samples_us), max(samples_us), len(samples_us), how
        )


def time_calls(
    calls: Sequence[Call], device: torch.device, *, graph: bool = True, runs: int | None = None
) -> Timing:
    """The time of one of `calls`, all of the same kind, run in turn.

    graph: from a CUDA graph, as a decode step runs them, so that launches cost no time of the CPU.
    Without it, or where a call cannot be captured, they are launched one by one, which for short
    ones is the time of the launches.
    """
    runs = runs or (RUNS if device.type == "cuda" else _CPU_RUNS)
    with torch.inference_mode():
        if device.type != "cuda":
            return _by_clock(calls, runs)
        with torch.cuda.device(device):
            _settle(calls)
            first_us = _elapsed_us(lambda: _run(calls)) / len(calls)
            if graph and not _waits(calls[0]):
                try:
                    return _by_graph(calls, first_us, runs)
                except RuntimeError:  # something else that no graph can hold
                    torch.cuda.synchronize()  # raises where the device itself is lost
            return _by_events(calls, first_us, runs)


def _run(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _settle(calls: Sequence[Call]) -> None:
    """Twice on a side stream: compiled, and with the workspaces that a capture may not make."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _run(calls)
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()


def _waits(call: Call) -> bool:
    """Whether it waits for the device, as by reading a number on the host.

    Asked before a capture, since one that fails leaves torch's random numbers unusable.
    """
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return False


def _rounds(calls: Sequence[Call], first_us: float) -> int:
    """How often all calls are run in one timed run."""
    wanted = max(_LEAST_LAUNCHES, min(_MOST_LAUNCHES, _GRAPH_US / max(first_us, 1.0)))
    if first_us > _GRAPH_US:
        wanted = 1
    return max(1, round(wanted / len(calls)))


def _by_graph(calls: Sequence[Call], first_us: float, runs: int) -> Timing:
    rounds = _rounds(calls, first_us)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            _run(calls)
    for _ in range(_WARM_UPS):
        graph.replay()
    samples = [_elapsed_us(graph.replay) / (rounds * len(calls)) for _ in range(runs)]
    graph.reset()
    return Timing.of(samples, "graph")


def _by_events(calls: Sequence[Call], first_us: float, runs: int) -> Timing:
    rounds = _rounds(calls, first_us)

    def repeat() -> None:
        for _ in range(rounds):
            _run(calls)

    samples = [_elapsed_us(repeat) / (rounds * len(calls)) for _ in range(runs)]
    return Timing.of(samples, "events")


def _elapsed_us(work: Callable[[], object]) -> float:
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3


def _by_clock(calls: Sequence[Call], runs: int) -> Timing:
    _run(calls)
    samples = []
    for _ in range(runs):
        began = time.perf_counter()
        _run(calls)
        samples.append((time.perf_counter() - began) * 1e6 / len(calls))
    return Timing.of(samples, "clock")
