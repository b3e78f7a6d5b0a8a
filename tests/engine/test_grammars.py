"""Grammars through the whole engine: real masks and model, few blocks, aborts, failing steps."""

import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.checkpoints import make_checkpoint
from support.executors import SynchronousExecutor
from support.vocabularies import falcon_style
from support.workers import make_worker
from tiercel.cache.pool import BlockPool
from tiercel.engine.core import EngineCore
from tiercel.errors import ConfigError
from tiercel.guidance.cache import GrammarCache
from tiercel.guidance.compiler import GrammarCompiler
from tiercel.guidance.constraints import TokenTable
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.text.tokenizer import Tokenizer
from tiercel.wire.messages import Abort, EngineStep, Shutdown, Submit, ToEngine
from tiercel.wire.request import GenerationRequest, Grammar, SamplingParams
from tiercel.wire.step import StepOutput, StepPlan
from tiercel.worker.worker import Worker

PATTERNS = ["(the|end|start)( (the|end|start)){3,6}", "x?", "(a|b[ab])*c{2}", "[a-f]{12}[0-9]{40}"]
COMMON = [20 + 7 * index % 280 for index in range(35)]  # many prompts begin with it
END = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_checkpoint(tmp_path_factory.mktemp("grammars"), "7b", max_positions=128)
    return falcon_style(made)


