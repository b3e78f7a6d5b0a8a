"""The step loop: drain the inbox, plan, submit, collect, apply, emit. A plain loop, no asyncio.

It owns the order of things, how many steps are out at once, and the boundary at which a failing
step is contained; the scheduler owns the sequences, the executor the device. Runs without any web
package.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from tiercel.errors import EngineDied, StartupError, StepOutOfMemory
from tiercel.scheduler.limits import NeverFits
from tiercel.scheduler.scheduler import Scheduler
from tiercel.wire.messages import (
    Abort,
    EngineStats,
    EngineStep,
    Shutdown,
    StepTiming,
    Submit,
    ToEngine,
    TokenDelta,
)
from tiercel.wire.request import GenerationRequest
from tiercel.wire.step import StepOutput, StepPlan

logger = logging.getLogger(__name__)

# One failing step may be one request's fault; this many in a row are the engine's.
MAX_FAILED_STEPS = 3
IDLE_WAIT_S = 1.0
COMPILING_WAIT_S = 0.002  # nothing runs, but a grammar may be ready at any moment


class Inbox(Protocol):
    """Where messages to the engine arrive."""

    def receive(self, wait_s: float) -> list[ToEngine]:
        """All messages that are there; waits up to `wait_s` seconds for the first one."""
        ...


class Executor(Protocol):
    """Runs plans on the device or devices, in the order in which they are submitted."""

    @property
    def depth(self) -> int:
        """How many steps may be out at once: submitted and not collected. At least 1."""
        ...

    def submit(self, plan: StepPlan) -> None:
        """Begin to compute a plan; may return before it is done.

        A slice may need a token that a plan which is out will draw: it takes it from the device.
        An exception means that no row of this plan has a result, and that it is not out; a
        StartupError, that no other plan will have one.
        """
        ...

    def idle(self) -> None:
        """Nothing is out and nothing to do; called at least every second then."""
        ...

    def close(self) -> None:
        """The loop has ended on purpose."""
        ...

    def collect(self) -> StepOutput:
        """The result of the plan that has been out for longest; waits for it.

        An exception means that no row of that plan has a result. It is not out any more.
        """
        ...


@dataclass
class _Out:
    """A step that was planned and whose result has not been taken in yet."""

    plan: StepPlan
    since_s: float  # when it was planned or, if that is later, when the step before it was done
    plan_s: float  # how long planning it took
    refused: Exception | None = None  # why the executor did not take it
    excused: bool = False  # it was out when another step failed, with the same sequences


class GrammarQueue(Protocol):
    """Where requests wait until their grammar is compiled."""

    @property
    def pending(self) -> int:
        """How many wait."""
        ...

    def submit(self, request: GenerationRequest) -> None:
        """Take a request with a grammar."""
        ...

    def abort(self, request_id: int) -> bool:
        """Nobody waits for it any more. False: it is not here."""
        ...

    def ready(self) -> list[tuple[GenerationRequest, str | None]]:
        """The requests that can be scheduled now, or why one cannot."""
        ...


class NoGrammars:
    """The queue of an engine without grammars: every one is refused."""

    def __init__(self) -> None:
        self._refused: list[GenerationRequest] = []

    @property
    def pending(self) -> int:
        """They are refused at once."""
        return len(self._refused)

    def submit(self, request: GenerationRequest) -> None:
        """To be refused."""
        self._refused.append(request)

    def abort(self, request_id: int) -> bool:
        """Nothing waits here."""
        return False

    def ready(self) -> list[tuple[GenerationRequest, str | None]]:
        """Why they cannot run."""
        refused, self._refused = self._refused, []
        return [(each, "grammar is not supported by this engine") for each in refused]


class EngineBroken(EngineDied):
    """Too many steps failed in a row: the engine must not go on."""


class EngineCore:
    """One engine. `run` returns after a Shutdown message and raises EngineBroken on its own end."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        emit: Callable[[EngineStep], None],
        *,
        grammars: GrammarQueue | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grammars: GrammarQueue = NoGrammars() if grammars is None else grammars
        self._scheduler = scheduler
        self._executor = executor
        self._emit = emit
        self._clock = clock
        self._steps = 0
        self._failed_in_a_row = 0
        self._aborted_early = 0  # before their grammar was compiled
        self._refused: list[TokenDelta] = []
        self._stopping = False
        self._out: deque[_Out] = deque()  # oldest first; at most `executor.depth`
        self._step_started_s: float | None = None  # since when the oldest step runs

    def step_running_s(self) -> float:
        """How long the oldest step that is out has taken; 0 when none is. For another thread."""
        started = self._step_started_s
        return 0.0 if started is None else self._clock() - started

    def run(self, inbox: Inbox) -> None:
        """Serve until a Shutdown message arrives; then take in the steps that are out."""
        self._emit(self._report(None, []))  # the gauges are right before the first request
        while not self._stopping:
            dirty = self._drain(inbox.receive(self._wait_s()))
            message = self.step()
            if message is not None:
                self._emit(message)
            elif dirty:
                self._emit(self._report(None, []))
            if message is None and not self._out:
                self._executor.idle()
        while self._out:
            self._emit(self._take_in())
        self._executor.close()

    def _wait_s(self) -> float:
        if not self._scheduler.idle:
            return 0.0
        return COMPILING_WAIT_S if self._grammars.pending else IDLE_WAIT_S

    def step(self) -> EngineStep | None:
        """Plan and submit a step; take in the oldest if no more may be out or none was planned.

        None when there was nothing to take in. With a depth of 2 the device computes one step
        while the one before it is taken in and the one after it is planned.
        """
        planned = self._submit_next()
        if not self._out or (planned and len(self._out) < self._executor.depth):
            return None
        return self._take_in()

    def _submit_next(self) -> bool:
        """False when nothing can be planned now. What the executor refuses fails in its turn."""
        if self._out and self._out[-1].refused is not None:
            return False  # its sequences must end before anything is planned on top of it
        began = self._clock()
        plan = self._scheduler.schedule()
        if plan is None:
            return False
        out = _Out(plan, began, self._clock() - began)
        if not self._out:
            self._step_started_s = began
        self._out.append(out)
        try:
            self._executor.submit(plan)
        except Exception as error:  # noqa: BLE001 - `_take_in` logs it and contains it
            out.refused = error
        return True

    def _take_in(self) -> EngineStep:
        """The result of the oldest step that is out: collect and apply it."""
        out = self._out.popleft()
        try:
            output, deltas, computed = self._collect(out)
            timing = self._timing(out, output, self._clock() - computed)
            return self._report(timing, deltas)
        finally:
            self._step_started_s = None
            if self._out:  # the next one has run by itself only from now on
                self._step_started_s = self._out[0].since_s = self._clock()

    def _collect(self, out: _Out) -> tuple[StepOutput | None, list[TokenDelta], float]:
        """The output, what it means for whom, and when the device was done."""
        plan = out.plan
        try:
            if out.refused is not None:
                raise out.refused
            output = self._executor.collect()
        except StepOutOfMemory as error:
            logger.exception("no memory for step %d with %d rows", plan.step, len(plan.slices))
            self._count_failure(out, error)
            reason = f"the server has no memory for it: {error}"
            return None, self._scheduler.shed([plan, *self._recall()], reason), self._clock()
        except StartupError:
            raise  # the executor cannot go on
        except Exception as error:  # the boundary: a failed step ends its requests only
            logger.exception("step %d failed with %d rows", plan.step, len(plan.slices))
            self._count_failure(out, error)
            reason = f"Server error: {type(error).__name__}"
            return None, self._scheduler.fail_plan(plan, reason, "generation"), self._clock()
        self._failed_in_a_row = 0
        computed = self._clock()
        return output, self._scheduler.apply(plan, output), computed

    def _recall(self) -> list[StepPlan]:
        """The steps that are out behind a failed one; what they computed on top of it is void."""
        plans = [out.plan for out in self._out]
        for out in self._out:
            if out.refused is None:
                with contextlib.suppress(Exception):  # whatever became of them
                    self._executor.collect()
        self._out.clear()
        return plans

    def _count_failure(self, failed: _Out, error: Exception) -> None:
        """Raises EngineBroken if it is one too many.

        Steps that are out with it have its sequences and may fail for the same reason: one failure.
        """
        if failed.excused:
            return
        for out in self._out:
            out.excused = True
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILED_STEPS:
            raise EngineBroken(
                f"{MAX_FAILED_STEPS} steps in a row failed, the last with: {error}"
            ) from error

    def _drain(self, messages: list[ToEngine]) -> bool:
        """Take in what arrived. True when it changed what the edge should know at once."""
        dirty = False
        for message in messages:
            if isinstance(message, Submit):
                for request in message.requests:
                    if request.grammar is None:
                        self._add(request)
                    else:
                        self._grammars.submit(request)
            elif isinstance(message, Abort):
                for request_id in message.request_ids:
                    dirty = self._abort(request_id) or dirty
            elif isinstance(message, Shutdown):
                self._stopping = True
        for request, error in self._grammars.ready():
            if error is None:
                self._add(request)
            else:
                self._refuse(request, error)
        return dirty or bool(self._refused)

    def _add(self, request: GenerationRequest) -> None:
        try:
            self._scheduler.add(request)
        except (NeverFits, ValueError) as error:
            self._refuse(request, str(error))

    def _refuse(self, request: GenerationRequest, why: str) -> None:
        self._refused.append(TokenDelta(request.id, [], error=why, error_type="validation"))

    def _abort(self, request_id: int) -> bool:
        if self._grammars.abort(request_id):
            self._aborted_early += 1
            return True
        return self._scheduler.abort(request_id)

    def _report(self, timing: StepTiming | None, deltas: list[TokenDelta]) -> EngineStep:
        self._steps += 1
        refused, self._refused = self._refused, []
        return EngineStep(self._steps, refused + deltas, self._stats(), timing)

    def _stats(self) -> EngineStats:
        """The scheduler's, and those that it does not know of yet."""
        stats, pending = self._scheduler.stats(), self._grammars.pending
        if not pending and not self._aborted_early:
            return stats
        return msgspec.structs.replace(
            stats, waiting=stats.waiting + pending, aborted=stats.aborted + self._aborted_early
        )

    def _timing(self, out: _Out, output: StepOutput | None, apply_s: float) -> StepTiming:
        shape = self._scheduler.describe(out.plan)
        return StepTiming(
            prefill_tokens=shape.prefill_tokens,
            decode_rows=shape.decode_rows,
            forward_s=output.forward_s if output is not None else 0.0,
            total_s=self._clock() - out.since_s,
            new_rows=shape.new_rows,
            plan_s=out.plan_s,
            apply_s=apply_s,
        )
