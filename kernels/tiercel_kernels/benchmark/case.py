"""One case of a benchmark: checked against the reference first, then timed, then a row of figures.

A kernel whose results are wrong gets no figure.
"""

import gc
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tiercel_kernels.benchmark.bounds import op_s
from tiercel_kernels.benchmark.machine import free_bytes, l2_bytes
from tiercel_kernels.benchmark.peaks import Peaks
from tiercel_kernels.benchmark.timing import Call, Timing, time_calls

# Inputs of one case together, in caches of the L2's size: what a call reads has left it when its
# turn comes again.
_ROTATED_L2 = 8
_MOST_COPIES = 48
_FREE_SHARE = 0.4
# Of the largest expected number.
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}

Row = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """One set of inputs of a case, bound to what is timed."""

    ours: Call
    check: Callable[[], str]  # runs the kernel and the reference; says what is wrong, or ""
    rivals: Mapping[str, Call] = field(default_factory=dict)  # what others offer for the same


@dataclass(frozen=True)
class Case:
    """What is measured. `prepare` makes inputs on a device, others for every seed."""

    name: str
    moved_bytes: float  # the least traffic: everything read and written, each once
    prepare: Callable[[torch.device, int], Inputs]
    flops: float = 0.0  # in products of 16-bit numbers
    resident_bytes: float = 0.0  # what one set of inputs takes, rivals included; 0: moved_bytes
    graph: bool = True
    note: str = ""


def difference(out: torch.Tensor, expected: torch.Tensor) -> str:
    """Empty where `out` is within its dtype's tolerance of `expected`; NaN never is."""
    if out.shape != expected.shape:
        return f"shape {list(out.shape)}, expected {list(expected.shape)}"
    scale = float(expected.float().abs().max()) if expected.numel() else 0.0
    error = float((out.float() - expected.float()).abs().max()) if expected.numel() else 0.0
    allowed = TOLERANCES[out.dtype] * scale
    return "" if error <= allowed else f"off by {error:.3g}, allowed {allowed:.3g}"


def measure(case: Case, device: torch.device, peaks: Peaks) -> Row:
    """The row of a case; where something failed, a row that says so and has no figure.

    Raises RuntimeError only where the device itself is lost.
    """
    row: Row = {"case": case.name, "verdict": "", "note": case.note}
    resident = case.resident_bytes or case.moved_bytes
    room = free_bytes(device) * _FREE_SHARE
    if resident > room:
        return row | {"verdict": f"left out: takes {resident / 1e9:.1f} GB"}
    try:
        row |= _figures(case, device, peaks, int(room // max(resident, 1.0)))
    except Exception as error:  # noqa: BLE001 - a row of the report, whatever it was
        row["verdict"] = f"failed: {_short(error)}"
    release(device)
    return row


def release(device: torch.device) -> None:
    """Give memory back, so that the next case finds it. Raises where the device is lost."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def _figures(case: Case, device: torch.device, peaks: Peaks, room: int) -> Row:
    inputs = [case.prepare(device, 0)]
    wrong = inputs[0].check()
    if wrong:
        return {"verdict": f"WRONG: {wrong}"}
    count = min(turns(case.moved_bytes, device), max(1, room))
    inputs += [case.prepare(device, seed) for seed in range(1, count)]
    timing = time_calls([each.ours for each in inputs], device, graph=case.graph)
    row = figures(case.moved_bytes, case.flops, timing, peaks)
    row |= {"verdict": "right", "inputs": len(inputs), "rivals": {}}
    for name in inputs[0].rivals:
        row["rivals"][name] = _rival([each.rivals[name] for each in inputs], device, timing)
    return row


def turns(moved_bytes: float, device: torch.device) -> int:
    """How many sets of inputs take turns, so that they come from memory and not from the L2."""
    wanted = math.ceil(_ROTATED_L2 * l2_bytes(device) / max(moved_bytes, 1.0))
    return max(1, min(wanted, _MOST_COPIES))


def figures(moved_bytes: float, flops: float, timing: Timing, peaks: Peaks) -> Row:
    """Time, bound and the fraction of it that was reached."""
    limits = peaks.limits
    bound_us = op_s(moved_bytes, flops, limits) * 1e6
    memory_us = moved_bytes / limits.bandwidth * 1e6
    return {
        "us": round(timing.median_us, 3),
        "low_us": round(timing.low_us, 3),
        "high_us": round(timing.high_us, 3),
        "runs": timing.runs,
        "how": timing.how,
        "bytes": moved_bytes,
        "flops": flops,
        "gb_s": round(moved_bytes / timing.median_us / 1e3, 1),
        "tflop_s": round(flops / timing.median_us / 1e6, 2),
        "bound_us": round(bound_us, 3),
        "limited_by": "memory" if memory_us >= bound_us else "arithmetic",
        "fraction": round(bound_us / timing.median_us, 4),
        "fraction_of_copy": round(moved_bytes / peaks.copy * 1e6 / timing.median_us, 4),
    }


def _rival(calls: Iterable[Call], device: torch.device, ours: Timing) -> Row:
    try:
        timing = time_calls(list(calls), device)
    except Exception as error:  # noqa: BLE001 - the rival's own matter
        return {"failed": _short(error)}
    return {
        "us": round(timing.median_us, 3),
        "how": timing.how,
        "ours_is_faster": round(timing.median_us / ours.median_us, 3),
    }


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
