"""An executor over whatever computes a step in one call: one step out, run when it is due."""

from typing import Protocol

from tiercel.wire.step import StepOutput, StepPlan


class StepRunner(Protocol):
    """Computes a whole plan while the caller waits."""

    def step(self, plan: StepPlan) -> StepOutput:
        """Compute one plan. An exception means that no row of it has a result."""
        ...


class SynchronousExecutor:
    """See core.Executor. Nothing runs beside the loop, so looking ahead would gain nothing."""

    depth = 1

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self._plan: StepPlan | None = None

    def submit(self, plan: StepPlan) -> None:
        """Keep the plan. Raises RuntimeError while another one is out."""
        if self._plan is not None:
            raise RuntimeError(
                f"step {plan.step} was submitted while step {self._plan.step} is out"
            )
        self._plan = plan

    def collect(self) -> StepOutput:
        """Run the plan that is out. Raises what the runner raises; RuntimeError if none is out."""
        plan, self._plan = self._plan, None
        if plan is None:
            raise RuntimeError("no step is out")
        return self._runner.step(plan)

    def idle(self) -> None:
        """See core.Executor."""

    def close(self) -> None:
        """See core.Executor."""
