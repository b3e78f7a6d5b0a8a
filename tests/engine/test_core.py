"""The step loop over the real scheduler, with an executor scripted at its seam."""

from collections.abc import Callable

import pytest

from support.executors import SynchronousExecutor
from tiercel.cache.pool import BlockPool
from tiercel.engine.core import MAX_FAILED_STEPS, EngineBroken, EngineCore
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.messages import Abort, EngineStep, Shutdown, Submit, ToEngine, TokenDelta
from tiercel.wire.request import GenerationRequest, SamplingParams
from tiercel.wire.step import SampledToken, StepOutput, StepPlan


class CountingExecutor:
    """Draws token 7 for every row that asks, or raises where the script says so."""

    def __init__(self, fails: Callable[[int], bool] = lambda _: False) -> None:
        self.calls = 0
        self._fails = fails

    def step(self, plan: StepPlan) -> StepOutput:
        self.calls += 1
        if self._fails(self.calls):
            raise RuntimeError("the device said no")
        drawn = [SampledToken(part.row, 7, -0.25) for part in plan.slices if part.sample]
        return StepOutput(plan.step, drawn, [], [], 0.001, 0.002)


class ScriptedInbox:
    """Hands out one batch of messages per turn, then Shutdown once nothing is left to do."""

    def __init__(self, turns: list[list[ToEngine]]) -> None:
        self._turns = turns

    def receive(self, wait_s: float) -> list[ToEngine]:
        if self._turns:
            return self._turns.pop(0)
        return [Shutdown()] if wait_s > 0 else []


def _request(request_id: int, prompt: int = 5, new: int = 4) -> GenerationRequest:
    return GenerationRequest(request_id, list(range(prompt)), new, SamplingParams(), [])


def _run(
    turns: list[list[ToEngine]], executor: CountingExecutor, blocks: int = 16
) -> list[EngineStep]:
    limits = SchedulerLimits(
        max_rows=8, max_total_tokens=128, max_batch_prefill_tokens=64, step_stretch=0.0
    )
    emitted: list[EngineStep] = []
    core = EngineCore(
        Scheduler(limits, BlockPool(blocks, 16)), SynchronousExecutor(executor), emitted.append
    )
    core.run(ScriptedInbox(turns))
    return emitted


def _deltas(steps: list[EngineStep], request_id: int) -> list[TokenDelta]:
    return [delta for step in steps for delta in step.deltas if delta.request_id == request_id]


def test_one_message_per_step_carries_all_sequences() -> None:
    executor = CountingExecutor()
    steps = _run([[Submit([_request(1), _request(2)])]], executor)
    assert executor.calls == 4
    # The first message tells the gauges before there is any work.
    assert [len(step.deltas) for step in steps] == [0, 2, 2, 2, 2]
    assert _deltas(steps, 1)[-1].finish_reason == "length"
    assert steps[-1].stats.free_blocks == steps[-1].stats.total_blocks
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]


def test_a_request_that_can_never_fit_is_answered_not_queued() -> None:
    steps = _run([[Submit([_request(1, prompt=100, new=20), _request(2)])]], CountingExecutor(), 4)
    (refused,) = _deltas(steps, 1)
    assert refused.error_type == "validation"
    assert refused.error is not None
    assert _deltas(steps, 2)[-1].finish_reason == "length"


def test_an_abort_frees_within_one_step_and_is_reported() -> None:
    steps = _run([[Submit([_request(1, new=100)])], [], [Abort([1])]], CountingExecutor())
    assert steps[-1].stats.running == 0
    assert steps[-1].stats.free_blocks == steps[-1].stats.total_blocks
    assert len(_deltas(steps, 1)) <= 3


def test_a_failed_step_ends_its_requests_only() -> None:
    executor = CountingExecutor(lambda call: call == 2)
    steps = _run([[Submit([_request(1)])], [], [Submit([_request(2)])]], executor)
    failed = _deltas(steps, 1)[-1]
    assert failed.error is not None
    assert failed.error_type == "generation"
    assert _deltas(steps, 2)[-1].finish_reason == "length"


def test_failing_again_and_again_ends_the_engine() -> None:
    executor = CountingExecutor(lambda _: True)
    turns: list[list[ToEngine]] = [[Submit([_request(i)])] for i in range(10)]
    with pytest.raises(EngineBroken, match="the device said no"):
        _run(turns, executor)
    assert executor.calls == MAX_FAILED_STEPS
