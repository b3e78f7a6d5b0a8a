"""How long the device does nothing between steps, from the times of its kernels and copies."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

Interval = tuple[float, float]  # begin and end, in microseconds


@dataclass(frozen=True)
class Idle:
    """Microseconds per step."""

    between_us: float  # the one long gap of each step: median
    inside_us: float  # all shorter gaps of a step together: what lies between its kernels
    busy_us: float


def gaps(intervals: Iterable[Interval]) -> tuple[list[float], float]:
    """Lengths of the stretches in which nothing ran, and the time in which something did."""
    ordered = sorted(intervals)
    if not ordered:
        return [], 0.0
    found: list[float] = []
    begin, end = ordered[0]
    busy = 0.0
    for start, stop in ordered[1:]:
        if start > end:
            found.append(start - end)
            busy += end - begin
            begin, end = start, stop
        else:
            end = max(end, stop)
    return found, busy + end - begin


def idle_of(intervals: Iterable[Interval], steps: int) -> Idle:
    """Of `steps` steps one behind the other: the steps - 1 longest gaps are those between them.

    Raises ValueError where nothing ran at all, as where the profiler may not see the device.
    """
    found, busy = gaps(intervals)
    if busy == 0.0 or steps < 2:
        raise ValueError("the profiler saw nothing run on the device")
    found.sort(reverse=True)
    between, inside = found[: steps - 1], found[steps - 1 :]
    return Idle(statistics.median(between) if between else 0.0, sum(inside) / steps, busy / steps)


class DeviceTimes:
    """Records what runs on the CUDA device between `start` and `stop`."""

    def __init__(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CUDA])

    def start(self) -> None:
        self._profile.start()

    def stop(self) -> list[Interval]:
        """Everything that ran, kernels and copies; waits for the device."""
        torch.cuda.synchronize()
        self._profile.stop()
        events = self._profile.events() or ()  # type: ignore[no-untyped-call]
        return [
            (float(event.time_range.start), float(event.time_range.end))
            for event in events
            if event.device_type.name == "CUDA"
        ]
