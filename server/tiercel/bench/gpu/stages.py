"""What is measured, stage by stage; each in a process of its own, whose memory it has alone."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tiercel.bench.gpu import baseline
from tiercel.bench.gpu.engine import MAX_ROWS, PREFILL_TOKENS, PROMPT_TOKENS, BenchEngine
from tiercel.bench.gpu.idle import DeviceTimes, idle_of
from tiercel.bench.gpu.rows import IDLE_GOAL_US, PLAIN, Row, decode_row, prefill_row
from tiercel_kernels.benchmark.bounds import SHAPES, FalconShape
from tiercel_kernels.benchmark.peaks import Peaks

Stage = Callable[[torch.device, Peaks], Iterator[Row]]
BATCHES = (1, 64, 256)
FORTY_LAYERS = (4, 8)
# The bounds' names by --quantize's.
STORAGES = {None: PLAIN, "bitsandbytes": "int8", "bitsandbytes-nf4": "nf4"}
# Options that make no other engine of the same model, as all others do.
_SIZES = {"dtype", "quantize", "max_rows", "max_total_tokens"}
# 40B in int8 on 80 GB: 42 of weights, and 11 for the keys and values of so many rows.
FORTY_ROWS = 64


@contextmanager
def engine_of(shape: FalconShape, device: torch.device, **options: Any) -> Iterator[BenchEngine]:
    """An engine with random weights, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield BenchEngine(Path(folder), shape, device, **options)


def engine_rows(
    shape: FalconShape,
    device: torch.device,
    peaks: Peaks,
    *,
    batches: tuple[int, ...] = BATCHES,
    prompt_tokens: int = PROMPT_TOKENS,
    prefill_tokens: int = PREFILL_TOKENS,
    label: str = "",
    **options: Any,
) -> Iterator[Row]:
    """Decoding of every batch, and one long prompt. `options`: of BenchEngine."""
    facts: Row = {"model": shape.name}
    switches = sorted({*options} - _SIZES)
    if switches:
        facts["switches"] = switches
    storage = STORAGES[options.get("quantize")]
    with engine_of(shape, device, **options) as engine:
        for batch in batches:
            found = engine.decode(batch, prompt_tokens=prompt_tokens)
            made = decode_row(shape, batch, found.context, found.timing, peaks, label, storage)
            yield made | facts
        if prefill_tokens:
            timing = engine.prefill(prefill_tokens)
            yield prefill_row(shape, prefill_tokens, timing, peaks, label, storage) | facts


def idle_rows(shape: FalconShape, device: torch.device, batches: tuple[int, ...]) -> Iterator[Row]:
    """How long the device waits between two decode steps, by the times of its own kernels."""
    with engine_of(shape, device) as engine:
        for batch in batches:
            times = DeviceTimes()
            found = engine.decode(batch, start=times.start, stop=times.stop)
            idle = idle_of(found.intervals, found.watched_steps)
            goal, _ = IDLE_GOAL_US
            met = "met" if idle.between_us <= goal else "missed"
            yield {
                "case": f"{shape.name}, idle between decode steps, batch {batch}",
                "verdict": f"{idle.between_us:.1f} us between steps, {idle.inside_us:.1f} us "
                f"between kernels of a step, {idle.busy_us:.1f} us busy",
                "note": f"goal at most {goal:.0f} us, {met}; watched by the profiler, which slows",
                "kind": "idle",
                "batch": batch,
                "between_us": idle.between_us,
                "inside_us": idle.inside_us,
                "busy_us": idle.busy_us,
            }


