"""What each way to store the weights does to eyas' predictions: the table of docs/quantization.md.

Unlike the other figures of `evaluate.py` these are of the server's own worker, on the CPU.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from tiercel.plan.sizes import FOUR_BITS, QUANTIZATIONS
from tiercel.wire.options import EngineOptions
from tiercel.wire.request import SamplingParams
from tiercel.wire.step import RowSlice, RowStart, StepPlan
from tiercel.worker.worker import Worker

WINDOW = 512
BLOCK_TOKENS = 16
ROWS = 8  # windows in one step

# As --quantize and --double-quant say it.
MODES: tuple[tuple[str | None, bool], ...] = (
    (None, False),
    *(
        (mode, double)
        for mode in QUANTIZATIONS
        for double in (False, True)[: 1 + (mode in FOUR_BITS)]
    ),
)


def make_worker(
    model: Path, quantize: str | None, *, double_quant: bool = False, dtype: str, threads: int
) -> Worker:
    """A worker that scores `ROWS` windows in a step."""
    worker = Worker(
        EngineOptions(
            model_path=str(model),
            device="cpu",
            dtype=dtype,
            quantize=quantize,
            double_quant=double_quant,
            max_batch_size=ROWS,
            max_batch_total_tokens=ROWS * _blocks(WINDOW) * BLOCK_TOKENS,
            block_tokens=BLOCK_TOKENS,
            threads=threads,
        )
    )
    worker.load()
    worker.allocate()
    return worker


def worker_loss(worker: Worker, stream: list[int], window: int = WINDOW) -> float:
    """Mean loss in nats per token over consecutive windows, as `evaluate.model_loss` has it."""
    windows = [stream[first : first + window + 1] for first in range(0, len(stream) - 1, window)]
    total = 0.0
    for first in range(0, len(windows), ROWS):
        output = worker.step(_plan(windows[first : first + ROWS]))
        total -= sum(sum(each.logprobs) for each in output.prompt_logprobs)
    return total / (len(stream) - 1)


def _plan(windows: list[list[int]]) -> StepPlan:
    """All but the last token of each window is read; all but the first is predicted."""
    starts, slices, block = [], [], 0
    for row, tokens in enumerate(windows):
        count = len(tokens) - 1
        blocks = list(range(block, block + _blocks(count)))
        block += len(blocks)
        starts.append(RowStart(row, tokens, len(tokens), SamplingParams(), prompt_logprobs=True))
        slices.append(RowSlice(row, 0, count, blocks, False))
    return StepPlan(0, starts, slices)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def table(model: Path, stream: list[int], *, dtype: str, threads: int) -> Iterator[str]:
    """The lines of the table, each as soon as it is known."""
    yield f"| mode, activations in {dtype} | perplexity | against unquantized | weights (MB) |"
    yield "|---|---|---|---|"
    plain = 0.0
    for quantize, double_quant in MODES:
        worker = make_worker(
            model, quantize, double_quant=double_quant, dtype=dtype, threads=threads
        )
        loss = worker_loss(worker, stream)
        plain = plain if quantize else loss
        name = f"`{quantize}{' --double-quant' if double_quant else ''}`" if quantize else "–"
        change = f"{math.exp(loss - plain) - 1:+.1%}" if quantize else ""
        size = worker.model.nbytes / 1e6
        yield f"| {name} | {math.exp(loss):.2f} | {change} | {size:.1f} |"
