"""Rows of the engine's table: a measured time beside the bound of its shape, batch and context."""

from typing import Any

from tiercel_kernels.benchmark.bounds import DecodeBound, FalconShape, decode, prefill_s, step_bytes
from tiercel_kernels.benchmark.peaks import Peaks
from tiercel_kernels.benchmark.timing import Timing

Row = dict[str, Any]

# What is aimed at, and what would be splendid: fractions of the bound.
DECODE_GOALS = {1: (0.85, 0.90), 64: (0.75, 0.82), 256: (0.75, 0.82)}
PREFILL_GOAL = (0.65, 0.75)
IDLE_GOAL_US = (100.0, 30.0)
# Times as fast as transformers' generate, at batch 1.
EAGER_GOAL, STATIC_GOAL = 4.0, 1.3


def decode_row(
    shape: FalconShape, batch: int, context: float, timing: Timing, peaks: Peaks, label: str = ""
) -> Row:
    """A decode step of a full batch, against what memory and arithmetic allow when overlapped."""
    bound = decode(shape, peaks.limits, batch, context)
    goal = DECODE_GOALS.get(batch) if not label else None
    name = f"{shape.name}{label}, decode, {batch} x {context:.0f}"
    row = _row(name, timing, bound.overlap_s, _limit(bound), goal)
    row["fraction_of_copy"] = round(
        bound.memory_s * peaks.limits.bandwidth / peaks.copy * 1e6 / timing.median_us, 4
    )
    row |= {"kind": "decode", "batch": batch, "context": context, "layers": shape.layers}
    return row | {"serial_us": round(bound.serial_s * 1e6, 1)}


def prefill_row(
    shape: FalconShape, tokens: int, timing: Timing, peaks: Peaks, label: str = ""
) -> Row:
    """A prompt alone, from its arrival to its first token."""
    bound_s = prefill_s(shape, peaks.limits, tokens)
    weights_s = step_bytes(shape) / peaks.limits.bandwidth
    limit = "memory" if weights_s >= bound_s else "arithmetic"
    name = f"{shape.name}{label}, prompt of {tokens}"
    row = _row(name, timing, bound_s, limit, PREFILL_GOAL if not label else None)
    row["fraction_of_copy"] = round(step_bytes(shape) / peaks.copy * 1e6 / timing.median_us, 4)
    return row | {"kind": "prefill", "batch": 1, "tokens": tokens, "layers": shape.layers}


def _limit(bound: DecodeBound) -> str:
    return "memory" if bound.memory_s >= bound.arithmetic_s else "arithmetic"


def _row(
    name: str, timing: Timing, bound_s: float, limit: str, goal: tuple[float, float] | None
) -> Row:
    fraction = bound_s * 1e6 / timing.median_us
    note = ""
    if goal is not None:
        note = f"goal {goal[0]:.2f}, {'met' if fraction >= goal[0] else 'missed'}"
    return {
        "case": name,
        "note": note,
        "verdict": "timed",
        "us": round(timing.median_us, 2),
        "low_us": round(timing.low_us, 2),
        "high_us": round(timing.high_us, 2),
        "runs": timing.runs,
        "how": timing.how,
        "bound_us": round(bound_s * 1e6, 2),
        "limited_by": limit,
        "fraction": round(fraction, 4),
        "rivals": {},
    }


def extrapolate(fewer: Row, more: Row, shape: FalconShape, peaks: Peaks) -> Row:
    """The same for all layers of `shape`, from the times of two numbers of layers.

    What every layer takes is the difference of the two over the difference of their layers; what
    is left is embedding, head and the step itself, once.
    """
    per_layer = (more["us"] - fewer["us"]) / (more["layers"] - fewer["layers"])
    us = more["us"] + per_layer * (shape.layers - more["layers"])
    timing = Timing(us, us, us, 1, f"extrapolated from {fewer['layers']} and {more['layers']}")
    label = f", {shape.layers} layers extrapolated"
    if more["kind"] == "prefill":
        return prefill_row(shape, more["tokens"], timing, peaks, label)
    return decode_row(shape, more["batch"], more["context"], timing, peaks, label)


def stands_beside(rows: list[Row]) -> None:
    """Put transformers' rows beside ours of the same model and batch, as rivals."""
    for ours in rows:
        if ours.get("kind") != "decode" or ours.get("of") == "transformers":
            continue
        for theirs in rows:
            if theirs.get("of") != "transformers" or "us" not in theirs:
                continue
            if all(theirs[name] == ours[name] for name in ("model", "batch", "layers")):
                ours["rivals"][f"transformers {theirs['how']}"] = {
                    "us": theirs["us"],
                    "how": theirs["how"],
                    "ours_is_faster": round(theirs["us"] / ours["us"], 3),
                }
