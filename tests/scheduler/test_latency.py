"""A long prompt among running streams, in simulated time: nobody's tokens come far apart."""

from itertools import pairwise
from statistics import median

import pytest

from support.simulated_machine import PROMPT, Machine
from support.simulated_worker import Harness, SimulatedWorker, request
from tiercel.cache.pool import BlockPool
from tiercel.scheduler.limits import SchedulerLimits
from tiercel.scheduler.scheduler import Scheduler

STREAMS = 8


class Simulation:
    """A scheduler on a simulated machine and its clock; notes when each token came.

    With a depth of 2 the machine begins a step when the one before it ends.
    """

    def __init__(self, stretch: float, depth: int) -> None:
        self.now = 0.0
        self.times: dict[int, list[float]] = {}
        limits = SchedulerLimits(16, 4096, 4096, stretch)
        pool = BlockPool(400, 16)
        scheduler = Scheduler(limits, pool, lookahead=depth - 1, clock=lambda: self.now)
        self.harness = Harness(scheduler, SimulatedWorker(400, 16, depth))
        self.machine = Machine()

    def step(self) -> None:
        """One step; the clock moves by what the step that lands costs."""
        made = self.harness
        plan = made.plan()
        if plan is not None:
            made.submit(plan)
            if len(made.out) < made.worker.depth:
                return
        shape = made.scheduler.describe(made.out[0])
        seconds = self.machine.seconds(
            shape.decode_rows > 0, shape.prefill_tokens, shape.mean_context
        )
        self.now += seconds
        before = {number: len(deltas) for number, deltas in made.deltas.items()}
        made.land(seconds)
        for number, deltas in made.deltas.items():
            if len(deltas) > before.get(number, 0):
                self.times.setdefault(number, []).append(self.now)

    def until_first_token(self, number: int) -> float:
        """Seconds from now until the request's first token."""
        asked = self.now
        while number not in self.times:
            self.step()
        return self.now - asked


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("stretch", [4.0, 5.0])
def test_streams_keep_flowing_and_the_prompt_is_not_held_up(stretch: float, depth: int) -> None:
    idle = Simulation(0.0, depth)
    idle.harness.scheduler.add(request(99, [1] * PROMPT, 1))
    alone_s = idle.until_first_token(99)

    busy = Simulation(stretch, depth)
    for number in range(STREAMS):
        busy.harness.scheduler.add(request(number, [number] * 20, 120))
    for _ in range(30):
        busy.step()
    busy.harness.scheduler.add(request(99, [1] * PROMPT, 1))
    first_s = busy.until_first_token(99)
    while not busy.harness.scheduler.idle:
        busy.step()

    for number in range(STREAMS):
        times = busy.times[number]
        gaps = [later - sooner for sooner, later in pairwise(times)]
        assert len(gaps) == 119
        assert max(gaps) <= (stretch + 0.5) * median(gaps)
    assert first_s <= (stretch / (stretch - 1) + 0.03) * alone_s
