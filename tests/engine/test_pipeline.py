"""The step loop with two steps out: order of events, ends, failures, clocks; real scheduler."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from support.executors import SynchronousExecutor
from support.simulated_worker import SimulatedWorker, StepFailed, alone, prompt, request
from tiercel.cache.pool import BlockPool
from tiercel.engine.core import MAX_FAILED_STEPS, EngineBroken, EngineCore
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.messages import Abort, EngineStep, Shutdown, Submit, ToEngine, TokenDelta
from tiercel.wire.request import GenerationRequest
from tiercel.wire.step import StepOutput, StepPlan

Event = tuple[str, int]


class Device:
    """The simulated worker behind the executor's seam; writes down what happens when.

    `fails` says which steps fail when they are collected, `refuses` which are not even taken.
    `takes_s` is what collecting costs on the clock that it shares with the loop.
    """

    def __init__(
        self,
        depth: int = 2,
        *,
        blocks: int = 64,
        fails: Callable[[int], bool] = lambda _: False,
        refuses: Callable[[int], bool] = lambda _: False,
        takes_s: float = 0.0,
    ) -> None:
        self.depth = depth
        self.now = 0.0
        self.events: list[Event] = []
        self.waited: list[float] = []  # what `step_running_s` says right before a result is there
        self.core: EngineCore
        self._worker = SimulatedWorker(blocks, 4, depth)
        self._fails, self._refuses, self._takes_s = fails, refuses, takes_s
        self._steps: list[int] = []

    def submit(self, plan: StepPlan) -> None:
        if self._refuses(plan.step):
            raise MemoryError("no room for the inputs")
        self.events.append(("submit", plan.step))
        self._worker.submit(plan, fails=self._fails(plan.step))
        self._steps.append(plan.step)

    def collect(self) -> StepOutput:
        self.events.append(("collect", self._steps.pop(0)))
        self.now += self._takes_s
        self.waited.append(self.core.step_running_s())
        return self._worker.collect(self._takes_s)

    def idle(self) -> None:
        assert not self._steps

    def close(self) -> None:
        assert not self._steps


class Script:
    """Hands out one batch of messages per turn, then Shutdown once nothing is left to do."""

    def __init__(self, turns: list[list[ToEngine]]) -> None:
        self._turns = turns

    def receive(self, wait_s: float) -> list[ToEngine]:
        if self._turns:
            return self._turns.pop(0)
        return [Shutdown()] if wait_s > 0 else []


class Outcome:
    """What one run of the loop gave."""

    def __init__(self, device: Device, turns: list[list[ToEngine]], blocks: int = 64) -> None:
        self.steps: list[EngineStep] = []
        self._device = device
        limits = SchedulerLimits(8, 512, 20, 0.0)
        self.scheduler = Scheduler(limits, BlockPool(blocks, 4), lookahead=device.depth - 1)
        core = EngineCore(self.scheduler, device, self._emit, clock=lambda: device.now)
        device.core = core
        core.run(Script(turns))
        self.scheduler.check_integrity()
        assert core.step_running_s() == 0.0

    def _emit(self, step: EngineStep) -> None:
        self.steps.append(step)
        if step.timing is not None:
            self._device.events.append(("emit", len(self.timings) - 1))

    @property
    def timings(self) -> list[Any]:
        return [step.timing for step in self.steps if step.timing is not None]

    def deltas(self, number: int) -> list[TokenDelta]:
        return [d for step in self.steps for d in step.deltas if d.request_id == number]

    def tokens(self, number: int) -> list[int]:
        return [token.id for delta in self.deltas(number) for token in delta.tokens]

    def end(self, number: int) -> str | None:
        last = self.deltas(number)[-1]
        return last.finish_reason or last.error


def events(text: str) -> list[Event]:
    names = {"s": "submit", "c": "collect", "e": "emit"}
    return [(names[word[0]], int(word[1:])) for word in text.split()]


def test_the_next_step_is_submitted_before_the_oldest_is_collected() -> None:
    device = Device()
    outcome = Outcome(device, [[Submit([request(1, prompt(5), 4)])]])
    assert device.events == events("s0 s1 c0 e0 s2 c1 e1 s3 c2 e2 c3 e3")
    assert outcome.tokens(1) == alone(request(1, prompt(5), 4))[0]


def test_with_one_step_out_the_order_is_that_of_a_plain_loop() -> None:
    device = Device(1)
    Outcome(device, [[Submit([request(1, prompt(5), 3)])]])
    assert device.events == events("s0 c0 e0 s1 c1 e1 s2 c2 e2")


def test_what_arrives_meanwhile_joins_the_next_step() -> None:
    device = Device()
    turns: list[list[ToEngine]] = [[Submit([request(1, prompt(5), 9)])], [], []]
    outcome = Outcome(device, [*turns, [Submit([request(2, prompt(7, 1), 3)])]])
    for number, asked in ((1, request(1, prompt(5), 9)), (2, request(2, prompt(7, 1), 3))):
        assert (outcome.tokens(number), outcome.end(number)) == alone(asked)
    assert len(outcome.timings) == 9, "no step of its own for the second"


@pytest.mark.parametrize("depth", [1, 2])
def test_an_aborted_request_gets_no_token_after_it(depth: int) -> None:
    device = Device(depth)
    turns: list[list[ToEngine]] = [[Submit([request(1, prompt(5), 200)])], [], [], [Abort([1])]]
    outcome = Outcome(device, turns)
    # Turns 0 to 2: as many submitted, and one less landed for each one more that may be out.
    assert len(outcome.tokens(1)) == 3 - (depth - 1)
    assert len([event for event in device.events if event[0] == "submit"]) == 3
    assert outcome.steps[-1].stats.free_blocks == 64
    assert (outcome.steps[-1].stats.running, outcome.steps[-1].stats.aborted) == (0, 1)


def test_a_stop_token_costs_one_step_more_on_the_device_and_none_outside() -> None:
    tokens, _ = alone(request(1, prompt(5), 3))
    asked = request(1, prompt(5), 200, stop=(tokens[2],))
    outcome = Outcome(device := Device(), [[Submit([asked])]])
    assert (outcome.tokens(1), outcome.end(1)) == (tokens, "eos_token")
    assert len([event for event in device.events if event[0] == "submit"]) == 4
    assert outcome.steps[-1].stats.generated_tokens == 3


def test_shutdown_takes_in_what_is_out() -> None:
    device = Device()
    turns: list[list[ToEngine]] = [[Submit([request(1, prompt(5), 200)])], [], [Shutdown()]]
    outcome = Outcome(device, turns)
    submitted = [step for kind, step in device.events if kind == "submit"]
    assert submitted == [step for kind, step in device.events if kind == "collect"] == [0, 1, 2]
    assert outcome.tokens(1) == alone(request(1, prompt(5), 200))[0][:3]


def test_a_failed_step_ends_its_requests_and_what_is_out_of_them_is_dropped() -> None:
    device = Device(fails=lambda step: step == 1)
    later = request(2, prompt(7, 1), 5)
    turns: list[list[ToEngine]] = [
        [Submit([request(1, prompt(5), 200)])],
        [],
        [],
        [Submit([later])],
    ]
    outcome = Outcome(device, turns)
    assert [d.error for d in outcome.deltas(1)] == [None, "Server error: StepFailed"]
    assert (outcome.tokens(2), outcome.end(2)) == alone(later)
    assert outcome.steps[-1].stats.free_blocks == 64


def test_a_refused_step_fails_in_its_turn_and_nothing_is_planned_before_that() -> None:
    device = Device(refuses=lambda step: step == 2)
    later = request(2, prompt(7, 1), 5)
    turns: list[list[ToEngine]] = [
        [Submit([request(1, prompt(5), 200)])],
        [],
        [],
        [Submit([later])],
    ]
    outcome = Outcome(device, turns)
    assert device.events[:9] == events("s0 s1 c0 e0 c1 e1 e2 s3 s4")
    assert outcome.tokens(1) == alone(request(1, prompt(5), 200))[0][:2]
    assert outcome.end(1) == "Server error: MemoryError"
    assert (outcome.tokens(2), outcome.end(2)) == alone(later)
    assert outcome.steps[-1].stats.free_blocks == 64


def test_failing_again_and_again_ends_the_engine() -> None:
    device = Device(fails=lambda _: True)
    turns: list[list[ToEngine]] = [[Submit([request(n, prompt(5), 9)])] for n in range(40)]
    with pytest.raises(EngineBroken, match="injected"):
        Outcome(device, turns)
    collected = len([event for event in device.events if event[0] == "collect"])
    # A step that was out when another failed has the same sequences: it does not count again.
    assert MAX_FAILED_STEPS < collected <= 2 * MAX_FAILED_STEPS


def test_one_bad_request_after_the_other_is_not_a_broken_engine() -> None:
    """Each fails two steps, since the second is out before the first failure is known."""
    device = Device(fails=lambda step: step < 4)
    turns: list[list[ToEngine]] = [[Submit([request(1, prompt(5), 9)])], [], [], [], []]
    turns += [[Submit([request(2, prompt(5), 9)])], [], [], [], []]
    good = request(3, prompt(5), 9)
    outcome = Outcome(device, [*turns, [Submit([good])]])
    assert outcome.end(1) == outcome.end(2) == "Server error: StepFailed"
    assert [event for event in device.events if event[0] == "submit"][:5] == events(
        "s0 s1 s2 s3 s4"
    )
    assert (outcome.tokens(3), outcome.end(3)) == alone(good)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_step_is_timed_from_the_end_of_the_one_before(depth: int) -> None:
    device = Device(depth, takes_s=2.0)
    outcome = Outcome(device, [[Submit([request(1, prompt(5), 5)])]])
    assert device.waited == [2.0] * 5
    assert [timing.total_s for timing in outcome.timings] == [2.0] * 5
    assert [timing.forward_s for timing in outcome.timings] == [2.0] * 5


@pytest.mark.parametrize("blocks", [24, 200])
def test_thirty_two_requests_give_the_same_tokens_at_both_depths(blocks: int) -> None:
    results: list[dict[int, tuple[list[int], str | None]]] = []
    for depth in (1, 2):
        dice = random.Random(7)
        turns: list[list[ToEngine]] = []
        asked: dict[int, GenerationRequest] = {}
        for number in range(32):
            made = request(
                number,
                prompt(dice.randint(1, 40), dice.randint(0, 3)),
                dice.randint(1, 40),
                stop=(dice.randrange(50),),
            )
            asked[number] = made
            turns += [[Submit([made])], *[[] for _ in range(dice.randrange(4))]]
        device = Device(depth, blocks=blocks)
        outcome = Outcome(device, turns, blocks)
        results.append({n: (outcome.tokens(n), outcome.end(n)) for n in asked})
        assert results[-1] == {n: alone(made) for n, made in asked.items()}
        assert bool(outcome.steps[-1].stats.preemptions) == (blocks == 24)
        assert outcome.steps[-1].stats.free_blocks == blocks
    assert results[0] == results[1]


@pytest.mark.parametrize("seed", range(12))
def test_aborts_and_failures_at_random_moments_leave_nothing_behind(seed: int) -> None:
    dice = random.Random(seed)
    failing = {dice.randrange(200) for _ in range(12)}
    refused = {dice.randrange(200) for _ in range(6)} - failing
    device = Device(blocks=24, fails=failing.__contains__, refuses=refused.__contains__)
    turns: list[list[ToEngine]] = []
    asked: dict[int, GenerationRequest] = {}
    aborted: set[int] = set()
    for number in range(60):
        asked[number] = request(
            number, prompt(dice.randint(1, 30), number % 4), dice.randint(1, 30)
        )
        turn: list[ToEngine] = [Submit([asked[number]])]
        if dice.random() < 0.4:
            victim = dice.randrange(number + 1)
            aborted.add(victim)
            turn.append(Abort([victim]))
        turns += [turn, *[[] for _ in range(dice.randrange(5))]]
    try:
        outcome = Outcome(device, turns, 24)
    except EngineBroken:
        pytest.fail("so many failures in a row were not ordered")
    ends = {}
    for number, made in asked.items():
        tokens, reason = alone(made)
        given = outcome.tokens(number)
        assert given == tokens[: len(given)]
        ends[number] = outcome.end(number) if outcome.deltas(number) else None
        if ends[number] is None:
            assert number in aborted
        elif ends[number] == "length":
            assert (given, reason) == (tokens, "length")
    assert sum(end == "length" for end in ends.values()) > 5
    assert outcome.steps[-1].stats.free_blocks == 24
    assert outcome.scheduler.idle


def test_the_synchronous_executor_has_one_step_out() -> None:
    worker = SimulatedWorker(8, 4)

    class Runner:
        def step(self, plan: StepPlan) -> StepOutput:
            if plan.step:
                raise StepFailed("injected")
            return worker.run(plan)

    executor = SynchronousExecutor(Runner())
    with pytest.raises(RuntimeError, match="no step is out"):
        executor.collect()
    executor.submit(StepPlan(0, [], []))
    with pytest.raises(RuntimeError, match="step 1 was submitted while step 0 is out"):
        executor.submit(StepPlan(1, [], []))
    assert executor.collect().step == 0
    executor.submit(StepPlan(1, [], []))
    with pytest.raises(StepFailed):
        executor.collect()
    executor.submit(StepPlan(0, [], []))
    assert executor.collect().step == 0