@pytest.fixture(scope="module")
def worker(folder: Path) -> Worker:
    return make_worker(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


class Flaky:
    """The worker, some of whose steps fail after they ran."""

    def __init__(self, worker: Worker, fails: Callable[[int], bool] = lambda _: False) -> None:
        self._worker, self._fails, self.steps = worker, fails, 0
        self.copies = self.resumed = 0

    def step(self, plan: StepPlan) -> StepOutput:
        self.steps += 1
        self.copies += sum(piece.copy_from >= 0 for piece in plan.slices)
        self.resumed += sum(
            each.grammar is not None and len(each.token_ids) > each.prompt_tokens
            for each in plan.starts
        )
        output = self._worker.step(plan)
        if self._fails(self.steps):
            raise RuntimeError("injected")
        return output


class Turns:
    """Hands out a batch of messages per turn; Shutdown after the last, once nothing is left."""

    def __init__(self, turns: list[list[ToEngine]]) -> None:
        self._turns = turns

    def receive(self, wait_s: float) -> list[ToEngine]:
        if self._turns:
            return self._turns.pop(0)
        if 0 < wait_s < 1:
            time.sleep(wait_s)  # a grammar is being compiled
        return [Shutdown()] if wait_s >= 1 else []


def asked(number: int) -> GenerationRequest:
    draw = random.Random(number)
    pattern = None if number % 5 == 0 else PATTERNS[number % 4]
    params = SamplingParams(do_sample=number % 2 == 0, temperature=1.5, seed=number)
    prompt = [*COMMON[: draw.choice((0, 5, 18, 35))], draw.randrange(20, 300)]
    grammar = None if pattern is None else Grammar("regex", pattern)
    return GenerationRequest(number, prompt, 60, params, [END], grammar=grammar)


def serve(
    worker: Worker, turns: list[list[ToEngine]], executor: Flaky, *, blocks: int, rows: int
) -> tuple[dict[int, list[int]], dict[int, str], EngineStep]:
    """Tokens and ends ("eos_token", "length", an error) of all requests; the last message."""
    limits = SchedulerLimits(rows, 128, 64, 0.0)
    scheduler = Scheduler(limits, BlockPool(blocks, 16))
    emitted: list[EngineStep] = []
    compiler = GrammarCompiler(worker.grammars)
    compiler.start()
    EngineCore(scheduler, SynchronousExecutor(executor), emitted.append, grammars=compiler).run(
        Turns(turns)
    )
    scheduler.check_integrity()
    tokens: dict[int, list[int]] = {}
    ends: dict[int, str] = {}
    for delta in (delta for step in emitted for delta in step.deltas):
        assert delta.request_id not in ends
        tokens.setdefault(delta.request_id, []).extend(each.id for each in delta.tokens)
        if delta.error or delta.finish_reason:
            ends[delta.request_id] = delta.error or delta.finish_reason or ""
    return tokens, ends, emitted[-1]


def fits(tokenizer: Tokenizer, request: GenerationRequest, ids: list[int], end: str) -> bool:
    if request.grammar is None or end == "length":
        return True
    assert ids[-1] == END
    return re.fullmatch(request.grammar.text, tokenizer.decode(ids[:-1])) is not None


def test_crowded_rows_draw_what_they_draw_alone(worker: Worker, tokenizer: Tokenizer) -> None:
    requests = [asked(number) for number in range(24)]
    alone: dict[int, list[int]] = {}
    for request in requests:
        tokens, ends, _ = serve(worker, [[Submit([request])]], Flaky(worker), blocks=64, rows=1)
        alone |= tokens
        assert fits(tokenizer, request, tokens[request.id], ends[request.id]), ends
    turns: list[list[ToEngine]] = [[Submit(requests[:20])], [], [], [Submit(requests[20:])]]
    executor = Flaky(worker)
    together, ends, last = serve(worker, turns, executor, blocks=12, rows=8)
    assert last.stats.preemptions > 0
    assert executor.copies > 0
    assert together == alone
    assert sum(end == "eos_token" for end in ends.values()) > 12


def test_a_preempted_text_goes_on_under_its_grammar(worker: Worker, tokenizer: Tokenizer) -> None:
    grammar = Grammar("regex", "[a-f]{10}[0-9]{60}")
    requests = [
        GenerationRequest(n, [20 + n], 80, SamplingParams(True, seed=n), [END], grammar=grammar)
        for n in range(4)
    ]
    executor = Flaky(worker)
    tokens, ends, _ = serve(worker, [[Submit(requests)]], executor, blocks=7, rows=4)
    assert executor.resumed > 0
    for request in requests:
        assert ends[request.id] == "eos_token"
        assert fits(tokenizer, request, tokens[request.id], ends[request.id])


def test_aborts_and_failing_steps_leave_the_other_grammars_right(
    worker: Worker, tokenizer: Tokenizer
) -> None:
    requests = [asked(number) for number in range(60)]
    turns: list[list[ToEngine]] = []
    for number, request in enumerate(requests):
        turns += [[Submit([request])], []]
        if number % 3 == 2:
            turns.append([Abort([number - 1, number])])  # one under way, one just arrived
    executor = Flaky(worker, lambda step: step % 11 == 5)
    tokens, ends, last = serve(worker, turns, executor, blocks=16, rows=6)
    done = [each for each in requests if ends.get(each.id) in ("eos_token", "length")]
    assert len(done) > 5
    assert any("Server error" in end for end in ends.values())
    for request in done:
        assert fits(tokenizer, request, tokens[request.id], ends[request.id]), request
    assert last.stats.aborted > 10
    assert (last.stats.running, last.stats.waiting) == (0, 0)
    assert last.stats.free_blocks == last.stats.total_blocks


class Reading:
    """A tokenizer that is read when the test says so, or turns out to be unreadable."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self._folder, self._error = folder, error
        self.may_end = threading.Event()

    def __call__(self) -> TokenTable:
        assert self.may_end.wait(20)
        if self._error is not None:
            raise self._error
        return TokenTable.load(self._folder)


class Pulled:
    """An inbox that asks the test what comes next, and lets it look at what was emitted."""

    def __init__(self, script: Callable[[int], list[ToEngine]]) -> None:
        self._script, self._turn = script, 0
        self.waits: list[float] = []

    def receive(self, wait_s: float) -> list[ToEngine]:
        self.waits.append(wait_s)
        time.sleep(min(wait_s, 0.002))
        self._turn += 1
        return self._script(self._turn - 1)


def compiling(
    worker: Worker, reading: Reading, script: Callable[[int, list[EngineStep]], list[ToEngine]]
) -> tuple[list[EngineStep], Pulled]:
    """A run of the loop whose first grammar has to wait for `reading`."""
    emitted: list[EngineStep] = []
    compiler = GrammarCompiler(GrammarCache(reading))
    compiler.start()
    scheduler = Scheduler(SchedulerLimits(4, 128, 64, 0.0), BlockPool(16, 16))
    inbox = Pulled(lambda turn: script(turn, emitted))
    EngineCore(scheduler, SynchronousExecutor(worker), emitted.append, grammars=compiler).run(inbox)
    return emitted, inbox


def test_others_run_while_a_grammar_waits_and_an_abort_ends_the_wait(
    folder: Path, worker: Worker
) -> None:
    reading = Reading(folder)

    def script(turn: int, emitted: list[EngineStep]) -> list[ToEngine]:
        if turn == 0:
            return [Submit([asked(1), asked(5), asked(2)])]  # 5 has no grammar
        done = {delta.request_id for step in emitted for delta in step.deltas if delta.error}
        done |= {d.request_id for step in emitted for d in step.deltas if d.finish_reason}
        if 2 in done:
            return [Shutdown()]
        if 5 in done and not reading.may_end.is_set():
            assert emitted[-1].stats.waiting == 2
            reading.may_end.set()
            return [Abort([1, 77]), Abort([1])]
        return []

    emitted, inbox = compiling(worker, reading, script)
    deltas = [delta for step in emitted for delta in step.deltas]
    assert {delta.request_id for delta in deltas} == {2, 5}
    assert emitted[-1].stats.aborted == 1
    assert emitted[-1].stats.waiting == 0
    assert max(inbox.waits[1:-1]) < 0.1  # no second of sleep while something was under way


@pytest.mark.parametrize("error", [ConfigError("no tokenizer"), MemoryError(), OSError("gone")])
def test_what_breaks_the_compiler_refuses_the_request_and_not_the_next(
    folder: Path, worker: Worker, error: Exception
) -> None:
    reading = Reading(folder, error)
    reading.may_end.set()

    def script(turn: int, emitted: list[EngineStep]) -> list[ToEngine]:
        if turn in (0, 200):
            return [Submit([asked(1 if turn == 0 else 6)])]
        ended = [d for step in emitted for d in step.deltas if d.error or d.finish_reason]
        if len(ended) == 1 and turn < 200:
            return []
        return [Shutdown()] if len(ended) == 2 or turn > 2_000 else []

    emitted, _ = compiling(worker, reading, script)
    errors = [delta for step in emitted for delta in step.deltas]
    assert [(each.request_id, each.error_type) for each in errors] == [
        (1, "validation"),
        (6, "validation"),
    ]
    assert all("grammar is not valid" in (each.error or "") for each in errors)


def test_shutdown_does_not_wait_for_a_grammar(folder: Path, worker: Worker) -> None:
    reading = Reading(folder)
    turns: list[list[ToEngine]] = [[Submit([asked(1)])], [Shutdown()]]
    emitted, _ = compiling(worker, reading, lambda turn, _: turns[turn])
    assert not reading.may_end.is_set()
    reading.may_end.set()  # the thread may end too
    assert [delta for step in emitted for delta in step.deltas] == []


def test_an_engine_without_grammars_refuses_them_and_serves_the_rest(worker: Worker) -> None:
    emitted: list[EngineStep] = []
    scheduler = Scheduler(SchedulerLimits(4, 128, 64, 0.0), BlockPool(16, 16))
    turns: list[list[ToEngine]] = [[Submit([asked(1), asked(5)])]]
    EngineCore(scheduler, SynchronousExecutor(worker), emitted.append).run(Turns(turns))
    refused, *others = [delta for step in emitted for delta in step.deltas]
    assert (refused.request_id, refused.error_type) == (1, "validation")
    assert others[-1].finish_reason is not None
    assert emitted[-1].stats.waiting == 0
