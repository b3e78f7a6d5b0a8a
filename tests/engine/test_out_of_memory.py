"""A step that finds no memory: the newest of its requests fails, the others never notice."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoints import make_checkpoint
from support.paged_workers import make_paged_worker
from support.workers import make_worker
from tiercel.cache.pool import BlockPool
from tiercel.engine.core import EngineBroken, EngineCore
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.messages import EngineStep, Shutdown, Submit, ToEngine
from tiercel.wire.request import GenerationRequest, SamplingParams
from tiercel.wire.step import RowSlice
from tiercel.worker.worker import Worker

REQUESTS = 16
NEWEST = REQUESTS - 1
Wants = Callable[[list[RowSlice]], bool]


class Once:
    """All requests at once, then Shutdown when nothing is left."""

    def __init__(self) -> None:
        self._asked = [asked(number) for number in range(REQUESTS)]

    def receive(self, wait_s: float) -> list[ToEngine]:
        if self._asked:
            asked_now, self._asked = self._asked, []
            return [Submit(asked_now)]
        return [Shutdown()] if wait_s > 0 else []


def asked(number: int) -> GenerationRequest:
    draw = random.Random(number)
    prompt = [draw.randrange(512) for _ in range(5 + 7 * number)]
    params = SamplingParams(do_sample=number % 2 == 1, seed=number)
    return GenerationRequest(number, prompt, 24, params, [])


def fail_when(worker: Worker, wants: Wants, error: Exception, times: int = 1) -> list[int]:
    """The worker's steps of this kind raise; how many did is in the list that is returned."""
    run, failed = worker.runner.run, [0]

    def flaky(slices: list[RowSlice]) -> object:
        if failed[0] < times and wants(slices):
            failed[0] += 1
            raise error
        return run(slices)

    worker.runner.run = flaky  # type: ignore[method-assign, assignment]
    return failed


def serve(worker: Worker) -> tuple[dict[int, list[int]], dict[int, str], Scheduler]:
    """Tokens of all requests, errors of those that failed."""
    limits = SchedulerLimits(REQUESTS, 256, 64, 0.0)
    scheduler = Scheduler(limits, BlockPool(400, 16), lookahead=worker.depth - 1)
    emitted: list[EngineStep] = []
    EngineCore(scheduler, worker, emitted.append).run(Once())
    scheduler.check_integrity()
    assert scheduler.idle and scheduler.stats().free_blocks == 400
    tokens: dict[int, list[int]] = {number: [] for number in range(REQUESTS)}
    errors: dict[int, str] = {}
    for delta in (delta for step in emitted for delta in step.deltas):
        assert delta.request_id not in errors
        tokens[delta.request_id] += [each.id for each in delta.tokens]
        if delta.error is not None:
            errors[delta.request_id] = delta.error
    return tokens, errors, scheduler


def in_prefill(slices: list[RowSlice]) -> bool:
    return any(each.row == 0 or each.count > 40 for each in slices) and slices[-1].count > 1


def in_decode(slices: list[RowSlice]) -> bool:
    return len(slices) == REQUESTS and all(each.count == 1 for each in slices)


def fail_inside(worker: Worker, wants: Wants, error: Exception) -> list[int]:
    """As `fail_when`, but behind the first layer: its keys and values are written by then."""
    run, layers, failed = worker.runner.run, worker.model.layers, [0]
    last, asked_for = layers[-1], [False]

    def watched(slices: list[RowSlice]) -> object:
        asked_for[0] = failed[0] == 0 and wants(slices)
        return run(slices)

    def flaky(*given: Any) -> Any:
        if asked_for[0] and not failed[0]:
            failed[0] += 1
            raise error
        return last(*given)

    worker.runner.run = watched  # type: ignore[method-assign, assignment]
    layers[-1] = flaky
    return failed


Fail = Callable[[Worker, Wants, Exception], list[int]]
# Which texts count as want of memory: tests/worker/test_memory.py.
FAILURES: list[tuple[Fail, Exception]] = [
    (fail_when, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    (fail_when, MemoryError()),
    (fail_when, RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you")),
    (fail_inside, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    (fail_inside, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublas`")),
    (fail_inside, RuntimeError("Triton Error [CUDA]: out of memory")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("oom"), "7b", max_positions=256)


@pytest.fixture(scope="module", params=[make_worker, make_paged_worker])
def served(
    folder: Path, request: pytest.FixtureRequest
) -> tuple[Callable[[Path], Worker], dict[int, list[int]]]:
    """How a worker is made, and the tokens it gives undisturbed."""
    make: Callable[[Path], Worker] = request.param
    expected, none, _ = serve(make(folder))
    assert none == {}
    return make, expected


@pytest.mark.parametrize(
    ("fail", "error"), FAILURES, ids=lambda each: getattr(each, "__name__", type(each).__name__)
)
@pytest.mark.parametrize("when", [in_prefill, in_decode])
def test_one_request_fails_and_the_others_get_their_tokens(
    folder: Path,
    served: tuple[Callable[[Path], Worker], dict[int, list[int]]],
    when: Wants,
    fail: Fail,
    error: Exception,
) -> None:
    make, expected = served
    worker = make(folder)
    failed = fail(worker, when, error)
    found, errors, scheduler = serve(worker)
    assert failed == [1]
    assert scheduler.stats().preemptions > 0
    ((lost, why),) = errors.items()
    assert "no memory" in why
    if when is in_decode:
        assert lost == NEWEST
    for number in range(REQUESTS):
        if number != lost:
            assert found[number] == expected[number], number


def test_three_in_a_row_end_the_engine(folder: Path) -> None:
    worker = make_worker(folder)
    fail_when(worker, lambda _: True, torch.OutOfMemoryError("CUDA out of memory"), times=99)
    with pytest.raises(EngineBroken, match="3 steps in a row failed"):
        serve(worker)


def test_other_errors_are_not_taken_for_it(folder: Path) -> None:
    worker = make_worker(folder)
    fail_when(worker, in_decode, RuntimeError("shapes do not fit"))
    _, errors, _ = serve(worker)
    assert len(errors) == REQUESTS