def transformers_rows(
    shape: FalconShape,
    device: torch.device,
    peaks: Peaks,
    *,
    batches: tuple[int, ...],
    static: bool,
    **lengths: int,
) -> Iterator[Row]:
    """transformers' generate on the same shapes, against the same bound."""
    model = baseline.make_model(shape, device)
    for batch in batches:
        timing = baseline.generate(model, batch, static=static, **lengths)
        prompt = lengths.get("prompt_tokens", baseline.PROMPT_TOKENS)
        context = prompt + lengths.get("new_tokens", baseline.NEW_TOKENS) / 2
        label = " in transformers, " + timing.how
        row = decode_row(shape, batch, context, timing, peaks, label)
        if 1 < shape.kv_heads < shape.heads:
            row["note"] = f"it copies keys and values {shape.group}-fold"
        yield row | {"model": shape.name, "of": "transformers"}


def _seven(device: torch.device, peaks: Peaks) -> Iterator[Row]:
    yield from engine_rows(SHAPES["falcon-7b"], device, peaks)


def _seven_idle(device: torch.device, peaks: Peaks) -> Iterator[Row]:
    yield from idle_rows(SHAPES["falcon-7b"], device, (1, MAX_ROWS))


def _seven_without_graphs(device: torch.device, peaks: Peaks) -> Iterator[Row]:
    yield from engine_rows(
        SHAPES["falcon-7b"],
        device,
        peaks,
        batches=(1, 64),
        prefill_tokens=0,
        label=" without graphs",
        cuda_graphs=False,
    )


def _seven_with(label: str, **switches: Any) -> Stage:
    """Falcon's own advantages, each alone and both: what pays is to become the default."""

    def run(device: torch.device, peaks: Peaks) -> Iterator[Row]:
        yield from engine_rows(SHAPES["falcon-7b"], device, peaks, label=label, **switches)

    return run


def _seven_in(quantize: str) -> Stage:
    """Its weights in so many bits, the goals of batch 1 and what larger batches cost."""

    def run(device: torch.device, peaks: Peaks) -> Iterator[Row]:
        yield from engine_rows(SHAPES["falcon-7b"], device, peaks, quantize=quantize)

    return run


def _forty_int8(device: torch.device, peaks: Peaks) -> Iterator[Row]:
    """All 60 layers, as one card of 80 GB serves them."""
    batches = (1, FORTY_ROWS)
    yield from engine_rows(
        SHAPES["falcon-40b"],
        device,
        peaks,
        batches=batches,
        quantize="bitsandbytes",
        max_rows=FORTY_ROWS,
    )


def _seven_eager(device: torch.device, peaks: Peaks) -> Iterator[Row]:
    yield from transformers_rows(SHAPES["falcon-7b"], device, peaks, batches=(1, 64), static=False)


def _seven_static(device: torch.device, peaks: Peaks) -> Iterator[Row]:
    yield from transformers_rows(SHAPES["falcon-7b"], device, peaks, batches=(1,), static=True)


def _forty(layers: int) -> Stage:
    shape = SHAPES["falcon-40b"].with_layers(layers)

    def run(device: torch.device, peaks: Peaks) -> Iterator[Row]:
        yield from engine_rows(shape, device, peaks, label=f", {layers} layers")

    return run


def _forty_eager(device: torch.device, peaks: Peaks) -> Iterator[Row]:
    shape = SHAPES["falcon-40b"].with_layers(FORTY_LAYERS[-1])
    yield from transformers_rows(shape, device, peaks, batches=(1,), static=False)


# In the order in which they matter, should there not be time for all of them.
STAGES: dict[str, Stage] = {
    "falcon-7b": _seven,
    "idle": _seven_idle,
    "eager": _seven_eager,
    "static": _seven_static,
    "7b-int8": _seven_in("bitsandbytes"),
    "7b-nf4": _seven_in("bitsandbytes-nf4"),
    "joined": _seven_with(" with one output GEMM", joined_output=True),
    "forked": _seven_with(" with attention beside the MLP", fork_attention=True),
    "both": _seven_with(" with both", joined_output=True, fork_attention=True),
    **{f"falcon-40b-{layers}": _forty(layers) for layers in FORTY_LAYERS},
    "40b-int8": _forty_int8,
    "without-graphs": _seven_without_graphs,
    "eager-40b": _forty_eager,
}
