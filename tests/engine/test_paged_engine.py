"""The whole engine on the CUDA platform's code, two steps out, against the CPU's engine."""

import random
import time
from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint
from support.paged_workers import make_paged_worker
from support.vocabularies import falcon_style
from support.workers import make_worker
from tiercel.cache.pool import BlockPool
from tiercel.engine.core import EngineCore
from tiercel.guidance.compiler import GrammarCompiler
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.messages import Abort, EngineStep, Shutdown, Submit, ToEngine
from tiercel.wire.request import GenerationRequest, Grammar, SamplingParams
from tiercel.worker.worker import Worker

END = 11
COMMON = [20 + 7 * index % 280 for index in range(60)]  # many prompts begin with it
ABORTED = (5, 17)
WISHES = (
    SamplingParams(),
    SamplingParams(do_sample=True, temperature=1.3, top_p=0.9),
    SamplingParams(repetition_penalty=1.2, count_penalty=0.3),
    SamplingParams(do_sample=True, top_k=20, typical_p=0.8),
    SamplingParams(do_sample=True, watermark=True, top_n_tokens=2),
    SamplingParams(logit_bias=((END, 6.0),)),
)


def asked(number: int) -> GenerationRequest:
    draw = random.Random(number)
    wish = WISHES[number % len(WISHES)]
    params = SamplingParams(
        **{name: getattr(wish, name) for name in wish.__struct_fields__} | {"seed": number}
    )
    prompt = [*COMMON[: draw.choice((0, 5, 18, 60))], *(draw.randrange(20, 300) for _ in range(9))]
    grammar = Grammar("regex", "[a-f]{12}[0-9]{4}") if number % 7 == 3 else None
    return GenerationRequest(number, prompt, 40, params, [END], grammar=grammar)


class Turns:
    """A few requests per turn, aborts among them; Shutdown once nothing is left."""

    def __init__(self, requests: list[GenerationRequest]) -> None:
        self._turns: list[list[ToEngine]] = [
            [Submit(requests[first : first + 4])] for first in range(0, len(requests), 4)
        ]
        self._turns.append([Abort([number]) for number in ABORTED])

    def receive(self, wait_s: float) -> list[ToEngine]:
        if self._turns:
            return self._turns.pop(0)
        if 0 < wait_s < 1:
            time.sleep(wait_s)  # a grammar is being compiled
        return [Shutdown()] if wait_s >= 1 else []


def serve(
    worker: Worker, requests: list[GenerationRequest], blocks: int
) -> tuple[dict[int, list[int]], EngineStep]:
    """The tokens of all requests, and the last message."""
    scheduler = Scheduler(
        SchedulerLimits(8, 128, 48, 0.0), BlockPool(blocks, 16), lookahead=worker.depth - 1
    )
    compiler = GrammarCompiler(worker.grammars)
    compiler.start()
    emitted: list[EngineStep] = []
    EngineCore(scheduler, worker, emitted.append, grammars=compiler).run(Turns(requests))
    scheduler.check_integrity()
    assert scheduler.idle
    tokens: dict[int, list[int]] = {}
    for delta in (delta for step in emitted for delta in step.deltas):
        assert delta.error is None
        tokens.setdefault(delta.request_id, []).extend(each.id for each in delta.tokens)
    return tokens, emitted[-1]


@pytest.mark.parametrize("overlap", [True, False])
def test_crowded_rows_with_two_steps_out_are_those_of_the_cpu(
    overlap: bool, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path, "7b", max_positions=128)
    falcon_style(tmp_path)
    requests = [asked(number) for number in range(32)]
    found, last = serve(make_paged_worker(tmp_path, overlap=overlap), requests, blocks=24)
    assert last.stats.preemptions > 0
    assert last.stats.free_blocks == 24
    expected, _ = serve(make_worker(tmp_path), requests, blocks=500)
    for number in range(32):
        if number not in ABORTED:
            assert found[number] == expected[number], number
