"""Rows of the engine's table: a measured time beside the bound of its shape, batch and context."""

from typing import Any

from tiercel_kernels.benchmark.bounds import DecodeBound, FalconShape, decode, prefill_s, step_bytes
from tiercel_kernels.benchmark.peaks import Peaks
from tiercel_kernels.benchmark.timing import Timing

Row = dict[str, Any]
PLAIN = "bfloat16"

# What is aimed at, and what would be splendid: fractions of the bound.
DECODE_GOALS = {1: (0.85, 0.90), 64: (0.75, 0.82), 256: (0.75, 0.82)}
PREFILL_GOAL = (0.65, 0.75)
# Of quantized weights, by storage and model; at batch 1 and for 40B at 64 too.
QUANTIZED_GOALS = {
    ("int8", "falcon-7b", 1): (0.75, 0.82),
    ("nf4", "falcon-7b", 1): (0.60, 0.70),
    ("int8", "falcon-40b", 1): (0.82, 0.88),
    ("int8", "falcon-40b", 64): (0.82, 0.88),
}
# Times as fast as our own bfloat16 at batch 1.
RATIO_GOALS = {"int8": (1.6, 1.8), "nf4": (2.2, 2.8)}
IDLE_GOAL_US = (100.0, 30.0)
# Times as fast as transformers' generate, at batch 1.
EAGER_GOAL, STATIC_GOAL = 4.0, 1.3


def decode_row(
    shape: FalconShape,
    batch: int,
    context: float,
    timing: Timing,
    peaks: Peaks,
    label: str = "",
    storage: str = PLAIN,
) -> Row:
    """A decode step of a full batch, against what memory and arithmetic allow when overlapped.

    storage: of the layers' weights, as in bounds.WEIGHT_BYTES.
    """
    bound = decode(shape, peaks.limits, batch, context, dtype=storage)
    goal = DECODE_GOALS.get(batch) if not label else None
    if storage != PLAIN:
        goal = QUANTIZED_GOALS.get((storage, shape.name, batch))
    name = f"{shape.name}{_in(storage)}{label}, decode, {batch} x {context:.0f}"
    row = _row(name, timing, bound.overlap_s, _limit(bound), goal)
    row["fraction_of_copy"] = round(
        bound.memory_s * peaks.limits.bandwidth / peaks.copy * 1e6 / timing.median_us, 4
    )
    row |= {"kind": "decode", "batch": batch, "context": context, "layers": shape.layers}
    return row | {"serial_us": round(bound.serial_s * 1e6, 1), "storage": storage}


def prefill_row(
    shape: FalconShape,
    tokens: int,
    timing: Timing,
    peaks: Peaks,
    label: str = "",
    storage: str = PLAIN,
) -> Row:
    """A prompt alone, from its arrival to its first token."""
    bound_s = prefill_s(shape, peaks.limits, tokens, dtype=storage)
    read = step_bytes(shape, storage)
    limit = "memory" if read / peaks.limits.bandwidth >= bound_s else "arithmetic"
    name = f"{shape.name}{_in(storage)}{label}, prompt of {tokens}"
    plain = not label and storage == PLAIN
    row = _row(name, timing, bound_s, limit, PREFILL_GOAL if plain else None)
    row["fraction_of_copy"] = round(read / peaks.copy * 1e6 / timing.median_us, 4)
    row |= {"kind": "prefill", "batch": 1, "tokens": tokens, "layers": shape.layers}
    return row | {"storage": storage}


def _in(storage: str) -> str:
    return "" if storage == PLAIN else f" in {storage}"


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


def beside_plain(rows: list[Row]) -> None:
    """Put our own bfloat16 beside quantized rows of the same model, batch and number of layers."""
    for ours in rows:
        if ours.get("storage", PLAIN) == PLAIN:
            continue
        for plain in rows:
            own = plain.get("storage") == PLAIN and plain.get("of") != "transformers"
            if not own or plain.get("switches") or plain["kind"] != ours["kind"]:
                continue
            same = ("model", "batch", "layers")
            if any(plain.get(name) != ours.get(name) for name in (*same, "tokens")):
                continue
            times = plain["us"] / ours["us"]
            goal, _ = RATIO_GOALS.get(ours["storage"], (0.0, 0.0))
            if ours["kind"] == "decode" and ours["batch"] == 1 and goal:
                met = "met" if times >= goal else "missed"
                parts = [ours["note"], f"{times:.2f} times bfloat16, goal {goal}, {met}"]
                ours["note"] = "; ".join(part for part in parts if part)
            ours["rivals"]["our bfloat16"] = {
                "us": plain["us"],
                "how": plain["how"],
                "ours_is_faster": round(times, 3),
            }


def stands_beside(rows: list[Row]) -> None:
    """Put transformers' rows beside ours of the same model and batch, as rivals."""
    for ours in rows:
        if ours.get("kind") != "decode" or ours.get("of") == "transformers":
            continue
        if ours.get("storage", PLAIN) != PLAIN:  # half the bytes: no comparison of engines
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
