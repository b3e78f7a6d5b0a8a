"""What masks cost a decode step: the same batch with and without grammars, in turns, in one worker.

Without a server: steps follow each other at once, which leaves the masks no time but the device's.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec

from tiercel.bench.checkpoint import RandomModel, make_random_checkpoint
from tiercel.bench.report import Figure, Report
from tiercel.bench.vocabulary import make_large_tokenizer
from tiercel.wire.options import EngineOptions
from tiercel.wire.request import Grammar, SamplingParams
from tiercel.wire.step import RowSlice, RowStart, StepPlan
from tiercel.worker.worker import Worker

ROWS = 16
PROMPT_TOKENS = 64
BLOCK_STEPS = 12
ROW_TOKENS = 128  # of the KV cache, in blocks of 16
BLOCK_TOKENS = 16
_SAMPLING = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(do_sample=True, temperature=0.8, top_p=0.95),
}


def measure_grammar(*, rounds: int = 20, at_most: float | None = 0.10) -> Report:
    """Rounds of a block of steps without and one with 16 grammars: greedy ones, then sampled ones.

    The model is the random one of 146 million parameters in bfloat16, with 65,024 tokens that all
    stand for text. The grammars are 16 JSON schemas; the first round, which compiles them, is not
    counted. Raises what Worker raises.
    """
    report = Report("grammar", "random-150m with a tokenizer of its 65,024 tokens")
    with tempfile.TemporaryDirectory(prefix="tiercel-bench-") as folder:
        tokenizer = make_large_tokenizer(Path(folder) / "tokenizer")
        worker = _worker(make_random_checkpoint(Path(folder) / "model", RandomModel(), tokenizer))
        for name, sampling in _SAMPLING.items():
            _measure(worker, name, sampling, rounds, report)
    for name in _SAMPLING:
        rounds_of = [entry for entry in report.rounds if f"{name}_plain_ms" in entry]
        plain = median(entry[f"{name}_plain_ms"] for entry in rounds_of)
        masked = median(entry[f"{name}_masked_ms"] for entry in rounds_of)
        # Within a round, because other work on the machine comes and goes.
        added = median(e[f"{name}_masked_ms"] / e[f"{name}_plain_ms"] - 1 for e in rounds_of)
        spent = median(e[f"{name}_masked_cpu"] / e[f"{name}_plain_cpu"] - 1 for e in rounds_of)
        report.figures += [
            Figure(f"{name}: step without grammars, median", plain, "ms"),
            Figure(f"{name}: step with 16 grammars, median", masked, "ms"),
            Figure(f"{name}: time added, median of rounds", added, "", at_most=at_most),
            Figure(f"{name}: processor time added, median of rounds", spent, ""),
        ]
    return report


def _worker(model: Path) -> Worker:
    options = EngineOptions(
        model_path=str(model), max_batch_size=ROWS, max_batch_total_tokens=ROWS * ROW_TOKENS
    )
    worker = Worker(options)
    worker.load()
    worker.allocate()
    worker.warmup()
    return worker


def _measure(
    worker: Worker, name: str, sampling: SamplingParams, rounds: int, report: Report
) -> None:
    grammars = [record_grammar(i) for i in range(ROWS)]
    for number in range(rounds + 1):
        plain, plain_cpu = _block(worker, sampling, number, [None] * ROWS)
        masked, masked_cpu = _block(worker, sampling, number, grammars)
        if number:
            entry = {"plain_ms": plain, "masked_ms": masked}
            entry |= {"plain_cpu": plain_cpu, "masked_cpu": masked_cpu}
            report.rounds.append({f"{name}_{key}": value for key, value in entry.items()})


def _block(
    worker: Worker, sampling: SamplingParams, seed: int, grammars: Sequence[Grammar | None]
) -> tuple[float, float]:
    """All rows start, then decode: the median step and the mean processor time, milliseconds."""
    blocks = ROW_TOKENS // BLOCK_TOKENS
    starts = [
        RowStart(
            row=row,
            token_ids=[(7 * row + 13 * place) % 1_000 + 100 for place in range(PROMPT_TOKENS)],
            prompt_tokens=PROMPT_TOKENS,
            sampling=msgspec.structs.replace(sampling, seed=seed * ROWS + row),
            grammar=grammars[row],
        )
        for row in range(ROWS)
    ]
    first = [
        RowSlice(row, 0, PROMPT_TOKENS, list(range(row * blocks, (row + 1) * blocks)), True)
        for row in range(ROWS)
    ]
    _step(worker, StepPlan(0, starts, first))
    cpu = time.process_time()
    steps = [
        _step(worker, StepPlan(0, [], [RowSlice(row, at, 1, [], True) for row in range(ROWS)]))
        for at in range(PROMPT_TOKENS, PROMPT_TOKENS + BLOCK_STEPS)
    ]
    return median(steps), (time.process_time() - cpu) / BLOCK_STEPS * 1e3


def _step(worker: Worker, plan: StepPlan) -> float:
    """Milliseconds. Raises ValueError if a row failed: then this is no measurement."""
    began = time.perf_counter()
    output = worker.step(plan)
    took = time.perf_counter() - began
    if output.failures:
        raise ValueError(output.failures[0].message)
    return took * 1e3


def record_grammar(number: int) -> Grammar:
    """A list of records, long enough not to end within a block, of strings, numbers and names."""
    record = {
        "type": "object",
        "properties": {
            f"name{number}": {"type": "string", "maxLength": 20 + number},
            "score": {"type": "number"},
            "kind": {"enum": ["red", "green", f"blue{number}"]},
            "year": {"type": "integer", "minimum": 1900, "maximum": 2100 + number},
        },
        "required": [f"name{number}", "score", "kind", "year"],
    }
    return Grammar("json_schema", json.dumps({"type": "array", "items": record, "minItems": 20}))
