"""What masks cost a decode step: the same batch with and without grammars, in turns, in one worker.

Without a server: steps follow each other at once, which leaves the masks no time but the device's.
"""

import json
import tempfile
import time
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
BLOCK_STEPS = 24
ROW_TOKENS = 128  # of the KV cache, in blocks of 16
BLOCK_TOKENS = 16
_SAMPLING = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(do_sample=True, temperature=0.8, top_p=0.95),
}


def measure_grammar(*, rounds: int = 12, at_most: float | None = 0.10) -> Report:
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
        plain, masked = (
            median(entry[key] for entry in report.rounds if key in entry)
            for key in (f"{name}_plain_ms", f"{name}_masked_ms")
        )
        report.figures += [
            Figure(f"{name}: step without grammars", plain, "ms"),
            Figure(f"{name}: step with 16 grammars", masked, "ms"),
            Figure(f"{name}: added by masks", masked / plain - 1, "", at_most=at_most),
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
    for number in range(rounds + 1):
        plain = _block(worker, sampling, number, [None] * ROWS)
        masked = _block(worker, sampling, number, [_grammar(i) for i in range(ROWS)])
        if number:
            report.rounds.append({f"{name}_plain_ms": plain, f"{name}_masked_ms": masked})


def _block(
    worker: Worker, sampling: SamplingParams, seed: int, grammars: list[Grammar | None]
) -> float:
    """All rows start, then decode: the median step in milliseconds, without the first one."""
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
    return median(
        _step(worker, StepPlan(0, [], [RowSlice(row, at, 1, [], True) for row in range(ROWS)]))
        for at in range(PROMPT_TOKENS, PROMPT_TOKENS + BLOCK_STEPS)
    )


def _step(worker: Worker, plan: StepPlan) -> float:
    """Milliseconds. Raises ValueError if a row failed: then this is no measurement."""
    began = time.perf_counter()
    output = worker.step(plan)
    took = time.perf_counter() - began
    if output.failures:
        raise ValueError(output.failures[0].message)
    return took * 1e3


def _grammar(number: int) -> Grammar:
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
